"""What a case of the bench yields: a ratio with its spread, the mark it is held to, and how it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from moesearch.bench.measure import Spread


@dataclass(frozen=True)
class Mark:
    """The value that a figure should reach."""

    sense: Literal["at least", "at most"]
    bound: float

    def is_met_by(self, value: float) -> bool:
        return value >= self.bound if self.sense == "at least" else value <= self.bound

    def __str__(self) -> str:
        return f"{self.sense} {self.bound:g}"


def at_least(bound: float) -> Mark:
    return Mark("at least", bound)


def at_most(bound: float) -> Mark:
    return Mark("at most", bound)


@dataclass(frozen=True)
class Figure:
    """One line of the bench."""

    case: str
    """Letter of the case."""
    key: str
    """Name in the JSON object."""
    title: str
    spread: Spread
    mark: Mark | None = None
    detail: str = ""
    """What the ratio is made of, for a person."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """What it is made of, for a program: name with unit -> median."""

    @property
    def is_met(self) -> bool | None:
        """Whether the median reaches the mark; None without a mark."""
        return None if self.mark is None else self.mark.is_met_by(self.spread.median)


def milliseconds(seconds: float) -> str:
    """Three digits or so."""
    return f"{seconds * 1000:.3g} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"


def minutes(seconds: float) -> str:
    """Minutes to one decimal."""
    return f"{seconds / 60:.1f} min"
