from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from moesearch.config.trial import OptimConfig
from moesearch.training.optimizer import LaneOptimizer, learning_rate
from tests.training.tiny import BASE, trial


def rates(params: Mapping[str, object], num_steps: int = 20) -> list[float]:
    config = trial({"optim.lr": 1.0, **params})
    return [learning_rate(config, step, num_steps) for step in range(num_steps)]


def test_a_constant_schedule_without_warm_up_never_changes() -> None:
    assert rates({}) == [1.0] * 20


def test_warm_up_rises_by_the_tokens_of_each_step() -> None:
    # A step has 32 tokens, so 100 tokens of warm-up end within the fourth.
    assert rates({"optim.warmup_tokens": 100})[:5] == [0.32, 0.64, 0.96, 1.0, 1.0]


def test_trials_of_other_batch_sizes_share_one_warm_up_in_tokens() -> None:
    small = rates({"optim.warmup_tokens": 320, "data.batch_size": 4})
    large = rates({"optim.warmup_tokens": 320, "data.batch_size": 8})
    assert small[1::2][:5] == large[:5]


def test_cosine_falls_from_the_peak_to_the_final_fraction_at_the_last_step() -> None:
    values = rates({"optim.schedule": "cosine", "optim.final_lr_fraction": 0.2})
    assert values[0] == 1.0
    assert values[-1] == pytest.approx(0.2)
    assert values == sorted(values, reverse=True)


def test_cosine_is_half_way_in_the_middle_of_what_follows_the_warm_up() -> None:
    # Warm-up takes steps 0 to 3; the middle of 4 to 20 is 12.
    values = rates({"optim.schedule": "cosine", "optim.warmup_tokens": 4 * 32, "optim.final_lr_fraction": 0.0}, 21)
    assert values[4] == 1.0
    assert values[12] == pytest.approx(0.5)


def test_wsd_is_constant_and_then_falls_linearly_over_the_decay_fraction() -> None:
    values = rates({"optim.schedule": "wsd", "optim.decay_fraction": 0.25, "optim.final_lr_fraction": 0.0})
    assert values[:15] == [1.0] * 15
    assert values[15:] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_a_run_of_one_step_has_a_learning_rate(schedule: str) -> None:
    config = trial({"optim.schedule": schedule, "budget.steps": 1, "budget.milestones": 1})
    assert learning_rate(config, 0, 1) == pytest.approx(config.optim.lr * config.optim.final_lr_fraction)


def parameters(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"weight": torch.randn(3, 5, generator=generator), "bias": torch.randn(5, generator=generator)}


def apply(optimizer: LaneOptimizer, gradients: Mapping[str, Tensor], *, scale: float = 1.0, skip: float = 0.0) -> None:
    optimizer.step(
        {name: gradient.clone() for name, gradient in gradients.items()},
        lr=torch.tensor(BASE.optim.lr),
        grad_scale=torch.tensor(scale),
        skip=torch.tensor(skip),
    )


def test_steps_are_those_of_adamw_with_the_lanes_own_constants() -> None:
    optim = OptimConfig(weight_decay=0.3, beta1=0.8, beta2=0.95, eps=1e-4)
    ours, theirs = parameters(), [torch.nn.Parameter(tensor) for tensor in parameters().values()]
    optimizer = LaneOptimizer(optim, ours)
    reference = torch.optim.AdamW(theirs, lr=1e-3, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.3, foreach=False)
    for seed in range(5):
        gradients = parameters(seed + 1)
        apply(optimizer, gradients)
        for parameter, gradient in zip(theirs, gradients.values(), strict=True):
            parameter.grad = gradient
        reference.step()
    torch.testing.assert_close(list(ours.values()), [parameter.detach() for parameter in theirs])


def test_a_gradient_scale_divides_the_gradient() -> None:
    scaled, divided = LaneOptimizer(BASE.optim, parameters()), LaneOptimizer(BASE.optim, parameters())
    gradients = parameters(1)
    apply(scaled, gradients, scale=4.0)
    apply(divided, {name: gradient / 4 for name, gradient in gradients.items()})
    assert all(torch.equal(scaled.exp_avg[name], divided.exp_avg[name]) for name in gradients)


def test_a_skipped_step_changes_nothing_even_on_a_gradient_of_nan() -> None:
    skipped, untouched = LaneOptimizer(BASE.optim, parameters()), LaneOptimizer(BASE.optim, parameters())
    gradients = parameters(1)
    apply(skipped, {name: torch.full_like(gradient, float("nan")) for name, gradient in gradients.items()}, skip=1.0)
    for optimizer in (skipped, untouched):
        apply(optimizer, gradients)
    assert all(torch.equal(skipped.parameters[name], untouched.parameters[name]) for name in gradients)


def test_a_loaded_optimizer_continues_bit_for_bit() -> None:
    through, before = LaneOptimizer(BASE.optim, parameters()), LaneOptimizer(BASE.optim, parameters())
    for seed in (1, 2):
        apply(through, parameters(seed))
        apply(before, parameters(seed))
    after = LaneOptimizer(BASE.optim, {name: tensor.clone() for name, tensor in before.parameters.items()})
    after.load(2, before.exp_avg, before.exp_avg_sq)
    for optimizer in (through, after):
        apply(optimizer, parameters(3))
    assert all(torch.equal(after.parameters[name], tensor) for name, tensor in through.parameters.items())


def test_a_reset_optimizer_starts_over() -> None:
    used, fresh = LaneOptimizer(BASE.optim, parameters()), LaneOptimizer(BASE.optim, parameters())
    apply(used, parameters(1))
    used.reset()
    for name, tensor in fresh.parameters.items():
        used.parameters[name].copy_(tensor)
    for optimizer in (used, fresh):
        apply(optimizer, parameters(2))
    assert all(torch.equal(used.parameters[name], tensor) for name, tensor in fresh.parameters.items())
