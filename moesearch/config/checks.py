"""What a study file must keep beyond the form of its sections: knobs against fields, first tries against knobs.

The checks take the values as written, since they look at whatever part of a file is sound, so that a person reads of
all mistakes at once.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from pydantic import TypeAdapter, ValidationError

from moesearch.config.document import FieldPath
from moesearch.config.knobs import CategoricalKnob, FloatKnob, IntKnob, Knob
from moesearch.config.messages import Finding, JsonSchema, Written, did_you_mean, expectation, must_be, shown, shown_as
from moesearch.config.resolve import (
    field_names,
    field_schema,
    field_value,
    is_feasible,
    is_lane_field,
    resolve,
    unknown_path,
)
from moesearch.config.space import contains, num_values, points, size, value_at, without_inactive
from moesearch.config.study import StudyConfig
from moesearch.config.trial import BUDGET_UNITS
from moesearch.errors import InfeasibleError

_MAX_CANDIDATES = 1000
"""Points of a space that are tried before it is called infeasible."""

MAX_GRID_POINTS = 20_000

_KNOB = TypeAdapter[Knob](Knob)

_CORPUS_REASON = "trials on different texts cannot be compared; write one study for each"
NOT_SEARCHED = {
    "seed": "the seed of each trial is derived from sampler.seed; confirm.seeds trains the best on fresh ones",
    "data.order_seed": "the order of batches follows each trial's seed; confirm.seeds trains the best on fresh ones",
    "data.corpus": _CORPUS_REASON,
    "data.text": _CORPUS_REASON,
    "budget.milestones": "trials are compared at equal milestones; set base.budget.milestones",
    "budget.milestone_share": "trials are compared on equal windows; set base.budget.milestone_share",
}
"""Fields of a trial that no knob may have -> why."""


def searchable_fields() -> tuple[str, ...]:
    """The dotted paths that a knob may have."""
    return tuple(path for path in field_names() if path not in NOT_SEARCHED)


def check_form(raw: Mapping[str, Any], written: Written) -> Iterator[Finding]:
    """Check ``search`` and ``enqueue`` of a study's values, as far as they are sound."""
    search, enqueue = raw.get("search"), raw.get("enqueue")
    knobs: dict[str, Knob | None] = {}
    if isinstance(search, dict):
        for path, value in search.items():
            found = list(_check_knob(path, value, written))
            yield from found
            knob = None if found else _knob(value)
            knobs[path] = knob and _normalized_knob(path, knob)
        yield from _check_budget(search, raw.get("base"))
        yield from _check_guesses_and_conditions(knobs, written)
    if isinstance(enqueue, list):
        for index, point in enumerate(enqueue):
            if isinstance(point, dict):
                yield from _check_point(index, point, knobs, written)


def check_sampler(study: StudyConfig) -> Iterator[Finding]:
    """Check that the named sampler can work here, and on this space."""
    place = ("sampler", "type")
    match study.sampler.type:
        case "cmaes" if find_spec("cmaes") is None:
            yield Finding(place, ": cmaes needs a package that is not installed: pip install 'moesearch[cmaes]'")
        case "cmaes" if len(study.search) < 2:
            yield Finding(place, ": cmaes needs two knobs or more; use tpe or gp")
        case "grid" if (num_points := size(study.search)) is None or num_points > MAX_GRID_POINTS:
            found = "a knob is continuous: give it a step" if num_points is None else f"there are {num_points:,} points"
            yield Finding(place, f": grid trains every point, of at most {MAX_GRID_POINTS:,}, and {found}")
        case _:
            pass


def check_feasibility(study: StudyConfig) -> Iterator[Finding]:
    """Check that the search, and each first try, leaves a point that keeps the rules across fields."""
    first_tries = [(("enqueue", index), point) for index, point in enumerate(study.enqueue)]
    for place, fixed in [(("search",), {}), *first_tries]:
        if any(is_feasible(study.base, point) for point in _candidates(study, fixed)):
            continue
        tried = list(_candidates(study, fixed))
        rule = _broken_rule(study, tried[0])
        yield Finding(place, f": {rule}" if len(tried) == 1 else f": none of {len(tried)} points is feasible: {rule}")


