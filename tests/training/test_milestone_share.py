"""Milestones before the last are evaluated on a share of the validation split: which one, and who is told what."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moesearch.data.batches import evaluation_batches
from moesearch.data.facts import part_windows
from moesearch.errors import InputError
from moesearch.model.losses import token_losses
from moesearch.model.transformer import MoETransformer
from moesearch.training.evaluation import evaluate_split
from moesearch.training.full_run import FullRun
from moesearch.training.points import RouterHealth
from tests.training.tiny import RANDOM, TOKENS, curve, losses, run_to_end, stop_after, trainer_of, trial

PART: dict[str, object] = {"budget.milestone_share": 0.3}
CONTEXT = 8


@given(num_tokens=st.integers(10, 3000), context=st.integers(1, 9), share=st.floats(0.001, 0.999))
def test_a_share_is_so_many_different_windows_evenly_spread(num_tokens: int, context: int, share: float) -> None:
    windows, num_whole = part_windows(num_tokens, context, share), (num_tokens - 1) // context
    assert len(windows) == max(1, int(num_whole * share))
    assert set(windows) <= set(range(num_whole))
    gaps = [later - earlier for earlier, later in pairwise(windows)]
    assert not gaps or (min(gaps) >= 1 and max(gaps) - min(gaps) <= 1)


def test_a_share_reads_these_windows_and_what_follows_each_token() -> None:
    batches = list(evaluation_batches(torch.arange(85), CONTEXT, 2, 0.3))
    inputs = torch.cat([inputs for inputs, _ in batches])
    assert inputs[:, 0].tolist() == [8 * window for window in part_windows(85, CONTEXT, 0.3)] == [8, 40, 64]
    assert all(targets.tolist() == (inputs + 1).tolist() for inputs, targets in batches)


@torch.no_grad()
def test_the_loss_of_a_share_is_the_mean_over_its_windows() -> None:
    net = MoETransformer([trial(RANDOM)], TOKENS.vocab_size)
    by_window, num_bytes = [], 0
    for window in part_windows(len(TOKENS.val), CONTEXT, 0.3):
        inputs_T = TOKENS.val[window * CONTEXT : (window + 1) * CONTEXT]
        targets_T = TOKENS.val[window * CONTEXT + 1 : (window + 1) * CONTEXT + 1]
        by_window.append(token_losses(net(inputs_T[None, None]).logits_RBTV, targets_T[None, None]).flatten())
        num_bytes += int(TOKENS.bytes_per_id_V[targets_T].sum())
    results = evaluate_split(net, TOKENS.val, TOKENS.bytes_per_id_V, share=0.3)
    assert results is not None
    assert results[0].loss == pytest.approx(float(torch.cat(by_window).mean()), abs=1e-6)
    bits = float(torch.cat(by_window).sum()) / math.log(2) / num_bytes
    assert results[0].bits_per_byte == pytest.approx(bits, abs=1e-6)
    assert results[0].block_losses == ()


def test_two_evaluations_of_a_share_are_bit_equal() -> None:
    net = MoETransformer([trial(RANDOM)], TOKENS.vocab_size)
    first = evaluate_split(net, TOKENS.val, TOKENS.bytes_per_id_V, share=0.3)
    assert first == evaluate_split(net, TOKENS.val, TOKENS.bytes_per_id_V, share=0.3)


def test_a_trial_is_trained_alike_and_its_last_loss_is_of_the_whole_split() -> None:
    part, whole = curve(trial({**RANDOM, **PART})), curve(trial(RANDOM))
    assert losses(part[-1:]) == losses(whole[-1:])
    assert [point.train_loss for point in part] == [point.train_loss for point in whole]
    assert all(ours.val_loss != theirs.val_loss for ours, theirs in zip(part[:-1], whole[:-1], strict=True))
    assert all(point.val_block_losses == () for point in part[:-1])


def test_router_health_is_of_the_same_windows_as_the_loss() -> None:
    trainer = trainer_of(trial(PART))
    ((_, point),) = trainer.advance()
    results = evaluate_split(trainer.model(0), TOKENS.val, TOKENS.bytes_per_id_V, share=0.3)
    assert results is not None
    assert isinstance(point.router_health, RouterHealth)
    assert point.router_health == results[0].router_health
    assert point.router_health != trainer.evaluate(0, "val").router_health


def test_lanes_at_a_last_and_at_an_earlier_milestone_are_evaluated_in_one_advance() -> None:
    configs = [trial({**PART, "budget.steps": 10, "budget.milestones": 2}), trial(PART), trial({}, seed=1)]
    trainer = trainer_of(*configs)
    trainer.advance()
    due = trainer.advance()
    assert [(lane, point.milestone, point.is_last) for lane, point in due] == [
        (0, 2, True),
        (1, 2, False),
        (2, 2, False),
    ]
    later = run_to_end(trainer)
    for lane, config in enumerate(configs):
        alone = [point.val_loss for point in curve(config)]
        ours = [point.val_loss for point in [*trainer.points(lane)]]
        assert ours == pytest.approx(alone, abs=1e-5)
    assert 0 not in later


def test_what_was_evaluated_before_a_stop_is_reported_and_the_rest_comes_later() -> None:
    trainer = trainer_of(trial({**PART, "budget.steps": 5, "budget.milestones": 1}), trial(PART))
    num_part = len(list(evaluation_batches(TOKENS.val, CONTEXT, 10**6, 0.3)))
    ((lane, point),) = trainer.advance(stop_after(5 + num_part))
    assert (lane, point.milestone) == (1, 1)
    ((lane, point),) = trainer.advance()
    assert (lane, point.is_last, point.step) == (0, True, 5)
    assert point.val_loss == pytest.approx(trainer.evaluate(0, "val").loss, abs=1e-5)


def test_patience_compares_losses_of_the_whole_split(tmp_path: Path) -> None:
    run = FullRun(trial(PART), TOKENS, "cpu", tmp_path, patience=2)
    reached = list(run.train(lambda: False))
    assert losses(reached) == losses(curve(trial()))[: len(reached)]


def test_a_run_on_a_share_is_not_taken_up_with_patience(tmp_path: Path) -> None:
    next(FullRun(trial(PART), TOKENS, "cpu", tmp_path).train(lambda: False))
    with pytest.raises(InputError, match=r"budget\.milestone_share is 0\.3 there and 1\.0 here"):
        FullRun(trial(PART), TOKENS, "cpu", tmp_path, patience=2)
