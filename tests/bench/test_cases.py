from __future__ import annotations

import math

import pytest

from moesearch.bench import settings
from moesearch.bench.cases import CASES, Bench, Pace
from moesearch.bench.measure import device_clock
from moesearch.bench.output import Facts, as_object
from moesearch.bench.subjects import TrainerSteps
from moesearch.bench.workers import Worker, train_at_once
from moesearch.config.trial import TrialConfig
from moesearch.data.tokens import TokenData

PROMISED = {
    "a": {"step_vs_reference"},
    "b": {"moe_vs_dense_8_2", "moe_vs_dense_32_8"},
    "c": {"expert_growth_4_64", "expert_step_growth_4_64"},
    "d": {"run_vs_reference"},
    "e": {"lanes_4_vs_1", "lanes_16_vs_1", "workers_2_vs_1"},
    "f": {"products_share_of_step"},
}


@pytest.fixture
def bench(config: TrialConfig, tokens: TokenData) -> Bench:
    pace = Pace(scale=0, min_rounds=1, part_of_val=0.5, expert_counts=(4, 64), lane_counts=(1, 4, 16))
    return Bench("cpu", device_clock("cpu"), pace, tokens, tokens, article=config, search=config)


@pytest.mark.parametrize("letter", CASES)
def test_a_case_yields_its_promised_figures_as_positive_numbers(letter: str, bench: Bench) -> None:
    figures = CASES[letter](bench)
    values = as_object(figures, Facts("cpu", "a processor", 1, "2", is_quick=True, seconds=1.0))
    for key in PROMISED[letter]:
        value, spread = values[key], values[f"{key}_spread"]
        assert isinstance(value, float)
        assert isinstance(spread, list)
        assert all(math.isfinite(number) and number > 0 for number in (value, *spread))
    assert {figure.case for figure in figures} == {letter}


def test_timed_steps_are_the_trainers_own(config: TrialConfig, tokens: TokenData) -> None:
    subject = TrainerSteps(config, tokens, num_lanes=2, device="cpu")
    subject.steps(3)
    subject.steps(2)
    assert [subject.trainer.checkpoint(lane).step for lane in (0, 1)] == [5, 5]


def test_a_milestone_trains_and_evaluates_every_lane(config: TrialConfig, tokens: TokenData) -> None:
    subject = TrainerSteps(settings.with_milestones(config, 2), tokens, num_lanes=2, device="cpu")
    subject.milestone()
    subject.milestone()
    assert [subject.trainer.checkpoint(lane).step for lane in (0, 1)] == [4, 4]


def test_a_worker_that_fails_is_no_worker_that_is_done(config: TrialConfig, tokens: TokenData) -> None:
    unfit = config.model_copy(update={"model": config.model.model_copy(update={"context": 10_000})})
    with Worker(unfit, tokens, threads=1, device="cpu") as worker, pytest.raises((EOFError, OSError)):
        train_at_once([worker], 1)


def test_a_part_of_the_validation_split_is_its_beginning(tokens: TokenData) -> None:
    part = settings.with_part_of_val(tokens, 0.25)
    assert part.val.tolist() == tokens.val[:25].tolist()
