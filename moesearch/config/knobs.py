"""Knobs: which values a field of a trial may take in a search. Argument names are Optuna's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from moesearch.config.section import WHOLE, Section

Choice = Annotated[
    bool | int | float | str | None, Field(json_schema_extra={"expected": "a number, text, true, false or null"})
]


def _as_list(value: object) -> object:
    return value if isinstance(value, list | tuple) else (value,)


Values = Annotated[tuple[Choice, ...], BeforeValidator(_as_list), Field(min_length=1, strict=False)]
"""A value, or a list of some."""


_WHEN_EXPECTED = "a mapping of a knob's path to a value or a list of them, such as { moe.noise: true }"


class PriorConfig(Section):
    """A guess at the best value of a knob. It is tried first, and followed for as long as trials near it are no worse
    than others (after Hvarfner et al. 2022, whose prior fades with time alone).
    """

    value: Choice
    """The guess."""
    strength: Annotated[float, Field(gt=0, le=100)] = 1.0
    """How far it is trusted: a proposal follows it with probability strength / (strength + 1), less where it does not
    pay."""


class CategoricalKnob(Section):
    """One of a list of values."""

    type: Literal["categorical"]
    choices: Annotated[tuple[Choice, ...], Field(min_length=1, max_length=1000, strict=False)]
    """The values."""
    when: Annotated[dict[str, Values], Field(json_schema_extra={"expected": _WHEN_EXPECTED})] = {}
    """Searched only where other knobs have these values: dotted path -> a value or a list of them; else the base's
    value holds."""
    prior: PriorConfig | None = None
    """A guess at the best value."""


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
    when: Annotated[dict[str, Values], Field(json_schema_extra={"expected": _WHEN_EXPECTED})] = {}
    """Searched only where other knobs have these values: dotted path -> a value or a list of them; else the base's
    value holds."""
    prior: PriorConfig | None = None
    """A guess at the best value."""

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
    when: Annotated[dict[str, Values], Field(json_schema_extra={"expected": _WHEN_EXPECTED})] = {}
    """Searched only where other knobs have these values: dotted path -> a value or a list of them; else the base's
    value holds."""
    prior: PriorConfig | None = None
    """A guess at the best value."""

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        yield from _broken_range(self.low, self.high, self.step, self.log)


Knob = Annotated[
    CategoricalKnob | IntKnob | FloatKnob,
    Field(
        discriminator="type",
        json_schema_extra={"expected": "a knob, such as { type: categorical, choices: [1, 2] }"},
    ),
]


def is_active(knob: Knob, params: Mapping[str, object]) -> bool:
    """Whether a knob is searched beside these values of others; without all that it asks for it is not."""
    return all(
        any(path in params and params[path] == value and type(params[path]) is type(value) for value in values)
        for path, values in knob.when.items()
    )


def active_values(search: Mapping[str, Knob], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of those knobs that are searched beside the others' values."""
    return {path: value for path, value in values.items() if is_active(search[path], values)}


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
