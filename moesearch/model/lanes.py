"""Which lanes a model has: the host-side facts that fix every shape of a step.

Shapes:  R lanes   E experts   K experts per token   G = sum of E over lanes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from moesearch.config.trial import TrialConfig


@dataclass(frozen=True)
class LaneLayout:
    """Experts and top-k of each lane. Expert groups are numbered lane by lane, so a lane's experts are neighbours."""

    num_experts: tuple[int, ...]
    top_k: tuple[int, ...]

    @classmethod
    def of(cls, configs: Sequence[TrialConfig]) -> LaneLayout:
        return cls(tuple(c.moe.num_experts for c in configs), tuple(c.moe.top_k for c in configs))

    @property
    def num_lanes(self) -> int:
        return len(self.num_experts)

    @property
    def is_dense(self) -> bool:
        """Whether no lane has anything to choose: one expert each, so groups are lanes."""
        return max(self.num_experts) == 1

    @property
    def num_groups(self) -> int:
        return sum(self.num_experts)

    @property
    def max_experts(self) -> int:
        return max(self.num_experts)

    @property
    def max_top_k(self) -> int:
        return max(self.top_k)

    @property
    def group_starts(self) -> tuple[int, ...]:
        """First group of each lane, shape (R,)."""
        return (0, *accumulate(self.num_experts[:-1]))
