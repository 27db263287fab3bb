from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from moesearch.data.corpora import Corpus
from moesearch.data.tokens import tokenize
from moesearch.errors import CheckpointError, CorpusError
from moesearch.model.cost import training_flops_per_token
from moesearch.training.lane import milestone_step
from moesearch.training.trainer import LaneTrainer
from tests.training.tiny import (
    DIVERGING,
    RANDOM,
    TOKENS,
    curve,
    losses,
    run_to_end,
    stop_after,
    tokens,
    trainer_of,
    trial,
)


def test_milestones_are_equal_fractions_of_the_budget_and_the_last_is_its_end() -> None:
    points = curve(trial({"budget.steps": 10, "budget.milestones": 4}))
    assert [point.step for point in points] == [2, 5, 8, 10]
    assert [point.milestone for point in points] == [1, 2, 3, 4]
    assert [point.is_last for point in points] == [False, False, False, True]


def test_milestones_never_share_a_step() -> None:
    for num_steps in range(1, 60):
        for num_milestones in range(1, num_steps + 1):
            steps = [milestone_step(m, num_milestones, num_steps) for m in range(num_milestones + 1)]
            assert all(first < second for first, second in pairwise(steps))


def test_a_point_says_what_was_spent() -> None:
    config = trial()
    point = curve(config)[-1]
    assert point.tokens == 20 * 4 * 8
    assert point.active_flops == point.tokens * training_flops_per_token(config, TOKENS.vocab_size)
    assert point.train_seconds > 0
    assert point.eval_seconds > 0


def test_training_lowers_the_loss() -> None:
    points = curve(trial({"budget.steps": 200, "optim.lr": 1e-2}))
    assert points[-1].val_loss < points[0].val_loss
    assert points[-1].train_loss < points[0].train_loss


def test_the_training_loss_is_of_the_language_model_alone() -> None:
    # A weight this small moves no parameter, but would show in the loss if it were a part of it.
    with_balance = trial({"moe.load_balancing_loss_weight": 500.0, "optim.lr": 1e-12, "optim.weight_decay": 0.0})
    without = trial({"optim.lr": 1e-12, "optim.weight_decay": 0.0})
    assert curve(with_balance)[0].train_loss == pytest.approx(curve(without)[0].train_loss, abs=1e-6)


def test_the_same_trial_gives_the_same_curve_bit_for_bit() -> None:
    config = trial(RANDOM)
    assert losses(curve(config)) == losses(curve(config))


def test_another_seed_gives_another_curve() -> None:
    assert losses(curve(trial(seed=0))) != losses(curve(trial(seed=1)))


def test_the_order_seed_alone_changes_the_order_of_batches() -> None:
    first, other = curve(trial(order_seed=1)), curve(trial(order_seed=2))
    assert first[0].train_loss != other[0].train_loss
    assert losses(curve(trial(seed=3))) == losses(curve(trial(seed=3, order_seed=3)))


def test_advance_stops_where_the_first_lane_reaches_its_milestone() -> None:
    trainer = trainer_of(
        trial({"budget.steps": 12, "budget.milestones": 3}), trial({"budget.steps": 6, "budget.milestones": 1})
    )
    reached = [[(lane, point.step) for lane, point in trainer.advance()] for _ in range(3)]
    assert reached == [[(0, 4)], [(1, 6)], [(0, 8)]]


def test_lanes_that_reach_a_milestone_together_are_reported_together() -> None:
    assert [lane for lane, _ in trainer_of(trial(), trial(seed=1)).advance()] == [0, 1]


def test_a_trainer_without_lanes_to_train_returns_nothing() -> None:
    assert LaneTrainer(TOKENS).advance() == []
    trainer = trainer_of(trial({"budget.milestones": 1}))
    assert len(trainer.advance()) == 1
    assert trainer.advance() == []


def test_a_finished_lane_can_still_be_evaluated_while_others_take_its_place() -> None:
    trainer = trainer_of(trial({"budget.steps": 4, "budget.milestones": 1}), trial(seed=1))
    ((lane, point),) = trainer.advance()
    assert (lane, point.is_last) == (0, True)
    trainer.free(1)
    trainer.load(1, trial(seed=2))
    trainer.advance()
    assert trainer.evaluate(0, "val").loss == point.val_loss


def test_a_lane_is_free_until_it_is_loaded_and_once_it_is_freed() -> None:
    trainer = LaneTrainer(TOKENS, num_lanes=2)
    trainer.load(1, trial())
    assert list(trainer.free_lanes) == [0]
    trainer.free(1)
    assert list(trainer.free_lanes) == [0, 1]


def test_stopping_is_looked_at_between_steps_and_loses_none() -> None:
    config = trial(RANDOM)
    trainer = trainer_of(config)
    assert trainer.advance(stop_after(3)) == []
    assert trainer.step(0) == 3
    assert losses(run_to_end(trainer)[0]) == losses(curve(config))


