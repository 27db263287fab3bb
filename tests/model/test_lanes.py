"""A trial's numbers do not depend on the trials beside it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesearch.config.trial import TrialConfig
from tests.model.tiny import losses_and_gradients, mixed_trials, model_of, randomness_for, trial

BACKENDS = ("loop", "split", "padded", "blocks")


@st.composite
def trials(draw: st.DrawFn) -> TrialConfig:
    num_experts = draw(st.integers(1, 6))
    return trial(
        {
            "moe.num_experts": num_experts,
            "moe.top_k": draw(st.integers(1, num_experts)),
            "moe.init": draw(st.sampled_from(["kaiming_normal", "xavier_uniform", "normal"])),
            "moe.noise": draw(st.booleans()),
            "moe.load_balancing_loss_weight": draw(st.sampled_from([0.0, 0.5])),
            "moe.router_z_loss_weight": draw(st.sampled_from([0.0, 0.01])),
            "model.dropout": draw(st.sampled_from([0.0, 0.2])),
        },
        seed=draw(st.integers(0, 2**63 - 1)),
    )


def assert_lanes_agree_with_solo(configs: Sequence[TrialConfig], *, backend: str, is_training: bool) -> None:
    randomness = randomness_for(configs) if is_training else None
    losses, gradients = losses_and_gradients(model_of(*configs, backend=backend, dtype=torch.float64), randomness)
    for lane, config in enumerate(configs):
        own = randomness_for([config]) if is_training else None
        solo_losses, (solo,) = losses_and_gradients(model_of(config, backend=backend, dtype=torch.float64), own)
        for name, loss_R in losses.items():
            torch.testing.assert_close(loss_R[lane], solo_losses[name][0])
        torch.testing.assert_close(gradients[lane], solo)


@settings(max_examples=12, deadline=None)
@given(configs=st.lists(trials(), min_size=2, max_size=4), backend=st.sampled_from(BACKENDS), is_training=st.booleans())
def test_a_lane_gives_the_losses_and_gradients_of_its_trial_alone(
    configs: list[TrialConfig], backend: str, is_training: bool
) -> None:
    # A training step without noise and dropout computes what an evaluation does, so noise routers get no gradient
    # there: both passes are drawn, and each is compared with itself.
    if not is_training:
        configs = [c.model_copy(update={"moe": c.moe.model_copy(update={"noise": False})}) for c in configs]
    assert_lanes_agree_with_solo(configs, backend=backend, is_training=is_training)


@pytest.mark.parametrize("backend", ["grouped", *BACKENDS])
def test_a_lane_full_of_nan_touches_no_other(backend: str) -> None:
    configs = mixed_trials()
    healthy, diverged = model_of(*configs, backend=backend), model_of(*configs, backend=backend)
    for tensor in diverged.lane_parameters(1).values():
        tensor.fill_(float("nan"))
    randomness = randomness_for(configs)
    losses, gradients = losses_and_gradients(healthy, randomness)
    beside_losses, beside_gradients = losses_and_gradients(diverged, randomness)
    assert beside_losses["total"][1].isnan()
    for lane in (0, 2, 3):
        torch.testing.assert_close(beside_losses["total"][lane], losses["total"][lane])
        torch.testing.assert_close(beside_gradients[lane], gradients[lane])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_lane_may_overflow_beside_others(backend: str) -> None:
    configs = mixed_trials()
    model = model_of(*configs, backend=backend)
    model.lane_parameters(0)["layers.0.moe.router.logits.weight"].fill_(3e38)
    _, gradients = losses_and_gradients(model, randomness_for(configs))
    assert all(gradient.isfinite().all() for lane in (1, 2, 3) for gradient in gradients[lane].values())


def test_the_order_of_lanes_does_not_matter() -> None:
    configs = mixed_trials()
    _, gradients = losses_and_gradients(model_of(*configs), randomness_for(configs))
    backwards = configs[::-1]
    _, reversed_gradients = losses_and_gradients(model_of(*backwards), randomness_for(backwards))
    for lane, reversed_lane in enumerate(range(len(configs) - 1, -1, -1)):
        torch.testing.assert_close(gradients[lane], reversed_gradients[reversed_lane])
