"""Routers: which experts a token goes to, and with what weight.

Shapes:  R lanes   N = B*T tokens   T tokens of a sequence   C model width   E experts (the most of any lane)
         K experts per token (the most)   S slots: (lane, token, rank below the lane's K)   G = sum of E over lanes
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moesearch.config.trial import MoEConfig
from moesearch.model.capacity import Capacity
from moesearch.model.gates import GateForms, per_lane
from moesearch.model.lanes import LaneLayout
from moesearch.model.layers import parameter_dtype
from moesearch.model.randomness import LayerRandomness, Place
from moesearch.model.slots import Slots, at_slots, slots_of, sort_by_group


@dataclass(frozen=True)
class Routing:
    """What a router decided for the N tokens of each lane in one layer."""

    layout: LaneLayout
    slots: Slots
    logits_RNE: Tensor
    """Router logits without noise, float32; -inf where a lane has no such expert."""
    forms: GateForms
    """How each lane's scores follow from its logits."""
    bias_RE: Tensor | None
    """What was added to the scores for the choice alone; None where no lane balances so."""
    experts_RNK: Tensor
    """Chosen experts of each token, best first; ranks from the lane's own K on mean nothing."""
    gates_RNK: Tensor
    """Their weights, float32; 0 from the lane's K on, and where an expert had no place for the token."""
    kept_S: Tensor | None
    """Slots whose expert had a place; None where all lanes are dropless."""
    most_kept: int
    """The most slots that can be kept, as the host knows."""
    order_S: Tensor
    """The slots sorted by expert group, dropped ones last; slots of one group keep their order."""
    ends_G: Tensor
    """End of each group in that order, int32; dropped slots lie past the last."""

    def gates_S(self) -> Tensor:
        """Weight of each slot."""
        return at_slots(self.gates_RNK, self.slots)

    def probabilities_RNE(self) -> Tensor:
        """Each expert's share of a token's scores: sums to 1 over a lane's experts, for every form of router."""
        return self.forms.probabilities(self.logits_RNE)

    def counts_RE(self) -> Tensor:
        """Slots that chose each expert, dropped ones included, int32; 0 where a lane has no such expert."""
        if self.kept_S is not None:
            chosen = torch.ones_like(self.experts_RNK, dtype=torch.int32)
            if self.slots.is_beyond_R1K is not None:
                chosen = chosen.masked_fill(self.slots.is_beyond_R1K, 0)
            zeros_RE = chosen.new_zeros(self.layout.num_lanes, self.layout.max_experts)
            return zeros_RE.scatter_add_(1, self.experts_RNK.flatten(1), chosen.flatten(1))
        counts_G = self.ends_G.diff(prepend=self.ends_G.new_zeros(1))
        counts_RE = counts_G[self.slots.groups_RE]
        absent = self.slots.is_absent_R1E
        return counts_RE if absent is None else counts_RE.masked_fill(absent.squeeze(1), 0)

    def dropped_fraction_R(self) -> Tensor:
        """Share of each lane's slots whose expert had no place, 0 to 1, float32."""
        if self.kept_S is None:
            return torch.zeros(self.layout.num_lanes, device=self.ends_G.device)
        kept_R = self.ends_G[self.slots.groups_RE[:, -1]].diff(prepend=self.ends_G.new_zeros(1))
        return 1 - kept_R / self.slots.slots_per_lane_R1.squeeze(1)

    def bias_range_R(self) -> Tensor:
        """Largest less smallest balancing bias of each lane's experts, float32; 0 where a lane has none."""
        if self.bias_RE is None:
            return torch.zeros(self.layout.num_lanes, device=self.ends_G.device)
        low_RE = high_RE = self.bias_RE
        if self.slots.is_absent_R1E is not None:
            is_absent_RE = self.slots.is_absent_R1E.squeeze(1)
            low_RE, high_RE = (low_RE.masked_fill(is_absent_RE, sign * math.inf) for sign in (1, -1))
        return high_RE.amax(1) - low_RE.amin(1)


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


