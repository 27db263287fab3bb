from __future__ import annotations

from collections.abc import Callable

import pytest

from moesearch.bench.measure import Effort, Side, Spread, Timings, device_clock, interleave


class FakeMachine:
    """A clock that only work moves, and a record of the work's order."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def clock(self) -> float:
        return self.now

    def work(self, name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.now += seconds
            self.order.append(name)

        return call


def test_each_side_is_timed_once_a_round_in_alternating_order() -> None:
    machine = FakeMachine()
    sides = {name: Side(machine.work(name, 1.0), settles=False) for name in "AB"}
    interleave(sides, machine.clock, Effort(0, min_rounds=3))
    assert "".join(machine.order) == "AB" + "AB" + "BA" + "AB"


def test_the_first_call_of_a_side_in_a_round_is_not_timed() -> None:
    machine = FakeMachine()
    calls = iter([1.0, 9.0, 1.0, 9.0, 1.0])

    def call() -> None:
        machine.now += next(calls)

    timings = interleave({"A": Side(call)}, machine.clock, Effort(0, min_rounds=2))
    assert timings.seconds["A"] == (1.0, 1.0)


def test_times_are_per_unit_of_a_call() -> None:
    machine = FakeMachine()
    timings = interleave({"A": Side(machine.work("A", 6.0), units=4)}, machine.clock, Effort(0, min_rounds=2))
    assert timings.seconds["A"] == (1.5, 1.5)


def test_a_quick_side_is_called_until_a_slice_is_full() -> None:
    machine = FakeMachine()
    timings = interleave(
        {"A": Side(machine.work("A", 0.25), settles=False)},
        machine.clock,
        Effort(0, min_rounds=1, min_slice_seconds=1.0),
    )
    assert machine.order == ["A"] * (2 + 4)
    assert timings.median("A") == pytest.approx(0.25)


def test_rounds_go_on_until_the_seconds_are_spent() -> None:
    machine = FakeMachine()
    timings = interleave({"A": Side(machine.work("A", 1.0), settles=False)}, machine.clock, Effort(7.5, min_rounds=1))
    assert timings.num_rounds == 7  # The call of the warm-up counts as spent.


def test_min_rounds_are_done_even_when_the_seconds_are_spent() -> None:
    machine = FakeMachine()
    timings = interleave({"A": Side(machine.work("A", 100.0))}, machine.clock, Effort(1, min_rounds=3))
    assert timings.num_rounds == 3


def test_a_ratio_is_taken_within_each_round() -> None:
    # The machine is three times slower in the second round: it slows both sides, and no ratio moves.
    timings = Timings({"A": (2.0, 6.0, 2.0), "B": (1.0, 3.0, 1.0)})
    assert timings.ratio({"A": 1}, {"B": 1}) == Spread(2.0, 2.0, 2.0)


def test_a_ratio_may_be_of_totals_of_several_sides() -> None:
    timings = Timings({"step": (1.0, 2.0), "evaluation": (10.0, 10.0), "other": (4.0, 4.0)})
    assert timings.total({"step": 10, "evaluation": 1}) == (20.0, 30.0)
    assert timings.ratio({"step": 10, "evaluation": 1}, {"other": 0.5}) == Spread(12.5, 11.25, 13.75)


def test_a_spread_is_the_median_and_the_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(median=3.0, low=2.0, high=4.0)


def test_one_round_has_no_spread() -> None:
    assert Spread.of([2.5]) == Spread(2.5, 2.5, 2.5)


def test_the_clock_of_a_cpu_goes_forward() -> None:
    clock = device_clock("cpu")
    assert clock() <= clock()
