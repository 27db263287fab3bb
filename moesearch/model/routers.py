"""Routers: which experts a token goes to, and with what weight.

Shapes:  R lanes   N = B*T tokens   C model width   E experts (the most of any lane)   K experts per token (the most)
         S slots: (lane, token, rank below the lane's K), in this order   G = sum of E over lanes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moesearch.model.lanes import LaneLayout
from moesearch.model.layers import parameter_dtype
from moesearch.model.randomness import LayerRandomness, Place


@dataclass(frozen=True)
class Slots:
    """The slots of a layout as constant index tensors: known on the host, so no step has a data-dependent shape."""

    lane_S: Tensor
    token_S: Tensor
    """Row in the flattened (R*N) tokens."""
    row_S: Tensor
    """Number of the slot within its lane, int32: names it for randomness."""
    choice_S: Tensor | None
    """Position in the flattened (R*N*K) choices; None where all lanes have the same K, so that every choice is one."""
    bag_starts: Tensor
    """First slot of each of the R*N tokens, int32."""
    first_slot_G: Tensor
    """First slot of the lane that a group belongs to."""
    slots_per_lane_R1: Tensor
    num_experts_R: Tensor
    groups_RE: Tensor
    """Group of each expert, int32; a padded expert has its lane's last group, so an index stays within its lane."""
    is_absent_R1E: Tensor | None
    """Experts that a lane lacks; None where all lanes have equally many."""
    is_beyond_R1K: Tensor | None
    """Ranks from a lane's own K on; None where all lanes have the same K."""


@lru_cache(maxsize=64)
def slots_of(layout: LaneLayout, num_tokens: int, device: torch.device) -> Slots:
    """The slots of N tokens in each lane."""
    with torch.inference_mode(False):  # An index made in an evaluation serves training too.
        R, K = layout.num_lanes, layout.max_top_k
        top_k_R, num_experts_R = torch.tensor(layout.top_k), torch.tensor(layout.num_experts)
        is_slot_RNK = (torch.arange(K) < top_k_R[:, None, None]).expand(R, num_tokens, K)
        lane_S, token_S, _ = is_slot_RNK.nonzero(as_tuple=True)
        bag_sizes = top_k_R.repeat_interleave(num_tokens)
        first_slot_R = (top_k_R.cumsum(0) - top_k_R) * num_tokens
        is_beyond_R1K = _beyond(layout.top_k, device)
        last_R1 = num_experts_R.unsqueeze(1) - 1
        experts_RE = torch.minimum(torch.arange(layout.max_experts), last_R1)
        return Slots(
            lane_S=lane_S.to(device),
            token_S=(lane_S * num_tokens + token_S).to(device),
            row_S=torch.cat([torch.arange(num_tokens * k, dtype=torch.int32) for k in layout.top_k]).to(device),
            choice_S=None if is_beyond_R1K is None else is_slot_RNK.flatten().nonzero().squeeze(1).to(device),
            bag_starts=(bag_sizes.cumsum(0) - bag_sizes).int().to(device),
            first_slot_G=first_slot_R.repeat_interleave(num_experts_R).to(device),
            slots_per_lane_R1=(top_k_R * num_tokens).unsqueeze(1).to(device),
            num_experts_R=num_experts_R.to(device),
            groups_RE=(torch.tensor(layout.group_starts).unsqueeze(1) + experts_RE).int().to(device),
            is_absent_R1E=_beyond(layout.num_experts, device),
            is_beyond_R1K=is_beyond_R1K,
        )


@dataclass(frozen=True)
class Routing:
    """What a router decided for the N tokens of each lane in one layer."""

    layout: LaneLayout
    slots: Slots
    logits_RNE: Tensor
    """Router logits without noise, float32; -inf where a lane has no such expert."""
    experts_RNK: Tensor
    """Chosen experts of each token, best first; ranks from the lane's own K on mean nothing."""
    gates_RNK: Tensor
    """Their weights, float32: they sum to 1 over the lane's K ranks, and are 0 from there on."""
    order_S: Tensor
    """The slots sorted by expert group; slots of one group keep their order."""
    ends_G: Tensor
    """End of each group in that order, int32."""

    def gates_S(self) -> Tensor:
        """Weight of each slot."""
        gates = self.gates_RNK.flatten()
        return gates if self.slots.choice_S is None else gates.index_select(0, self.slots.choice_S)

    def counts_RE(self) -> Tensor:
        """Slots that each expert got, int32; 0 where a lane has no such expert."""
        counts_G = self.ends_G.diff(prepend=self.ends_G.new_zeros(1))
        counts_RE = counts_G[self.slots.groups_RE]
        absent = self.slots.is_absent_R1E
        return counts_RE if absent is None else counts_RE.masked_fill(absent.squeeze(1), 0)


