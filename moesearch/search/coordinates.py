"""Points of a space as numbers: how far apart they are, in which order they spread, and the unit cube and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt

from moesearch.config.knobs import CategoricalKnob, FloatKnob, IntKnob, Knob
from moesearch.config.space import num_values, value_at

Params = dict[str, Any]
PointsPD = npt.NDArray[np.float64]
"""Shape (points, dimensions): coordinates such that the L1 distance of two points counts the knobs that differ."""


def spread(points: Sequence[Params], knobs: Mapping[str, Knob], seed: int) -> list[Params]:
    """The points in an order in which each one is as far as possible from those before it (greedy maximin).

    Ties are broken by a seeded shuffle, and so is the order of a list too long for a step per point.
    """
    order = np.random.default_rng(seed).permutation(len(points))
    shuffled = [dict(points[index]) for index in order]
    if len(points) > 2_000:
        return shuffled
    at_PD = coordinates(shuffled, knobs)
    distance_P = np.full(len(points), math.inf)
    chosen: list[int] = []
    for _ in points:
        index = int(distance_P.argmax())
        chosen.append(index)
        distance_P = np.minimum(distance_P, np.abs(at_PD - at_PD[index]).sum(1))
        distance_P[chosen] = -1
    return [shuffled[index] for index in chosen]


def nearest(points: Sequence[Params], draw: Params, knobs: Mapping[str, Knob]) -> int:
    """Index of the point that differs least from the draw; among equals, the first."""
    at_PD = coordinates([*points, draw], knobs)
    return int(np.abs(at_PD[:-1] - at_PD[-1]).sum(1).argmin())


def coordinates(points: Sequence[Params], knobs: Mapping[str, Knob]) -> PointsPD:
    """Coordinates of points, a few per knob."""
    # A knob that is not searched in a point stands where the first value does, so that it tells no two points apart.
    columns = [
        _knob_coordinates([point.get(path, value_at_unit(knob, 0.0)) for point in points], knob)
        for path, knob in knobs.items()
    ]
    return np.concatenate(columns, axis=1)


def _knob_coordinates(values: Sequence[Any], knob: Knob) -> PointsPD:
    """Coordinates of the values of one knob, at most 1 apart: ordered ones on a line, names in corners of a simplex."""
    match knob:
        case CategoricalKnob():
            ranks = [knob.choices.index(value) for value in values]
            if all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in knob.choices):
                by_size = np.argsort(np.argsort(np.array(knob.choices, dtype=np.float64)))
                return (by_size[ranks] / max(1, len(knob.choices) - 1))[:, None]
            return np.eye(len(knob.choices))[ranks] / 2
        case IntKnob() | FloatKnob():
            scale = np.log if knob.log else np.asarray
            low, high, at = (scale(np.asarray(value, dtype=np.float64)) for value in (knob.low, knob.high, values))
            return np.asarray((at - low) / max(float(high - low), 1e-12))[:, None]
        case _:
            assert_never(knob)


def unit_of(knob: Knob, value: Any) -> float:
    """Where a value lies among those of its knob, from 0 to 1; values of a list lie in the middles of equal parts."""
    match knob:
        case CategoricalKnob():
            order = _by_size(knob)
            return (order.index(value) + 0.5) / len(order)
        case IntKnob() | FloatKnob():
            return float(_knob_coordinates([value], knob)[0, 0])
        case _:
            assert_never(knob)


def value_at_unit(knob: Knob, unit: float) -> Any:
    """The value of a knob at a place from 0 to 1."""
    unit = min(max(unit, 0.0), 1.0)
    match knob:
        case CategoricalKnob():
            order = _by_size(knob)
            return order[min(int(unit * len(order)), len(order) - 1)]
        case IntKnob() | FloatKnob():
            scale, back = (np.log, np.exp) if knob.log else (float, float)
            value = float(back(scale(knob.low) + unit * (scale(knob.high) - scale(knob.low))))
            if isinstance(knob, FloatKnob) and knob.step is None:
                return min(max(value, knob.low), knob.high)
            count = num_values(knob)
            assert count is not None, "only a knob without a step is continuous"
            return value_at(knob, min(max(round((value - knob.low) / (knob.step or 1)), 0), count - 1))
        case _:
            assert_never(knob)


def _by_size(knob: CategoricalKnob) -> list[Any]:
    """Numbers by size, names as they are listed."""
    if all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in knob.choices):
        return sorted(knob.choices)
    return list(knob.choices)
