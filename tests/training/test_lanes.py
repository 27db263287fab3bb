"""A trial's numbers do not depend on who trains beside it, when they come or how they end."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from moesearch.config.trial import TrialConfig
from moesearch.training.points import EvalPoint
from moesearch.training.trainer import LaneTrainer
from tests.training.tiny import DIVERGING, RANDOM, TOKENS, curve, losses, run_to_end, trainer_of, trial

TOLERANCE = 1e-4
"""In validation loss after 50 steps."""


@st.composite
def trials(draw: st.DrawFn) -> TrialConfig:
    """A trial of 50 steps without dropout and noise, anything else as may be."""
    num_experts = draw(st.integers(1, 6))
    params: dict[str, Any] = {
        "budget.steps": 50,
        "budget.milestones": draw(st.sampled_from([1, 2, 3])),
        "moe.num_experts": num_experts,
        "moe.top_k": draw(st.integers(1, num_experts)),
        "moe.init": draw(st.sampled_from(["kaiming_normal", "xavier_uniform", "normal"])),
        "moe.load_balancing_loss_weight": draw(st.sampled_from([0.0, 0.02])),
        "moe.router_z_loss_weight": draw(st.sampled_from([0.0, 0.001])),
        "optim.lr": draw(st.sampled_from([1e-4, 1e-3])),
        "optim.weight_decay": draw(st.sampled_from([0.0, 0.1])),
        "optim.beta2": draw(st.sampled_from([0.95, 0.999])),
        "optim.grad_clip": draw(st.sampled_from([None, 0.1])),
        "optim.schedule": draw(st.sampled_from(["constant", "cosine", "wsd"])),
    }
    return trial(params, seed=draw(st.integers(0, 2**63 - 1)))


def assert_agree(ours: list[EvalPoint], alone: list[EvalPoint]) -> None:
    assert [point.step for point in ours] == [point.step for point in alone]
    assert [point.val_loss for point in ours] == pytest.approx([point.val_loss for point in alone], abs=TOLERANCE)
    assert [point.train_loss for point in ours] == pytest.approx([point.train_loss for point in alone], abs=TOLERANCE)


few = settings(max_examples=4, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
"""A drawn mix trains each trial twice: a few cover lane counts, places and shapes; to shrink one would take minutes."""


@few
@given(st.lists(trials(), min_size=2, max_size=4))
def test_lanes_agree_with_the_same_trials_trained_alone(configs: list[TrialConfig]) -> None:
    points = run_to_end(trainer_of(*configs))
    for lane, config in enumerate(configs):
        assert_agree(points[lane], curve(config))


@few
@given(trials(), trials(), st.sampled_from([0, 1]))
def test_a_neighbour_that_diverges_and_is_replaced_changes_nothing(
    config: TrialConfig, newcomer: TrialConfig, ours: int
) -> None:
    trainer, theirs = LaneTrainer(TOKENS, num_lanes=2), 1 - ours
    trainer.load(ours, config)
    trainer.load(theirs, trial({**DIVERGING, "budget.steps": 50, "budget.milestones": 1, "moe.num_experts": 3}))
    ((lane, point),) = trainer.advance()
    assert (lane, point.is_diverged) == (theirs, True)
    trainer.free(theirs)
    trainer.load(theirs, newcomer)
    after = run_to_end(trainer)
    assert_agree(after[ours], curve(config))
    assert_agree(after[theirs], curve(newcomer))


@few
@given(trials(), trials(), trials())
def test_a_neighbour_that_is_freed_midway_changes_nothing(
    freed: TrialConfig, config: TrialConfig, staying: TrialConfig
) -> None:
    trainer = trainer_of(freed, config, staying)
    reached = trainer.advance()
    trainer.free(0)
    points = run_to_end(trainer)
    for lane, beside in ((1, config), (2, staying)):
        at_first = [point for index, point in reached if index == lane]
        assert_agree(at_first + points.get(lane, []), curve(beside))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_with_dropout_and_noise_a_lanes_curve_does_not_depend_on_its_place(place: int) -> None:
    config = trial(RANDOM, seed=11)
    others = [trial({**RANDOM, "moe.num_experts": 2}, seed=1), trial({"moe.num_experts": 6, "moe.top_k": 3}, seed=2)]
    configs = [*others[:place], config, *others[place:]]
    assert_agree(run_to_end(trainer_of(*configs))[place], curve(config))


def test_a_dense_lane_trains_beside_experts_as_it_does_alone() -> None:
    dense = trial({**RANDOM, "moe.num_experts": 1, "moe.top_k": 1}, seed=5)
    assert_agree(run_to_end(trainer_of(trial(RANDOM), dense))[1], curve(dense))


def test_a_refill_with_the_same_shapes_and_constants_keeps_the_pack() -> None:
    trainer = trainer_of(trial(seed=1), trial({"moe.num_experts": 3}, seed=2))
    trainer.advance()
    pack = trainer._pack
    trainer.free(0)
    newcomer = trial({"optim.lr": 3e-3, "optim.grad_clip": 0.5, "moe.init": "normal"}, seed=3)
    trainer.load(0, newcomer)
    points = run_to_end(trainer)
    assert pack is not None
    assert newcomer in [lane.config for lane in pack.lanes]
    assert_agree(points[0], curve(newcomer))


def test_evaluating_lanes_that_end_together_builds_no_pack() -> None:
    trainer = trainer_of(trial({"budget.milestones": 1}), trial({"budget.milestones": 1}, seed=1))
    assert len(trainer.advance()) == 2
    assert trainer._pack is not None
    assert len(trainer._pack.lanes) == 2


def test_a_refill_of_a_single_lane_is_bit_equal_to_a_new_trainer() -> None:
    trainer = trainer_of(trial(RANDOM, seed=1))
    trainer.advance()
    trainer.free(0)
    config = trial(RANDOM, seed=2)
    trainer.load(0, config)
    assert losses(run_to_end(trainer)[0]) == losses(curve(config))
