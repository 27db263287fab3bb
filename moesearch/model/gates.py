"""From router logits to scores and gates, in the form that each lane wants (`MoEConfig.router`).

Shapes:  R lanes   N tokens of a lane   E experts (the most of any lane)   K experts per token (the most)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from moesearch.config.trial import MoEConfig
from moesearch.model.layers import softmax


@dataclass(frozen=True)
class GateForms:
    """The forms of R lanes; None where no lane differs from a softmax over the chosen, whose gates sum to 1."""

    is_sigmoid_R11: Tensor | None
    is_as_scored_R11: Tensor | None
    """Lanes whose gates are the scores themselves, not divided by their sum over the chosen."""
    scale_R11: Tensor | None

    @classmethod
    def of(cls, lanes: Sequence[MoEConfig], device: torch.device) -> Self:
        return cls(
            per_lane([moe.router == "sigmoid" for moe in lanes], False, device),
            per_lane([moe.router != "softmax_after" and not moe.route_norm for moe in lanes], False, device),
            per_lane([moe.route_scale for moe in lanes], 1.0, device),
        )

    def scores(self, logits_RNE: Tensor) -> Tensor:
        """A softmax over all experts, or the sigmoid of each: 0 for an expert that a lane lacks."""
        scores_RNE = softmax(logits_RNE)
        if self.is_sigmoid_R11 is None:
            return scores_RNE
        return logits_RNE.sigmoid().where(self.is_sigmoid_R11, scores_RNE)

    def probabilities(self, logits_RNE: Tensor) -> Tensor:
        """Scores divided by their sum over all experts."""
        return softmax(self._log_weights(logits_RNE))

    def gates(self, chosen_RNK: Tensor, logits_RNE: Tensor) -> Tensor:
        """Gates of the chosen, from their logits (-inf beyond the lane's K: a gate of 0) and those of all experts."""
        log_weights_RNK = self._log_weights(chosen_RNK)
        gates_RNK = softmax(log_weights_RNK)
        if self.is_as_scored_R11 is not None:
            log_total_RN1 = logits_RNE.logsumexp(-1, keepdim=True)
            if self.is_sigmoid_R11 is not None:
                log_total_RN1 = log_total_RN1.masked_fill(self.is_sigmoid_R11, 0.0)
            gates_RNK = (log_weights_RNK - log_total_RN1).exp().where(self.is_as_scored_R11, gates_RNK)
        return gates_RNK if self.scale_R11 is None else gates_RNK * self.scale_R11

    def _log_weights(self, logits: Tensor) -> Tensor:
        """Logarithms of numbers in proportion to the scores."""
        return logits if self.is_sigmoid_R11 is None else F.logsigmoid(logits).where(self.is_sigmoid_R11, logits)


def per_lane(values: Sequence[float], neutral: float, device: torch.device) -> Tensor | None:
    """A number of each lane as (R, 1, 1); None where all are neutral, so that nothing is computed for it."""
    return None if all(value == neutral for value in values) else torch.tensor(values, device=device).view(-1, 1, 1)