def test_stopping_within_an_evaluation_leaves_it_for_the_next_call() -> None:
    config = trial()
    trainer = trainer_of(config)
    assert trainer.advance(stop_after(5)) == []  # five looks between steps, then one in the evaluation
    assert trainer.step(0) == 5
    ((_, point),) = trainer.advance()
    assert losses([point]) == losses(curve(config)[:1])


def test_a_lane_that_diverges_is_reported_at_once() -> None:
    trainer = trainer_of(trial(DIVERGING))
    ((_, point),) = trainer.advance()
    assert point.is_diverged
    assert point.step < 20
    assert math.isnan(point.val_loss)
    assert trainer.advance() == []


def test_no_step_is_taken_on_a_gradient_that_is_not_finite() -> None:
    trainer = trainer_of(trial({**DIVERGING, "budget.steps": 100, "budget.milestones": 1}))
    ((_, point),) = trainer.advance()
    assert 0 < point.step < 100
    assert all(bool(tensor.isfinite().all()) for tensor in trainer.checkpoint(0).parameters.values())


def test_clipping_bounds_the_first_moments_of_its_own_lane_only() -> None:
    clipped, free = trial({"optim.grad_clip": 1e-3, "budget.milestones": 20}), trial({"budget.milestones": 20})
    trainer = trainer_of(clipped, free)
    trainer.advance()

    def first_gradient_norm(lane: int) -> float:
        moments = trainer.checkpoint(lane).exp_avg.values()
        return math.sqrt(sum(float(moment.square().sum()) for moment in moments)) / (1 - 0.9)

    assert first_gradient_norm(0) == pytest.approx(1e-3, rel=1e-3)
    assert first_gradient_norm(1) > 0.1


def test_weight_decay_is_each_lanes_own() -> None:
    once: dict[str, object] = {"budget.milestones": 20, "optim.lr": 1e-2}
    trainer = trainer_of(trial({**once, "optim.weight_decay": 0.0}), trial({**once, "optim.weight_decay": 10.0}))
    start = trainer.checkpoint(0).parameters
    trainer.advance()
    plain, decayed = (trainer.checkpoint(lane).parameters for lane in (0, 1))
    for name, tensor in plain.items():
        torch.testing.assert_close(tensor - decayed[name], 1e-2 * 10.0 * start[name], atol=1e-6, rtol=1e-4)


def test_the_learning_rate_is_each_lanes_own() -> None:
    trainer = trainer_of(*(trial({"budget.milestones": 20, "optim.lr": lr}) for lr in (1e-3, 1e-1)))
    start = trainer.checkpoint(0).parameters
    trainer.advance()
    for lane, lr in enumerate((1e-3, 1e-1)):
        after = trainer.checkpoint(lane).parameters
        # AdamW's first step moves each parameter by the learning rate, weight decay apart.
        assert max(float((after[name] - start[name]).abs().max()) for name in after) == pytest.approx(lr, rel=0.05)


def test_a_trial_of_another_shape_family_is_refused() -> None:
    trainer = LaneTrainer(TOKENS, num_lanes=2)
    trainer.load(0, trial())
    with pytest.raises(ValueError, match="shape family"):
        trainer.load(1, trial({"model.width": 16}))
    with pytest.raises(ValueError, match="batch_size"):
        trainer.load(1, trial({"data.batch_size": 2}))


def test_a_trainer_that_is_empty_takes_another_shape_family() -> None:
    trainer = trainer_of(trial())
    trainer.advance()
    trainer.free(0)
    wide = trial({"model.width": 16, "data.batch_size": 2})
    trainer.load(0, wide)
    assert losses(run_to_end(trainer)[0]) == losses(curve(wide))


def test_a_checkpoint_of_another_configuration_is_refused() -> None:
    checkpoint = trainer_of(trial()).checkpoint(0)
    with pytest.raises(CheckpointError, match="another configuration"):
        LaneTrainer(TOKENS).load(0, trial(seed=1), checkpoint)


def test_a_checkpoint_of_another_text_is_refused() -> None:
    checkpoint = trainer_of(trial()).checkpoint(0)
    with pytest.raises(CheckpointError, match="another text"):
        LaneTrainer(tokens("other")).load(0, trial(), checkpoint)


def test_a_split_shorter_than_the_context_is_refused() -> None:
    short = tokenize(Corpus("short", train="abcd" * 10, val="abc", test="abcd" * 10, sha256=""))
    with pytest.raises(CorpusError, match="validation"):
        LaneTrainer(short).load(0, trial())


def test_too_little_memory_on_the_host_is_a_memory_error() -> None:
    # 140 TB of experts exceed the address space, so the allocation fails before any page is touched.
    params = {"model.width": 65536, "model.num_layers": 1, "moe.num_experts": 512, "moe.expert_hidden_dim": 1_048_576}
    with pytest.raises(MemoryError):
        trainer_of(trial(params)).advance()
