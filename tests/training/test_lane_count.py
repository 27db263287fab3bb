from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from moesearch.training.lane_count import LaneTiming, choose_num_lanes, time_lanes
from tests.training.tiny import TOKENS, trial

GIB = 2**30


def _planted(
    seconds: Callable[[int], float], *, gib_per_lane: float = 0.1, fits: int = 10**6
) -> tuple[list[int], Callable[[int], LaneTiming | None]]:
    """Timings by formula, and the list of what was asked for."""
    asked: list[int] = []

    def measure(num_lanes: int) -> LaneTiming | None:
        asked.append(num_lanes)
        if num_lanes > fits:
            return None
        return LaneTiming(num_lanes, seconds(num_lanes), round(num_lanes * gib_per_lane * GIB))

    return asked, measure


def test_lanes_are_doubled_while_a_step_hardly_grows() -> None:
    asked, measure = _planted(lambda lanes: 2e-3 + 1e-5 * lanes)
    assert choose_num_lanes(measure, free_bytes=80 * GIB, max_lanes=64) == 64
    assert asked == [1, 2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize(("growth", "chosen"), [(1.0, 8), (0.96, 8), (0.94, 16)])
def test_doubling_ends_where_it_gains_less_than_a_twentieth(growth: float, chosen: int) -> None:
    # Up to 8 lanes a step takes equally long; 16 lanes take 2 * growth times as long.
    asked, measure = _planted(lambda lanes: 1.0 if lanes <= 8 else 2 * growth * (lanes / 16))
    assert choose_num_lanes(measure, free_bytes=math.inf, max_lanes=16) == chosen
    assert asked == [1, 2, 4, 8, 16]


def test_one_lane_is_chosen_where_two_take_twice_as_long() -> None:
    asked, measure = _planted(float)
    assert choose_num_lanes(measure, free_bytes=math.inf, max_lanes=64) == 1
    assert asked == [1, 2]


def test_what_would_not_fit_with_a_margin_is_not_even_tried() -> None:
    asked, measure = _planted(lambda _: 1.0, gib_per_lane=1.0)
    assert choose_num_lanes(measure, free_bytes=10 * GIB, max_lanes=64) == 4  # 8 lanes are 8 of 10 GiB
    assert asked == [1, 2, 4]


def test_lanes_that_turn_out_not_to_fit_are_not_chosen() -> None:
    _, measure = _planted(lambda _: 1.0, fits=4)
    assert choose_num_lanes(measure, free_bytes=80 * GIB, max_lanes=64) == 4


def test_a_base_that_does_not_fit_is_left_to_its_trials_to_tell() -> None:
    _, measure = _planted(lambda _: 1.0, fits=0)
    assert choose_num_lanes(measure, free_bytes=GIB, max_lanes=64) == 1


def test_no_more_lanes_are_tried_than_there_may_be() -> None:
    asked, measure = _planted(lambda _: 1.0)
    assert choose_num_lanes(measure, free_bytes=math.inf, max_lanes=6) == 4
    assert max(asked) == 4


def test_a_step_is_timed_on_the_device() -> None:
    # A warm-up longer than the timing must not stand in its way, nor a budget in other units.
    config = trial({"budget.steps": None, "budget.tokens": 10_000, "optim.warmup_tokens": 5_000})
    timing = time_lanes(config, TOKENS, "cpu", 3, num_steps=2)
    assert timing is not None
    assert timing.num_lanes == 3
    assert 0 < timing.step_seconds < 1
