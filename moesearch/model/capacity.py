"""Capacity: how many tokens of a sequence an expert takes, and which (docs/decisions/0011-causal-capacity.md).

Each expert has a fixed number of places in each sequence, and every decision looks at the token itself and at earlier
ones of its own sequence. So no output depends on a later token, on another sequence or on how much of a sequence is
there yet: text that is generated token by token is routed as in one pass.

Shapes:  R lanes   B sequences   T tokens of a sequence   N = B*T   E experts   K experts per token
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from moesearch.config.moe import DropPolicy
from moesearch.model.lanes import LaneLayout


@dataclass(frozen=True)
class Capacity:
    """The places of the experts in each lane; a dropless lane has one for every token."""

    layout: LaneLayout
    places: tuple[int, ...]
    """Of an expert in a sequence, per lane."""
    places_R: Tensor
    quota_RT: Tensor | None
    """The token at t may have a place if fewer than this many before it score more; T where scores do not matter. None
    where they do in no lane."""

    @classmethod
    def of(
        cls,
        layout: LaneLayout,
        factors: Sequence[float | None],
        policies: Sequence[DropPolicy],
        context: int,
        device: torch.device,
    ) -> Self | None:
        """The places that each lane's factor gives; None if all lanes are dropless."""
        if not any(factors):
            return None
        lanes = zip(factors, layout.top_k, layout.num_experts, strict=True)
        rates = [math.inf if factor is None else factor * k / experts for factor, k, experts in lanes]
        places = tuple(_places(rate, context) for rate in rates)
        is_by_score = [
            factor is not None and policy == "score" for factor, policy in zip(factors, policies, strict=True)
        ]
        quotas = [
            [_places(rate, seen) for seen in range(1, context + 1)] if by_score else [context] * context
            for rate, by_score in zip(rates, is_by_score, strict=True)
        ]
        quota_RT = torch.tensor(quotas, device=device) if any(is_by_score) else None
        return cls(layout, places, torch.tensor(places, device=device), quota_RT)

    def kept(self, experts_RNK: Tensor, scores_RNK: Tensor, is_beyond_R1K: Tensor | None, context: int) -> Tensor:
        """Choices that get a place, (R, N, K), in sequences of ``context`` tokens; none beyond a lane's K."""
        R, N, K = experts_RNK.shape
        B, E = N // context, self.layout.max_experts
        asks_RNK = torch.ones_like(experts_RNK, dtype=torch.bool)
        if is_beyond_R1K is not None:
            asks_RNK = asks_RNK.masked_fill(is_beyond_R1K, False)
            scores_RNK = scores_RNK.masked_fill(is_beyond_R1K, -math.inf)
        experts_RBTK, asks_RBTK = (choices.view(R, B, context, K) for choices in (experts_RNK, asks_RNK))
        if self.quota_RT is not None:
            rank_RBTK = _rank_so_far(experts_RBTK, scores_RNK.view(R, B, context, K), E)
            asks_RBTK = asks_RBTK & (rank_RBTK < self.quota_RT[:, None, :context, None])
        asks_RBTE = torch.zeros(R, B, context, E, dtype=torch.int32, device=experts_RNK.device)
        asked_RBTE = asks_RBTE.scatter_(3, experts_RBTK, asks_RBTK.int()).cumsum(2, dtype=torch.int32)
        has_place_RBTK = asked_RBTE.gather(3, experts_RBTK) <= self.places_R[:, None, None, None]
        return (asks_RBTK & has_place_RBTK).view(R, N, K)

    def most_kept(self, num_sequences: int, context: int) -> int:
        """The most choices of all lanes that can get a place."""
        lanes = zip(self.places, self.layout.num_experts, self.layout.top_k, strict=True)
        return sum(num_sequences * min(experts * min(places, context), context * k) for places, experts, k in lanes)


def _places(factor_per_token: float, num_tokens: int) -> int:
    """Places of an expert among so many tokens: at least one, at most one for each."""
    # Rounding first keeps 3 * 0.1 * 10 from becoming 4.
    return num_tokens if factor_per_token >= 1 else max(1, math.ceil(round(factor_per_token * num_tokens, 9)))


def _rank_so_far(experts_RBTK: Tensor, scores_RBTK: Tensor, num_experts: int) -> Tensor:
    """Earlier tokens of the sequence that ask for the same expert with a better score; -inf asks for nothing.

    As many comparisons as K heads of attention have scores.
    """
    R, B, T, K = experts_RBTK.shape
    scores_RBTE = scores_RBTK.new_full((R, B, T, num_experts), -math.inf).scatter(3, experts_RBTK, scores_RBTK)
    column_RBMT = experts_RBTK.flatten(2).unsqueeze(3).expand(R, B, T * K, T)
    others_RBTKT = scores_RBTE.transpose(2, 3).gather(2, column_RBMT).view(R, B, T, K, T)
    is_earlier_T1T = torch.ones(T, T, dtype=torch.bool, device=experts_RBTK.device).tril(-1).unsqueeze(1)
    return ((others_RBTKT > scores_RBTK.unsqueeze(4)) & is_earlier_T1T).sum(4)
