from __future__ import annotations

from pathlib import Path

import pytest

from moesearch.config.resolve import resolve
from moesearch.config.trial import TrialConfig
from moesearch.training.checkpoints import load_checkpoint, save_checkpoint
from moesearch.training.points import EvalPoint
from moesearch.training.trainer import LaneTrainer
from tests.training.tiny import BASE, TOKENS

BY_THE_CLOCK = resolve(BASE, {"budget.steps": None, "budget.seconds": 0.8, "budget.milestones": 4})


def _train(trainer: LaneTrainer) -> list[EvalPoint]:
    points = []
    while reached := trainer.advance():
        points += [point for _, point in reached]
    return points


def test_milestones_lie_at_equal_fractions_of_the_seconds() -> None:
    trainer = LaneTrainer(TOKENS)
    trainer.load(0, BY_THE_CLOCK)
    points = _train(trainer)
    assert [point.milestone for point in points] == [1, 2, 3, 4]
    # A step may begin just before a milestone is due.
    assert [point.train_seconds for point in points] == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=0.1)
    assert all(point.train_seconds >= 0.2 * point.milestone for point in points)


def test_the_schedule_ends_with_the_seconds() -> None:
    config = resolve(BY_THE_CLOCK, {"optim.schedule": "cosine", "optim.final_lr_fraction": 0.0})
    trainer = LaneTrainer(TOKENS)
    trainer.load(0, config)
    _train(trainer)
    lane = trainer._lanes[0]
    assert lane is not None
    assert lane.num_steps == pytest.approx(lane.step, abs=2)


def test_a_trial_by_the_clock_goes_on_from_its_checkpoint_with_the_seconds_that_are_left(tmp_path: Path) -> None:
    trainer = LaneTrainer(TOKENS)
    trainer.load(0, BY_THE_CLOCK)
    first = trainer.advance()[0][1]
    save_checkpoint(trainer.checkpoint(0), tmp_path)
    again = LaneTrainer(TOKENS)
    again.load(0, BY_THE_CLOCK, load_checkpoint(tmp_path))
    points = _train(again)
    assert [point.milestone for point in points] == [2, 3, 4]
    assert points[0].step > first.step
    assert points[-1].train_seconds == pytest.approx(0.8, abs=0.1)


def test_lanes_share_the_time() -> None:
    trainer = LaneTrainer(TOKENS, num_lanes=2)
    for lane in range(2):
        trainer.load(lane, resolve(BY_THE_CLOCK, {}, seed=lane))
    points = _train(trainer)
    assert sorted(point.milestone for point in points) == [1, 1, 2, 2, 3, 3, 4, 4]
    assert points[-1].train_seconds == pytest.approx(0.8, abs=0.15)


def test_a_budget_in_seconds_does_not_rename_trials_with_other_budgets() -> None:
    assert TrialConfig().fingerprint() != BY_THE_CLOCK.fingerprint()
    assert "seconds" not in TrialConfig()._dump_for_fingerprint()["budget"]
