"""A study whose space became wider goes on with its trials: each is a point of the wider space as well."""

from __future__ import annotations

import sqlalchemy
from optuna.distributions import CategoricalDistribution, distribution_to_json, json_to_distribution
from optuna.storages import RDBStorage

from moesearch.config.knobs import CategoricalKnob, Knob, exact
from moesearch.config.space import contains
from moesearch.config.study import StudyConfig
from moesearch.results.frames import lookup
from moesearch.results.records import confirm_study_name
from moesearch.search.suggest import distributions

_ROWS = sqlalchemy.text(
    "SELECT params.param_id, params.param_value, params.distribution_json FROM trial_params AS params "
    "JOIN trials ON trials.trial_id = params.trial_id WHERE trials.study_id = :study AND params.param_name = :name"
)
_CHANGE = sqlalchemy.text(
    "UPDATE trial_params SET param_value = :value, distribution_json = :distribution WHERE param_id = :id"
)
_ADD = sqlalchemy.text(
    "INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json) "
    "SELECT trials.trial_id, :name, :value, :distribution FROM trials WHERE trials.study_id = :study "
    "AND EXISTS (SELECT 1 FROM trial_params AS some WHERE some.trial_id = trials.trial_id) "
    "AND NOT EXISTS (SELECT 1 FROM trial_params AS same WHERE same.trial_id = trials.trial_id "
    "AND same.param_name = :name)"
)


def is_widened(stored: StudyConfig, given: StudyConfig) -> bool:
    """Whether every point of the stored space is one of the given space, which has more.

    A knob that is new must be able to have the value that the base gave it until now.
    """
    if stored.search == given.search or not stored.search.keys() <= given.search.keys():
        return False
    base = stored.base.model_dump(mode="json")
    return all(
        _holds_all_of(knob, stored.search[path])
        if path in stored.search
        else not knob.when and contains(knob, lookup(base, path))
        for path, knob in given.search.items()
    )


def widen(config: StudyConfig, storage: RDBStorage) -> None:
    """Let the trials of a study, and of its confirmation, have the distributions of its file.

    Optuna keeps the choices of a categorical knob for good, since a value is stored as its place among them. So places
    are renewed, in one transaction; ranges of numbers may change at any time.
    """
    ids = {study.study_name: study._study_id for study in storage.get_all_studies()}
    studies = [ids[name] for name in (config.name, confirm_study_name(config.name)) if name in ids]
    base = config.base.model_dump(mode="json")
    with storage.engine.begin() as connection:
        for study_id in studies:
            for path, distribution in distributions(config.search).items():
                as_json = distribution_to_json(distribution)
                rows = connection.execute(_ROWS, {"study": study_id, "name": path}).all()
                for param_id, place, stored in rows:
                    if isinstance(distribution, CategoricalDistribution) and stored != as_json:
                        value = json_to_distribution(stored).to_external_repr(place)
                        new = {"id": param_id, "value": distribution.to_internal_repr(value), "distribution": as_json}
                        connection.execute(_CHANGE, new)
                value = lookup(base, path)
                if not config.search[path].when and contains(config.search[path], value):
                    place = distribution.to_internal_repr(value)
                    added = {"study": study_id, "name": path, "value": place, "distribution": as_json}
                    connection.execute(_ADD, added)


def _holds_all_of(knob: Knob, before: Knob) -> bool:
    """Whether the knob can have every value that it could have before."""
    if knob == before:
        return True
    if knob.when != before.when or knob.prior != before.prior:
        return False
    if isinstance(knob, CategoricalKnob) or isinstance(before, CategoricalKnob):
        if not (isinstance(knob, CategoricalKnob) and isinstance(before, CategoricalKnob)):
            return False
        return all(contains(knob, choice) for choice in before.choices)
    if type(knob) is not type(before) or knob.log != before.log:
        return False
    is_beyond = knob.low <= before.low and knob.high >= before.high
    return is_beyond and _is_finer(knob.step, before.step, float(before.low) - float(knob.low))


def _is_finer(step: float | None, before: float | None, shift: float) -> bool:
    """Whether all places of a grid lie on the new one, whose start is ``shift`` below."""
    if step is None:
        return True
    return before is not None and exact(before) % exact(step) == 0 and exact(shift) % exact(step) == 0
