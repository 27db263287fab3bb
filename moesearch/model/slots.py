"""The slots that a layout routes, as index tensors that are known before any routing.

Shapes:  R lanes   N = B*T tokens   E experts (the most of any lane)   K experts per token (the most)
         S slots: (lane, token, rank below the lane's K), in this order   G = sum of E over lanes
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from moesearch.model.lanes import LaneLayout


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


def at_slots(choices_RNK: Tensor, slots: Slots) -> Tensor:
    """The entries of the ranks that a lane has, (S,)."""
    choices = choices_RNK.flatten()
    return choices if slots.choice_S is None else choices.index_select(0, slots.choice_S)


def sort_by_group(groups_S: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """The slots ordered by group (stable), and the end of each group as int32 (G,); no host sync, no atomics.

    Slots of a group past the last one come at the end, and count for none.
    """
    sorted_S, order_S = groups_S.sort(stable=True)
    boundaries_G = torch.arange(num_groups, dtype=groups_S.dtype, device=groups_S.device)
    return order_S, torch.searchsorted(sorted_S, boundaries_G, right=True, out_int32=True)


def _beyond(counts: tuple[int, ...], device: torch.device) -> Tensor | None:
    """True where an index is at or past a lane's count, (R, 1, most); None where all counts are equal."""
    if min(counts) == max(counts):
        return None
    return (torch.arange(max(counts)) >= torch.tensor(counts).unsqueeze(1)).unsqueeze(1).to(device)
