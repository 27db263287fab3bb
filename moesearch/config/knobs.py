"""Knobs: which values a field of a trial may take in a search. Argument names are Optuna's."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field

from moesearch.config.section import WHOLE, Section

Choice = Annotated[
    bool | int | float | str | None, Field(json_schema_extra={"expected": "a number, text, true, false or null"})
]


class CategoricalKnob(Section):
    """One of a list of values."""

    type: Literal["categorical"]
    choices: Annotated[tuple[Choice, ...], Field(min_length=1, max_length=1000, strict=False)]
    """The values, in an order that a study keeps for good."""


class IntKnob(Section):
    """A whole number from ``low`` to ``high``, both included."""

    type: Literal["int"]
    low: Annotated[int, Field(ge=-(10**15), le=10**15), WHOLE]
    """Smallest value."""
    high: Annotated[int, Field(ge=-(10**15), le=10**15), WHOLE]
    """Largest value."""
    step: Annotated[int, Field(ge=1, le=10**15), WHOLE] = 1
    """Distance of neighbouring values."""
    log: bool = False
    """Sample evenly in the logarithm."""

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        yield from _broken_range(self.low, self.high, self.step, self.log)


class FloatKnob(Section):
    """A real number from ``low`` to ``high``; with ``step``, one of a grid."""

    type: Literal["float"]
    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    step: Annotated[float, Field(gt=0)] | None = None
    """Distance of neighbouring values; null is every number between."""
    log: bool = False
    """Sample evenly in the logarithm."""

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        yield from _broken_range(self.low, self.high, self.step, self.log)


Knob = Annotated[
    CategoricalKnob | IntKnob | FloatKnob,
    Field(
        discriminator="type",
        json_schema_extra={"expected": "a knob, such as { type: categorical, choices: [1, 2] }"},
    ),
]


def exact(number: float) -> Fraction:
    """The number as it is written: 0.1 is one tenth, so that grids have no rounding noise."""
    return Fraction(str(number))


def _broken_range(low: float, high: float, step: float | None, log: bool) -> Iterator[tuple[str, str]]:
    if low > high:
        yield "", f"low ({low}) must be at most high ({high})"
        return
    if log and low <= 0:
        yield "", f"low ({low}) must be above 0 where log is true"
    has_grid = step is not None and not (isinstance(step, int) and step == 1)
    if has_grid and log:
        yield "", f"step ({step}) and log exclude each other; leave one out"
    elif step is not None and (rest := (exact(high) - exact(low)) % exact(step)):
        last = type(high)(exact(high) - rest)
        yield "", f"high ({high}) must be low plus a multiple of step ({step}), such as {last}"
