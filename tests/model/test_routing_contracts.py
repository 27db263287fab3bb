"""What every router, balance, capacity and backend must keep, in lanes and alone: over all pairs of settings."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, product
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from moesearch.config.resolve import resolve
from moesearch.config.trial import TrialConfig
from moesearch.model.losses import load_balancing_loss
from moesearch.model.transformer import MoETransformer
from tests.model.tiny import (
    VOCAB_SIZE,
    losses_and_gradients,
    model_of,
    randomness_for,
    routing_of,
    tokens_for,
    trial,
)

ROUTERS: Mapping[str, Mapping[str, object]] = {
    "softmax-after": {},
    "softmax-before": {"moe.router": "softmax_before", "moe.route_norm": False},
    "sigmoid": {"moe.router": "sigmoid", "moe.route_scale": 2.5},
    "sigmoid-as-scored": {"moe.router": "sigmoid", "moe.route_norm": False, "moe.top_k": 1},
    "learned-noise": {"moe.noise": True},
    "fixed-noise": {"moe.noise_std": 1.0, "moe.noise_decay_fraction": 0.5},
    "jitter": {"moe.router": "sigmoid", "moe.input_jitter": 0.1, "moe.router_init_gain": 3.0},
}
BALANCES: Mapping[str, Mapping[str, object]] = {
    "no-balance": {},
    "loss": {"moe.load_balancing_loss_weight": 0.5},
    "z-loss": {"moe.router_z_loss_weight": 0.1},
    "bias": {"moe.bias_update_speed": 0.01},
}
CAPACITIES: Mapping[str, Mapping[str, object]] = {
    "dropless": {},
    "position": {"moe.capacity_factor": 0.5},
    "score": {"moe.capacity_factor": 0.5, "moe.drop_policy": "score"},
    "evaluation-only": {"moe.eval_capacity_factor": 0.3, "moe.drop_policy": "score"},
    "dropless-evaluation": {"moe.capacity_factor": 1.0, "moe.eval_capacity_factor": None},
}
DOUBLE_BACKENDS = ("split", "padded", "blocks")


_NAMES = (tuple(ROUTERS), tuple(CAPACITIES), tuple(BALANCES), DOUBLE_BACKENDS)


def _pairs(case: tuple[str, ...]) -> set[tuple[str, str]]:
    return set(combinations(case, 2))


def _covering() -> list[tuple[str, ...]]:
    """Few cases that hold every pair of settings: the one with the most new pairs, again and again."""
    missing = set().union(*map(_pairs, product(*_NAMES)))
    chosen: list[tuple[str, ...]] = []
    while missing:
        chosen.append(max(product(*_NAMES), key=lambda case: len(missing & _pairs(case))))
        missing -= _pairs(chosen[-1])
    return chosen


every_case = pytest.mark.parametrize(
    ("router", "capacity", "balance", "backend"), [pytest.param(*case, id="+".join(case)) for case in _covering()]
)


def config_of(router: str, capacity: str, balance: str, *, seed: int = 1) -> TrialConfig:
    params = {"moe.num_experts": 5, "moe.top_k": 2, "model.dropout": 0.1}
    return trial({**params, **CAPACITIES[capacity], **BALANCES[balance], **ROUTERS[router]}, seed=seed)


def exact_model(*configs: TrialConfig, backend: str = "split") -> MoETransformer:
    """A float64 model whose balancing biases have been moved about."""
    model = model_of(*configs, backend=backend, dtype=torch.float64)
    for lane, config in enumerate(configs):
        generator = torch.Generator().manual_seed(config.seed)
        for name, tensor in model.lane_tensors(lane).items():
            if name.endswith("expert_bias"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.5)
    return model


@every_case
def test_a_lane_beside_any_other_is_the_lane_alone(router: str, capacity: str, balance: str, backend: str) -> None:
    config = config_of(router, capacity, balance)
    configs = [trial(seed=2), config, trial({"moe.num_experts": 7, "moe.top_k": 3, **CAPACITIES["score"]}, seed=3)]
    together, alone = exact_model(*configs, backend=backend), exact_model(config, backend=backend)
    window_RBT = tokens_for(configs, context=7)
    torch.testing.assert_close(together(window_RBT).logits_RBTV[1], alone(window_RBT[1:2]).logits_RBTV[0])
    losses, gradients = losses_and_gradients(together, randomness_for(configs))
    own_losses, (own_gradients,) = losses_and_gradients(alone, randomness_for([config]))
    torch.testing.assert_close({name: loss_R[1:2] for name, loss_R in losses.items()}, own_losses)
    torch.testing.assert_close(gradients[1], own_gradients)


@every_case
def test_losses_and_gradients_are_those_of_the_loop_over_experts(
    router: str, capacity: str, balance: str, backend: str
) -> None:
    configs = [config_of(router, capacity, balance), trial({"moe.num_experts": 3, "moe.top_k": 3}, seed=2)]
    ours, oracles = (
        losses_and_gradients(exact_model(*configs, backend=name), randomness_for(configs)) for name in (backend, "loop")
    )
    torch.testing.assert_close(ours, oracles, rtol=1e-9, atol=1e-11)


@every_case
def test_no_token_sees_a_later_one_or_another_sequence(router: str, capacity: str, balance: str, backend: str) -> None:
    config = config_of(router, capacity, balance)
    model = exact_model(config, backend=backend)
    window_RBT = tokens_for([config], context=7)
    changed_RBT = (window_RBT + 1) % VOCAB_SIZE
    for randomness in (None, randomness_for([config])):
        logits_RBTV = model(window_RBT, randomness).logits_RBTV
        for position in (1, 4, 7):
            later_RBT = torch.cat([window_RBT[..., :position], changed_RBT[..., position:]], 2)
            later_RBTV = model(later_RBT, randomness).logits_RBTV
            torch.testing.assert_close(later_RBTV[:, :, :position], logits_RBTV[:, :, :position])
            assert not torch.allclose(later_RBTV[:, :, position], logits_RBTV[:, :, position])
        others_RBT = torch.cat([changed_RBT[:, :1], window_RBT[:, 1:2], changed_RBT[:, 2:]], 1)
        torch.testing.assert_close(model(others_RBT, randomness).logits_RBTV[:, 1], logits_RBTV[:, 1])


@every_case
def test_text_token_by_token_is_routed_as_in_one_pass(router: str, capacity: str, balance: str, backend: str) -> None:
    config = config_of(router, capacity, balance)
    model = exact_model(config, backend=backend)
    window_RBT = tokens_for([config], context=7)
    whole_RBTV = model(window_RBT).logits_RBTV
    for length in range(1, 9):
        torch.testing.assert_close(model(window_RBT[..., :length]).logits_RBTV, whole_RBTV[:, :, :length])


class _NoHostSync(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what a captured CUDA graph cannot hold: values read on the host, shapes that depend on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        forbidden = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "is_nonzero", "equal", "unique")
        assert func.overloadpacket.__name__ not in forbidden, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("capacity", CAPACITIES)
def test_no_training_step_over_blocks_waits_for_the_host(router: str, capacity: str) -> None:
    configs = [config_of(router, capacity, "bias"), trial({"moe.num_experts": 3}, seed=2)]
    model, randomness = model_of(*configs, backend="blocks"), randomness_for(configs)
    window_RBT, is_applied_R = tokens_for(configs, context=7), torch.ones(2, dtype=torch.bool)
    model(window_RBT, randomness)  # What depends on shapes alone is made once.
    with _NoHostSync():  # type: ignore[no-untyped-call]
        output = model(window_RBT, randomness)
        loss = load_balancing_loss(output.routings[0]).sum() + output.logits_RBTV.square().sum()
        torch.autograd.backward(loss)
        model.balance_experts(output.routings, is_applied_R)


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize(("num_experts", "top_k"), [(2, 1), (4, 3), (8, 8)])
def test_the_load_balancing_loss_is_one_at_balance(router: str, num_experts: int, top_k: int) -> None:
    moe = resolve(TrialConfig(), {**ROUTERS[router], "moe.num_experts": num_experts, "moe.top_k": top_k}).moe
    # Token n prefers expert n, then n + 1, …: each expert is chosen equally often, and scores as much on average.
    preferences = -((torch.arange(num_experts) - torch.arange(num_experts)[:, None]) % num_experts).float()
    assert float(load_balancing_loss(routing_of(preferences[None], moe))) == pytest.approx(1, rel=1e-5)
