"""What the routers do in an evaluation: sums in one tensor on the device, read by the host once.

Shapes:  R lanes   L MoE layers   N tokens of a batch in each lane   E experts (the most of any lane)   A summed numbers
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

from moesearch.model.routers import Routing
from moesearch.training.points import DEAD_LOAD, LayerHealth, RouterHealth


class _Sum(IntEnum):
    """Numbers of a lane's layer that are summed over its tokens; the slots of each expert follow them."""

    ENTROPY = 0
    TOP1_PROBABILITY = 1
    SQUARED_LOGITS = 2
    DROPPED_FRACTION = 3
    BIAS_RANGE = 4


class RouterStats:
    """Running sums over the batches of an evaluation of R lanes."""

    def __init__(self) -> None:
        self._sums_LRA: Tensor | None = None
        self._num_tokens = 0

    def add(self, routings: Sequence[Routing]) -> None:
        """Take in a batch: the routings of all MoE layers, on the same tokens. Nothing waits for the device."""
        if not routings:
            return
        logits_LRNE = torch.stack([routing.logits_RNE for routing in routings])
        probabilities_LRNE = torch.stack([routing.probabilities_RNE() for routing in routings])
        is_absent_R1E = routings[0].slots.is_absent_R1E
        # An expert that a lane lacks has the logit -inf.
        finite_LRNE = logits_LRNE if is_absent_R1E is None else logits_LRNE.masked_fill(is_absent_R1E, 0.0)
        num_tokens = logits_LRNE.shape[2]
        sums = [
            torch.special.entr(probabilities_LRNE).sum((-2, -1)),
            probabilities_LRNE.amax(-1).sum(-1),
            finite_LRNE.square().sum((-2, -1)),
            num_tokens * torch.stack([routing.dropped_fraction_R() for routing in routings]),
            num_tokens * torch.stack([routing.bias_range_R() for routing in routings]),
        ]
        counts_LRE = torch.stack([routing.counts_RE() for routing in routings])
        batch_LRA = torch.cat([torch.stack(sums, -1), counts_LRE], -1)
        self._num_tokens += num_tokens
        # In float64, since float32 cannot count past 2**24 slots one batch at a time.
        self._sums_LRA = batch_LRA.double() if self._sums_LRA is None else self._sums_LRA.add_(batch_LRA)

    def read(self, num_experts: Sequence[int]) -> list[RouterHealth | None]:
        """The health of each lane's routers, given its number of experts; None for one expert, which takes no router.

        The one place that waits for the device.
        """
        if self._sums_LRA is None:
            return [None] * len(num_experts)
        lanes = self._sums_LRA.transpose(0, 1).tolist()
        return [
            None if count == 1 else RouterHealth.of([_layer_health(sums, count, self._num_tokens) for sums in layers])
            for layers, count in zip(lanes, num_experts, strict=True)
        ]


def _layer_health(sums: Sequence[float], num_experts: int, num_tokens: int) -> LayerHealth:
    """One layer of one lane, from its sums over so many tokens."""
    counts = sums[len(_Sum) : len(_Sum) + num_experts]
    total = sum(counts)
    load = [count / total for count in counts]
    return LayerHealth(
        # Six digits tell one slot in a million, and a record stays short.
        load=tuple(round(share, 6) for share in load),
        load_entropy=_relative_entropy(load),
        max_vio=max(load) * num_experts - 1,
        dead_experts=sum(share * num_experts < DEAD_LOAD for share in load),
        dropped_fraction=sums[_Sum.DROPPED_FRACTION] / num_tokens,
        router_entropy=sums[_Sum.ENTROPY] / num_tokens,
        top1_probability=sums[_Sum.TOP1_PROBABILITY] / num_tokens,
        router_logit_rms=math.sqrt(sums[_Sum.SQUARED_LOGITS] / (num_tokens * num_experts)),
        bias_range=sums[_Sum.BIAS_RANGE] / num_tokens,
    )


def _relative_entropy(load: Sequence[float]) -> float:
    """Entropy of a distribution over the largest that it could have."""
    return sum(-share * math.log(share) for share in load if share > 0) / math.log(len(load))
