"""Shape families: trials that differ in a shape knob cannot share a model, so a worker trains one family at a time.

docs/decisions/0006-shape-families.md weighs how long it stays with one. A study that searches no shape knob has one
family, and a worker with one lane is never bound to any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moesearch.config.knobs import Knob
from moesearch.config.resolve import is_lane_field
from moesearch.config.space import num_values

Family = Mapping[str, object]
"""The values of a study's shape knobs: dotted path -> value."""

TRIALS_PER_LANE = 2
"""Trials of a visit, per lane: each lane is filled and refilled once before the choice is free again."""


def shape_knobs(search: Mapping[str, Knob]) -> tuple[str, ...]:
    """The knobs that part a study into families."""
    return tuple(path for path in search if not is_lane_field(path))


def num_families(search: Mapping[str, Knob]) -> int | None:
    """Families of a space, feasible or not; None where a shape knob is continuous."""
    num_families = 1
    for path in shape_knobs(search):
        count = num_values(search[path])
        if count is None:
            return None
        num_families *= count
    return num_families


def is_of(params: Mapping[str, object], family: Family) -> bool:
    """Whether parameters, which may be incomplete, are known to be of a family."""
    return all(path in params and params[path] == value for path, value in family.items())


@dataclass
class Visit:
    """A worker's stay with one family, from empty lanes to empty lanes."""

    shape_knobs: tuple[str, ...]
    num_lanes: int
    is_over: bool = False
    """Whether the lanes must drain, since a trial of another family is next."""
    _family: Family | None = field(default=None, init=False)
    _num_trials: int = field(default=0, init=False)
    """Since the choice was free the last time."""

    @property
    def wanted(self) -> Family | None:
        """The family of the next trial; None leaves the choice free."""
        return None if self._num_trials >= TRIALS_PER_LANE * self.num_lanes else self._family

    def admits(self, params: Mapping[str, object]) -> bool:
        """Count a trial in if it can train beside the others; the visit is over if it cannot."""
        family = {path: params[path] for path in self.shape_knobs}
        if self._family is not None and family != self._family:
            self.is_over = True
            return False
        self._num_trials = 1 if self.wanted is None else self._num_trials + 1
        self._family = family
        return True
