"""Losses per lane. The language-model loss is the objective; the router losses only help training.

Shapes:  R lanes   B batch   T context   V vocabulary   N = B*T tokens   E experts   K experts per token
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from moesearch.config.trial import TrialConfig
from moesearch.model.routers import Routing
from moesearch.model.transformer import ModelOutput


def token_losses(logits_RBTV: Tensor, targets_RBT: Tensor) -> Tensor:
    """Nats of each token, shape (R, B, T)."""
    return F.cross_entropy(logits_RBTV.flatten(0, 2), targets_RBT.flatten(), reduction="none").view_as(targets_RBT)


def language_model_losses(logits_RBTV: Tensor, targets_RBT: Tensor) -> Tensor:
    """Mean nats per token of each lane, shape (R,)."""
    return token_losses(logits_RBTV, targets_RBT).flatten(1).mean(1)


def load_balancing_loss(routing: Routing) -> Tensor:
    """Switch Transformer balance loss per lane, shape (R,) (Fedus et al. 2021, eq. 4).

    Load is a fraction of the N*K routed slots, so perfect balance gives 1.0 for every E and K,
    and one weight means the same thing across a search over top_k. Probabilities are those before any noise, and scores
    divided by their sum where a router scores by sigmoids (DeepSeek-V3 2024, eq. 19). Dropped slots count as load.
    """
    probability_RE = routing.probabilities_RNE().mean(1)
    load_RE = routing.counts_RE() / routing.slots.slots_per_lane_R1
    return (load_RE * probability_RE).sum(1) * routing.slots.num_experts_R


def router_z_loss(routing: Routing) -> Tensor:
    """Mean squared log-sum-exp of the router logits per lane, shape (R,) (Zoph et al. 2022, eq. 5)."""
    return routing.logits_RNE.logsumexp(-1).square().mean(1)


@dataclass(frozen=True)
class LossWeights:
    """Weights of the router losses per lane, shape (R,); None where no lane uses one, so that it is not computed.

    A dense lane has no router, so its weights are 0.
    """

    load_balancing_R: Tensor | None
    router_z_R: Tensor | None

    @classmethod
    def of(cls, configs: Sequence[TrialConfig], device: str | torch.device = "cpu") -> LossWeights:
        return cls(
            _weights([0.0 if c.moe.is_dense else c.moe.load_balancing_loss_weight for c in configs], device),
            _weights([0.0 if c.moe.is_dense else c.moe.router_z_loss_weight for c in configs], device),
        )


@dataclass(frozen=True)
class TrainingLosses:
    """What a training step minimises, and the part of it that is reported; both of shape (R,)."""

    total_R: Tensor
    language_model_R: Tensor


def training_losses(output: ModelOutput, targets_RBT: Tensor, weights: LossWeights) -> TrainingLosses:
    """Language-model loss plus the weighted router losses, each a mean over layers."""
    language_model_R = total_R = language_model_losses(output.logits_RBTV, targets_RBT)
    if weights.load_balancing_R is not None:
        balance_R = torch.stack([load_balancing_loss(routing) for routing in output.routings]).mean(0)
        total_R = total_R + weights.load_balancing_R * balance_R
    if weights.router_z_R is not None:
        z_R = torch.stack([router_z_loss(routing) for routing in output.routings]).mean(0)
        total_R = total_R + weights.router_z_R * z_R
    return TrainingLosses(total_R, language_model_R)


def _weights(values: Sequence[float], device: str | torch.device) -> Tensor | None:
    return torch.tensor(values, device=device) if any(values) else None