def _check_guesses_and_conditions(knobs: Mapping[str, Knob | None], written: Written) -> Iterator[Finding]:
    for path, knob in knobs.items():
        if knob is None:
            continue
        place: FieldPath = ("search", path)
        if knob.prior is not None and not (_fits(path, knob.prior.value) and _is_in(knob, path, knob.prior.value)):
            given = shown_as(knob.prior.value, written((*place, "prior", "value")))
            yield Finding((*place, "prior", "value"), f" must be {_allowed(knob)} (given {given})")
        if knob.when and not is_lane_field(path):
            yield Finding((*place, "when"), f": {path} changes a shape, and such a knob cannot be conditional")
        for other, values in knob.when.items():
            yield from _check_condition((*place, "when", other), path, other, values, knobs)


def _check_condition(
    place: FieldPath, path: str, other: str, values: tuple[object, ...], knobs: Mapping[str, Knob | None]
) -> Iterator[Finding]:
    if other not in knobs:
        hint = did_you_mean(other, knobs)
        yield Finding(place, f" is no knob of this search{hint}; a condition is about another knob")
        return
    parent = knobs[other]
    if parent is None:
        return
    if path in _conditions_of(other, knobs):
        yield Finding(place, f": {path} and {other} depend on each other")
    elif not isinstance(parent, CategoricalKnob):
        yield Finding(place, f" is {parent.type}; a condition is about a categorical knob")
    else:
        for value in values:
            if not (_fits(other, value) and _is_in(parent, other, value)):
                yield Finding(place, f" must be {_allowed(parent)} (given {shown(value)})")


def _conditions_of(path: str, knobs: Mapping[str, Knob | None]) -> set[str]:
    """The knobs that a knob depends on, itself included."""
    found: set[str] = set()
    waiting = [path]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            knob = knobs.get(path)
            waiting += [] if knob is None else list(knob.when)
    return found


def _is_in(knob: Knob, path: str, value: object) -> bool:
    return contains(knob, field_value(path, value))


def normalized(study: StudyConfig) -> StudyConfig:
    """The study with choices and first tries as their fields hold them: 2.0 experts are 2."""
    search = {path: _normalized_knob(path, knob) for path, knob in study.search.items()}
    enqueue = tuple({path: field_value(path, value) for path, value in point.items()} for point in study.enqueue)
    return study.model_copy(update={"search": search, "enqueue": enqueue})


def _normalized_knob(path: str, knob: Knob) -> Knob:
    changes: dict[str, object] = {}
    if isinstance(knob, CategoricalKnob):
        changes["choices"] = tuple(field_value(path, choice) for choice in knob.choices)
    if knob.when:
        changes["when"] = {
            other: tuple(field_value(other, value) if _fits(other, value) else value for value in values)
            for other, values in knob.when.items()
        }
    return knob.model_copy(update=changes) if changes else knob


def _knob(value: object) -> Knob | None:
    try:
        return _KNOB.validate_python(value)
    except ValidationError:
        return None


def _check_knob(path: str, value: object, written: Written) -> Iterator[Finding]:
    place = ("search", path)
    if path not in field_names():
        yield Finding(place, unknown_path(path))
        return
    if path in NOT_SEARCHED:
        yield Finding(place, f" is not searched: {NOT_SEARCHED[path]}")
        return
    match _knob(value):
        case CategoricalKnob(choices=choices):
            yield from _check_choices(path, choices, written)
        case IntKnob(low=low, high=high) | FloatKnob(low=low, high=high) as knob:
            schema = field_schema(path)
            needed = "integer" if isinstance(knob, IntKnob) else "number"
            if not accepts(schema, needed):
                way_on = "int" if accepts(schema, "integer") else "categorical"
                yield Finding(
                    (*place, "type"), f" is {knob.type}, but {path} is {expectation(schema)}; use type: {way_on}"
                )
                return
            for end, bound in (("low", low), ("high", high)):
                if not _fits(path, bound):
                    yield Finding((*place, end), must_be(schema, bound, written((*place, end))))
        case None:
            pass  # the knob's own form is wrong, which pydantic reports


