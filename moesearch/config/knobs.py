"""Knobs: which values a field of a trial may take in a search. Argument names are Optuna's."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from moesearch.config.trial import Section

Choice = bool | int | float | str | None


class CategoricalKnob(Section):
    """One of a list of values."""

    type: Literal["categorical"]
    choices: Annotated[tuple[Choice, ...], Field(min_length=1)]


class IntKnob(Section):
    """A whole number from ``low`` to ``high``, both included."""

    type: Literal["int"]
    low: int
    high: int
    step: Annotated[int, Field(ge=1)] = 1
    log: bool = False


class FloatKnob(Section):
    """A real number from ``low`` to ``high``; with ``step``, one of a grid."""

    type: Literal["float"]
    low: float
    high: float
    step: Annotated[float, Field(gt=0)] | None = None
    log: bool = False


Knob = Annotated[CategoricalKnob | IntKnob | FloatKnob, Field(discriminator="type")]
