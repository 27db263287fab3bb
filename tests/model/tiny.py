"""Tiny models: a forward pass takes a millisecond or two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from moesearch.config.resolve import resolve
from moesearch.config.trial import DataConfig, ModelConfig, MoEConfig, TrialConfig
from moesearch.model.lanes import LaneLayout
from moesearch.model.losses import LossWeights, training_losses
from moesearch.model.moe import MoELayer
from moesearch.model.randomness import StepRandomness
from moesearch.model.routers import Routing, TopKRouter
from moesearch.model.transformer import MoETransformer

VOCAB_SIZE = 11

BASE = TrialConfig(
    model=ModelConfig(width=16, num_layers=2, num_heads=2, context=8, dropout=0.0),
    moe=MoEConfig(num_experts=4, top_k=2, noise=False, expert_hidden_dim=24),
    data=DataConfig(batch_size=3),
)

MIX: tuple[Mapping[str, object], ...] = (
    {"moe.num_experts": 4, "moe.top_k": 2, "moe.noise": True, "model.dropout": 0.1},
    {"moe.num_experts": 7, "moe.top_k": 1, "moe.init": "xavier_normal", "moe.load_balancing_loss_weight": 0.5},
    {"moe.num_experts": 3, "moe.top_k": 3, "moe.init": "normal", "model.dropout": 0.3},
    {"moe.num_experts": 1, "moe.top_k": 1, "moe.noise": True, "moe.router_z_loss_weight": 0.1},
)
"""Lanes that differ in all that lanes may differ in."""


def trial(params: Mapping[str, object] | None = None, *, seed: int = 0) -> TrialConfig:
    """BASE with some fields (dotted paths) changed."""
    return resolve(BASE, params or {}, seed=seed)


def mixed_trials() -> list[TrialConfig]:
    return [trial(params, seed=seed) for seed, params in enumerate(MIX)]


def model_of(*configs: TrialConfig, backend: str = "grouped", dtype: torch.dtype = torch.float32) -> MoETransformer:
    return MoETransformer(configs, VOCAB_SIZE, dtype=dtype, expert_backend=backend)  # type: ignore[arg-type]


def first_moe(model: MoETransformer) -> MoELayer:
    layer = model.get_submodule("layers.0.moe")
    assert isinstance(layer, MoELayer)
    return layer


def routing_of(
    logits_RNE: Tensor, *lanes: MoEConfig, context: int | None = None, bias_RE: Tensor | None = None
) -> Routing:
    """The routing in evaluation of given logits, in one sequence per lane or in sequences of ``context`` tokens."""
    R, N, E = logits_RNE.shape
    layout = LaneLayout(tuple(moe.num_experts for moe in lanes), tuple(moe.top_k for moe in lanes))
    context = context or N
    router = TopKRouter(layout, E, lanes, context, device=torch.device("cpu"), dtype=logits_RNE.dtype)
    router.logits.weight.data.copy_(torch.eye(E).expand(R, E, E))
    if bias_RE is not None:
        assert router.balancing is not None
        router.balancing.expert_bias.copy_(bias_RE)
    with torch.no_grad():
        routing: Routing = router(logits_RNE, context, None)
    return routing


def tokens_for(configs: Sequence[TrialConfig], context: int = 8) -> Tensor:
    """Inputs and their targets, (R, 3, T + 1): a lane's depend on its seed alone."""
    rows = [
        torch.randint(VOCAB_SIZE, (3, context + 1), generator=torch.Generator().manual_seed(config.seed))
        for config in configs
    ]
    return torch.stack(rows)


def randomness_for(configs: Sequence[TrialConfig], step: int = 5) -> StepRandomness:
    return StepRandomness(torch.tensor([config.seed for config in configs]), torch.full((len(configs),), step))


def losses_and_gradients(
    model: MoETransformer, randomness: StepRandomness | None = None
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Losses of a step, each of shape (R,), and each lane's gradients."""
    window_RBT1 = tokens_for(model.configs)
    output = model(window_RBT1[..., :-1], randomness)
    losses = training_losses(output, window_RBT1[..., 1:], LossWeights.of(model.configs))
    torch.autograd.backward(losses.total_R.sum())
    values = {"total": losses.total_R.detach(), "language_model": losses.language_model_R.detach()}
    return values, [model.lane_gradients(lane) for lane in range(len(model.configs))]
