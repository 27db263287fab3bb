"""The space of a search: its points, and which of them are feasible."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from moesearch.config.knobs import CategoricalKnob, FloatKnob, IntKnob, Knob, exact, is_active
from moesearch.config.resolve import is_feasible, resolve
from moesearch.config.study import StudyConfig
from moesearch.config.trial import SOMETIMES_UNREAD

MAX_COUNTED_POINTS = 100_000
"""Larger spaces with conditional knobs are counted as if no knob were conditional."""


def size(search: Mapping[str, Knob]) -> int | None:
    """Number of points, feasible or not; None where a knob is continuous."""
    counts = [num_values(knob) for knob in search.values()]
    if None in counts:
        return None
    num_points = math.prod(count for count in counts if count is not None)
    has_conditions = any(knob.when for knob in search.values())
    return sum(1 for _ in points(search)) if has_conditions and num_points <= MAX_COUNTED_POINTS else num_points


def points(search: Mapping[str, Knob]) -> Iterator[dict[str, object]]:
    """Every point, the last knob moving fastest. Ask for ``size`` first: a point is cheap, their number may not be.

    A point has no value for a knob whose condition does not hold there.

    Raises:
        ValueError: a knob is continuous, so the points cannot be listed.
    """
    axes = [values(knob) for knob in search.values()]
    every = (dict(zip(search, point, strict=True)) for point in product(*axes))
    return _each_once(search, every) if any(knob.when for knob in search.values()) else every


def _each_once(search: Mapping[str, Knob], every: Iterator[dict[str, object]]) -> Iterator[dict[str, object]]:
    seen: set[tuple[tuple[str, str], ...]] = set()
    for point in every:
        active = without_inactive(search, point)
        name = tuple((path, repr(value)) for path, value in active.items())
        if name not in seen:
            seen.add(name)
            yield active


def without_inactive(search: Mapping[str, Knob], point: Mapping[str, Any]) -> dict[str, Any]:
    """The point without values of knobs whose conditions do not hold in it."""
    kept = dict(point)
    while inactive := [path for path in kept if path in search and not is_active(search[path], kept)]:
        for path in inactive:
            del kept[path]
    return kept


def in_order(search: Mapping[str, Knob]) -> list[str]:
    """The knobs, each one after those that its condition is about."""
    order: list[str] = []
    while len(order) < len(search):
        order += [path for path in search if path not in order and set(search[path].when) <= set(order)]
    return order


def feasible_points(study: StudyConfig, limit: int = 100_000) -> list[dict[str, object]] | None:
    """The points that make a trial, each configuration once; None where a knob is continuous or there are more than
    ``limit`` points.
    """
    num_points = size(study.search)
    if num_points is None or num_points > limit:
        return None
    feasible = [point for point in points(study.search) if is_feasible(study.base, point)]
    if not (SOMETIMES_UNREAD & study.search.keys() or _may_be_dense(study)):
        return feasible
    # Points that differ in what neither of them reads are one: its first form stands for all.
    distinct: dict[str, dict[str, object]] = {}
    for point in feasible:
        distinct.setdefault(resolve(study.base, point).fingerprint(), point)
    return list(distinct.values())


def _may_be_dense(study: StudyConfig) -> bool:
    """Whether a point may have one expert, which leaves all routing unread."""
    num_experts = study.search.get("moe.num_experts")
    return study.base.moe.is_dense if num_experts is None else contains(num_experts, 1)


def num_values(knob: Knob) -> int | None:
    """Number of values; None where the knob is continuous."""
    match knob:
        case CategoricalKnob():
            return len(knob.choices)
        case IntKnob():
            return (knob.high - knob.low) // knob.step + 1
        case FloatKnob(step=step):
            if step is None:
                return 1 if knob.low == knob.high else None
            return int((exact(knob.high) - exact(knob.low)) // exact(step)) + 1


def value_at(knob: Knob, index: int) -> object:
    """The value number ``index``, from 0, of a knob that is not continuous."""
    match knob:
        case CategoricalKnob():
            return knob.choices[index]
        case IntKnob():
            return knob.low + index * knob.step
        case FloatKnob():
            return float(exact(knob.low) + index * exact(knob.step or 0))


def values(knob: Knob) -> list[object]:
    """The values in order.

    Raises:
        ValueError: the knob is continuous.
    """
    count = num_values(knob)
    if count is None:
        raise ValueError("a continuous knob has no list of values")
    return [value_at(knob, index) for index in range(count)]


def contains(knob: Knob, value: object) -> bool:
    """Whether the knob can take the value."""
    match knob:
        case CategoricalKnob():
            return any(value == choice and type(value) is type(choice) for choice in knob.choices)
        case IntKnob():
            if isinstance(value, bool) or not isinstance(value, int):
                return False
            return knob.low <= value <= knob.high and (value - knob.low) % knob.step == 0
        case FloatKnob():
            if isinstance(value, bool) or not isinstance(value, int | float):
                return False
            is_on_grid = knob.step is None or (exact(value) - exact(knob.low)) % exact(knob.step) == 0
            return is_on_grid and knob.low <= value <= knob.high