class BalancingBias(nn.Module):
    """A bias per expert that steers the choice of experts, and no gate: balance without a loss (Wang et al. 2024).

    No gradient reaches it. Training moves it after each step, so it is kept with the parameters.
    """

    def __init__(
        self, layout: LaneLayout, speeds: Sequence[float], *, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__()
        zeros_RE = torch.zeros(layout.num_lanes, layout.max_experts, device=device, dtype=parameter_dtype(dtype))
        self.register_buffer("expert_bias", zeros_RE, persistent=False)
        self.expert_bias: Tensor
        self.is_used_R11 = torch.tensor([speed > 0 for speed in speeds], device=device).view(-1, 1, 1)
        self._speed_R1 = torch.tensor(speeds, device=device, dtype=zeros_RE.dtype).unsqueeze(1)

    @torch.no_grad()
    def update(self, routing: Routing, counts_RE: Tensor, is_applied_R: Tensor) -> None:
        """Move each expert's bias towards the mean load of a step, in the lanes that took the step (algorithm 1).

        ``counts_RE`` are the slots that each expert got: the routing's, or means over processes that share a batch.
        """
        slots = routing.slots
        mean_R1 = slots.slots_per_lane_R1 / slots.num_experts_R.unsqueeze(1)
        moves_RE = (mean_R1 - counts_RE).sign() * (self._speed_R1 * is_applied_R.unsqueeze(1))
        if slots.is_absent_R1E is not None:
            moves_RE = moves_RE.masked_fill(slots.is_absent_R1E.squeeze(1), 0.0)
        self.expert_bias += moves_RE


class TopKRouter(nn.Module):
    """The k experts with the largest logits, and gates in each lane's own form.

    In training, in the lanes that want it, the input is jittered, and noise is added to the logits: of a deviation that
    is learned (Shazeer et al. 2017, eqs. 3 to 5: randn * softplus(second linear map)), or given.
    """

    def __init__(
        self,
        layout: LaneLayout,
        width: int,
        lanes: Sequence[MoEConfig],
        context: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """A router whose experts and top-k are the layout's; the rest is as the lanes want it."""
        super().__init__()
        self.layout = layout
        self.forms = GateForms.of(lanes, device)
        self.logits = RouterLinear(layout, width, device=device, dtype=dtype)
        noise = [moe.noise for moe in lanes]
        self.noise = RouterLinear(layout, width, device=device, dtype=dtype) if any(noise) else None
        self._is_quiet_R11 = per_lane([not is_noisy for is_noisy in noise], False, device)
        self._noise_std_R11 = per_lane([moe.noise_std for moe in lanes], 0.0, device)
        # Without a decay the budget that is left never ends.
        decays = [math.inf if moe.noise_decay_fraction is None else moe.noise_decay_fraction for moe in lanes]
        self._noise_decay_R11 = torch.tensor(decays, device=device).view(-1, 1, 1)
        self._jitter_R11 = per_lane([moe.input_jitter for moe in lanes], 0.0, device)
        speeds = [moe.bias_update_speed for moe in lanes]
        self.balancing = BalancingBias(layout, speeds, device=device, dtype=dtype) if any(speeds) else None
        policies = [moe.drop_policy for moe in lanes]
        self._capacity_in_training, self._capacity_in_evaluation = (
            Capacity.of(layout, factors, policies, context, device)
            for factors in zip(*(moe.capacity_factors for moe in lanes), strict=True)
        )

    def forward(self, x_RNC: Tensor, context: int, randomness: LayerRandomness | None) -> Routing:
        """Route sequences of ``context`` tokens; without randomness as in evaluation."""
        layout = self.layout
        slots = slots_of(layout, x_RNC.shape[1], x_RNC.device)
        if randomness is not None and self._jitter_R11 is not None:
            x_RNC = x_RNC * (1 + self._jitter_R11 * randomness.uniform(Place.INPUT_JITTER, *x_RNC.shape[1:]))
        logits_RNE: Tensor = self.logits(x_RNC)
        if slots.is_absent_R1E is not None:
            logits_RNE = logits_RNE.masked_fill(slots.is_absent_R1E, float("-inf"))
        noisy_RNE = logits_RNE if randomness is None else self._with_noise(logits_RNE, x_RNC, randomness)
        top_RNK, experts_RNK = self._choose(noisy_RNE, slots)
        if slots.is_beyond_R1K is not None:
            top_RNK = top_RNK.masked_fill(slots.is_beyond_R1K, float("-inf"))
        gates_RNK = self.forms.gates(top_RNK, noisy_RNE)
        groups_S = at_slots(slots.groups_RE.unsqueeze(1).expand(logits_RNE.shape).gather(2, experts_RNK), slots)
        kept_S, most_kept = None, len(groups_S)
        capacity = self._capacity_in_evaluation if randomness is None else self._capacity_in_training
        if capacity is not None:
            scores_RNK = self.forms.scores(noisy_RNE.detach()).gather(2, experts_RNK)
            kept_RNK = capacity.kept(experts_RNK, scores_RNK, slots.is_beyond_R1K, context)
            gates_RNK = gates_RNK.masked_fill(~kept_RNK, 0.0)
            kept_S, most_kept = at_slots(kept_RNK, slots), capacity.most_kept(x_RNC.shape[1] // context, context)
            groups_S = groups_S.masked_fill(~kept_S, layout.num_groups)
        order_S, ends_G = sort_by_group(groups_S, layout.num_groups)
        return Routing(
            layout=layout,
            slots=slots,
            logits_RNE=logits_RNE,
            forms=self.forms,
            bias_RE=None if self.balancing is None else self.balancing.expert_bias,
            experts_RNK=experts_RNK,
            gates_RNK=gates_RNK,
            kept_S=kept_S,
            most_kept=most_kept,
            order_S=order_S,
            ends_G=ends_G,
        )

    def _choose(self, logits_RNE: Tensor, slots: Slots) -> tuple[Tensor, Tensor]:
        """Logits of the chosen experts and who they are, best first."""
        K = self.layout.max_top_k
        if self.balancing is None:
            top_RNK, experts_RNK = logits_RNE.topk(K)
            return top_RNK, experts_RNK
        biased_RNE = self.forms.scores(logits_RNE.detach()) + self.balancing.expert_bias.unsqueeze(1)
        if slots.is_absent_R1E is not None:
            biased_RNE = biased_RNE.masked_fill(slots.is_absent_R1E, float("-inf"))
        experts_RNK = biased_RNE.where(self.balancing.is_used_R11, logits_RNE.detach()).topk(K).indices
        return logits_RNE.gather(2, experts_RNK), experts_RNK

    def _with_noise(self, logits_RNE: Tensor, x_RNC: Tensor, randomness: LayerRandomness) -> Tensor:
        """Logits with the noise of a training step, which is the learned one, the given one, both or none."""
        N, E = logits_RNE.shape[1:]
        if self.noise is not None:
            noise_RNE = randomness.normal(Place.ROUTER_NOISE, N, E) * F.softplus(self.noise(x_RNC))
            if self._is_quiet_R11 is not None:
                noise_RNE = noise_RNE.masked_fill(self._is_quiet_R11, 0.0)
            logits_RNE = logits_RNE + noise_RNE
        if self._noise_std_R11 is not None:
            left_R11 = (1 - randomness.progress_R[:, None, None] / self._noise_decay_R11).clamp(min=0)
            logits_RNE = logits_RNE + randomness.normal(Place.FIXED_NOISE, N, E) * (self._noise_std_R11 * left_R11)
        return logits_RNE