class RouterLinear(nn.Module):
    """A linear map per lane to as many logits as the lane has experts, in float32.

    The weight is stored output first and padded to the largest lane, so that a lane's part of it is contiguous.
    """

    def __init__(self, layout: LaneLayout, width: int, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        shape = (layout.num_lanes, layout.max_experts)
        self.weight = nn.Parameter(torch.zeros(*shape, width, device=device, dtype=parameter_dtype(dtype)))
        self.bias = nn.Parameter(torch.zeros(*shape, device=device, dtype=parameter_dtype(dtype)))

    def forward(self, x_RNC: Tensor) -> Tensor:
        return torch.baddbmm(self.bias.unsqueeze(1), x_RNC.to(self.weight.dtype), self.weight.transpose(1, 2))


class TopKRouter(nn.Module):
    """Softmax over the k largest logits, with learned noise in training in the lanes that want it.

    Shazeer et al. 2017, eqs. 3 to 5: noisy logits are logits + randn * softplus(second linear map).
    """

    def __init__(
        self, layout: LaneLayout, width: int, noise: Sequence[bool], *, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.layout = layout
        self.logits = RouterLinear(layout, width, device=device, dtype=dtype)
        self.noise = RouterLinear(layout, width, device=device, dtype=dtype) if any(noise) else None
        is_quiet_R11 = ~torch.tensor(noise, device=device).view(-1, 1, 1)
        self.is_quiet_R11 = None if all(noise) else is_quiet_R11

    def forward(self, x_RNC: Tensor, randomness: LayerRandomness | None) -> Routing:
        R, N, _ = x_RNC.shape
        layout = self.layout
        slots = slots_of(layout, N, x_RNC.device)
        logits_RNE: Tensor = self.logits(x_RNC)
        if slots.is_absent_R1E is not None:
            logits_RNE = logits_RNE.masked_fill(slots.is_absent_R1E, float("-inf"))
        scores_RNE = logits_RNE
        if randomness is not None and self.noise is not None:
            scores_RNE = logits_RNE + self._noise(x_RNC, randomness)
        top_RNK, experts_RNK = scores_RNE.topk(layout.max_top_k)
        if slots.is_beyond_R1K is not None:
            top_RNK = top_RNK.masked_fill(slots.is_beyond_R1K, float("-inf"))
        groups_S = slots.groups_RE.unsqueeze(1).expand(R, N, -1).gather(2, experts_RNK).flatten()
        if slots.choice_S is not None:
            groups_S = groups_S.index_select(0, slots.choice_S)
        order_S, ends_G = sort_by_group(groups_S, layout.num_groups)
        return Routing(layout, slots, logits_RNE, experts_RNK, torch.softmax(top_RNK, -1), order_S, ends_G)

    def _noise(self, x_RNC: Tensor, randomness: LayerRandomness) -> Tensor:
        assert self.noise is not None
        normal_RNE = randomness.normal(Place.ROUTER_NOISE, x_RNC.shape[1], self.layout.max_experts)
        noise_RNE = normal_RNE * F.softplus(self.noise(x_RNC))
        return noise_RNE if self.is_quiet_R11 is None else noise_RNE.masked_fill(self.is_quiet_R11, 0.0)


def sort_by_group(groups_S: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """The slots ordered by group (stable), and the end of each group as int32 (G,); no host sync, no atomics."""
    sorted_S, order_S = groups_S.sort(stable=True)
    boundaries_G = torch.arange(num_groups, dtype=groups_S.dtype, device=groups_S.device)
    return order_S, torch.searchsorted(sorted_S, boundaries_G, right=True, out_int32=True)


def _beyond(counts: tuple[int, ...], device: torch.device) -> Tensor | None:
    """True where an index is at or past a lane's count, (R, 1, most); None where all counts are equal."""
    if min(counts) == max(counts):
        return None
    return (torch.arange(max(counts)) >= torch.tensor(counts).unsqueeze(1)).unsqueeze(1).to(device)
