"""Interleaved timing: what stands on both sides of a ratio runs in turns, so that a noisy machine slows both alike.

A round times every side once; the next round goes through them in the opposite order. A ratio is taken within each
round, and its median and quartiles over the rounds are what is reported. A side's first call in a round is not timed:
it finds caches and allocator as the side before it left them, while in real use the same work follows itself.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Clock = Callable[[], float]
"""Seconds since some fixed moment, read when all work given out so far is done."""


def device_clock(device: str) -> Clock:
    """The wall clock; on a GPU it is read once the device's queue has run empty."""
    if torch.device(device).type == "cpu":
        return time.perf_counter

    def read() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return read


@dataclass(frozen=True)
class Side:
    """One thing to be timed, and how many units of it a call does: its times are per unit."""

    call: Callable[[], object]
    units: int = 1
    settles: bool = True
    """Whether a call goes before the timed ones; a call that is itself many steps of one kind needs none."""


@dataclass(frozen=True)
class Effort:
    """How long one comparison may take. ``seconds`` ends it once ``min_rounds`` are done."""

    seconds: float
    min_rounds: int = 3
    min_slice_seconds: float = 0.02
    """A side that is quicker than this is called several times in a row and the time shared among the calls."""


@dataclass(frozen=True)
class Spread:
    """A median with the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Timings:
    """Seconds per unit of each side, one value per round; equal positions were measured next to each other."""

    seconds: Mapping[str, tuple[float, ...]]

    @property
    def num_rounds(self) -> int:
        return len(next(iter(self.seconds.values())))

    def total(self, units: Mapping[str, float]) -> tuple[float, ...]:
        """Seconds that so many units of each side would take, by each round's timings."""
        return tuple(
            sum(count * self.seconds[name][index] for name, count in units.items()) for index in range(self.num_rounds)
        )

    def median(self, name: str) -> float:
        """Median seconds of one unit."""
        return statistics.median(self.seconds[name])

    def median_total(self, units: Mapping[str, float]) -> float:
        """Median seconds of so many units of each side."""
        return statistics.median(self.total(units))

    def ratio(self, numerator: Mapping[str, float], denominator: Mapping[str, float]) -> Spread:
        """Spread over the rounds of one total divided by another."""
        pairs = zip(self.total(numerator), self.total(denominator), strict=True)
        return Spread.of([above / below for above, below in pairs])


def interleave(sides: Mapping[str, Side], clock: Clock, effort: Effort) -> Timings:
    """Time all sides in turns until the effort is spent; a call or two of each come first and are not counted."""
    start = clock()
    calls = {name: _calls_per_slice(side, clock, effort) for name, side in sides.items()}
    names = list(sides)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    num_rounds = 0
    while num_rounds < effort.min_rounds or clock() - start < effort.seconds:
        for name in names if num_rounds % 2 == 0 else reversed(names):
            side = sides[name]
            if side.settles:
                side.call()
            seconds[name].append(_time(side, calls[name], clock) / (calls[name] * side.units))
        num_rounds += 1
    return Timings({name: tuple(values) for name, values in seconds.items()})


def _calls_per_slice(side: Side, clock: Clock, effort: Effort) -> int:
    seconds = _time(side, 1, clock)
    if seconds < effort.min_slice_seconds:
        # The first call of all does more than the others.
        seconds = _time(side, 1, clock)
    return max(1, math.ceil(effort.min_slice_seconds / max(seconds, 1e-6)))


def _time(side: Side, calls: int, clock: Clock) -> float:
    start = clock()
    for _ in range(calls):
        side.call()
    return clock() - start