def _check_choices(path: str, choices: tuple[object, ...], written: Written) -> Iterator[Finding]:
    seen: list[object] = []
    for index, choice in enumerate(choices):
        place = ("search", path, "choices", index)
        if not _fits(path, choice):
            yield Finding(place, must_be(field_schema(path), choice, written(place)))
        elif (value := field_value(path, choice)) in seen:
            yield Finding(place, f" ({shown_as(choice, written(place))}) is given twice")
        else:
            seen.append(value)


def _check_budget(search: Mapping[str, object], base: object) -> Iterator[Finding]:
    """At most one unit of the budget is searched, and it is the base's."""
    budget = base.get("budget") if isinstance(base, dict) else None
    given = [unit for unit in BUDGET_UNITS if isinstance(budget, dict) and budget.get(unit) is not None] or ["steps"]
    searched = [unit for unit in BUDGET_UNITS if f"budget.{unit}" in search]
    if len(searched) > 1:
        yield Finding(("search",), f": search one of {', '.join(f'budget.{unit}' for unit in searched)}, not several")
    for unit in searched:
        if unit not in given and len(searched) == 1:
            yield Finding(
                ("search", f"budget.{unit}"),
                f": the base's budget is in {given[0]}; give base.budget.{unit}, or search budget.{given[0]}",
            )


def _check_point(
    index: int, point: Mapping[str, object], knobs: Mapping[str, Knob | None], written: Written
) -> Iterator[Finding]:
    if not point:
        yield Finding(("enqueue", index), " is empty; give it values, or leave it out")
    for path, value in point.items():
        place = ("enqueue", index, path)
        if path not in field_names():
            yield Finding(place, unknown_path(path))
        elif path not in knobs:
            yield Finding(place, f" is no knob of this search; set base.{path}, or add it to search")
        elif isinstance(value, dict | list) or (knob := knobs[path]) is None:
            pass  # the form of the value or of its knob is wrong, which pydantic reports
        elif not (_fits(path, value) and contains(knob, field_value(path, value))):
            yield Finding(place, f" must be {_allowed(knob)} (given {shown_as(value, written(place))})")
        elif other := next((o for o, values in knob.when.items() if o in point and point[o] not in values), None):
            yield Finding(place, f" is not searched where {other} is {shown(point[other])}; leave it out")


def _fits(path: str, value: object) -> bool:
    if path not in field_names():
        return False
    try:
        field_value(path, value)
    except InfeasibleError:
        return False
    return True


def accepts(schema: JsonSchema, kind: str) -> bool:
    """Whether a field takes every number of a kind: a real-valued field takes whole numbers too."""
    options = schema.get("anyOf", [schema])
    return any(option.get("type") in {kind, "number"} for option in options)


def _allowed(knob: Knob) -> str:
    match knob:
        case CategoricalKnob():
            return f"one of the knob's choices {', '.join(map(shown, knob.choices))}"
        case IntKnob() | FloatKnob():
            steps = f" in steps of {knob.step}" if knob.step not in (None, 1) else ""
            return f"in the knob's range {knob.low} to {knob.high}{steps}"


def _broken_rule(study: StudyConfig, point: Mapping[str, object]) -> str:
    """The rules that an infeasible point breaks."""
    try:
        resolve(study.base, point)
    except InfeasibleError as error:
        return str(error)
    raise AssertionError(point)


def _candidates(study: StudyConfig, fixed: Mapping[str, object]) -> Iterator[dict[str, object]]:
    """The points that hold the fixed values: all of them, or, of a large space, some that are drawn at random."""
    free = {path: knob for path, knob in study.search.items() if path not in fixed}
    num_points = size(free)
    if num_points is not None and num_points <= _MAX_CANDIDATES:
        yield from (without_inactive(study.search, {**point, **fixed}) for point in points(free))
        return
    draw = random.Random(0)  # the same points each time
    for _ in range(_MAX_CANDIDATES):
        drawn = {path: _drawn(knob, draw) for path, knob in free.items()}
        yield without_inactive(study.search, {**drawn, **fixed})


def _drawn(knob: Knob, draw: random.Random) -> object:
    count = num_values(knob)
    if count is not None:
        return value_at(knob, draw.randrange(count))
    assert isinstance(knob, FloatKnob)
    return draw.uniform(knob.low, knob.high)
