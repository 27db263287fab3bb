"""Shape families: trials that differ in a shape knob cannot share a model, so a worker trains one family at a time.

docs/decisions/0006-shape-families.md weighs how long it stays with one. A study that searches no shape knob has one
family, and a worker with one lane is never bound to any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moesearch.config.resolve import field_names, is_lane_field, value_of
from moesearch.config.space import num_values
from moesearch.config.study import StudyConfig
from moesearch.config.trial import TrialConfig

Family = Mapping[str, object]
"""The values of the fields that tell families apart: dotted path -> value."""

_DERIVE_WIDTHS = {"moe.iso_flops", "moe.every"}
"""Fields under which the width of a layer depends on ``top_k``."""

TRIALS_PER_LANE = 2
"""Trials of a visit, per lane: each lane is filled and refilled once before the choice is free again."""


def shape_knobs(study: StudyConfig) -> tuple[str, ...]:
    """The knobs that part a study into families: shape fields, and ``top_k`` where a width follows from it."""
    base = study.base.moe
    is_width_derived = base.iso_flops or base.every > 1 or not study.search.keys().isdisjoint(_DERIVE_WIDTHS)
    return tuple(path for path in study.search if not is_lane_field(path) or (path == "moe.top_k" and is_width_derived))


def shape_fields(study: StudyConfig) -> tuple[str, ...]:
    """Every field that tells the families of planned runs apart: the dense control is no point of the search."""
    fields = [path for path in field_names() if not is_lane_field(path)]
    return (*fields, *(path for path in shape_knobs(study) if path not in fields))


def num_families(study: StudyConfig) -> int | None:
    """Families of a study's space, feasible or not; None where a shape knob is continuous."""
    num_families = 1
    for path in shape_knobs(study):
        count = num_values(study.search[path])
        if count is None:
            return None
        num_families *= count
    return num_families


def is_of(params: Mapping[str, object], family: Family) -> bool:
    """Whether parameters, which may be incomplete, are known to be of a family."""
    return all(path in params and params[path] == value for path, value in family.items())


def family_of(config: TrialConfig, fields: tuple[str, ...]) -> Family:
    """The family of a trial, told by these fields."""
    return {path: value_of(config, path) for path in fields}


@dataclass
class Visit:
    """A worker's stay with one family, from empty lanes to empty lanes."""

    fields: tuple[str, ...]
    """That tell families apart."""
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

    def admits(self, config: TrialConfig) -> bool:
        """Count a trial in if it can train beside the others; the visit is over if it cannot."""
        family = family_of(config, self.fields)
        if self._family is not None and family != self._family:
            self.is_over = True
            return False
        self._num_trials = 1 if self.wanted is None else self._num_trials + 1
        self._family = family
        return True
