"""What earlier studies found, for the sampler of a new one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from statistics import median

from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial

from moesearch.config.knobs import is_active
from moesearch.config.resolve import resolve
from moesearch.config.space import contains, in_order
from moesearch.config.study import StudyConfig
from moesearch.config.trial import TrialConfig
from moesearch.errors import InfeasibleError, InputError
from moesearch.results.frames import lookup
from moesearch.results.records import CONFIG, TRANSFERRED
from moesearch.results.standing import first_value
from moesearch.search.suggest import distributions


def earlier_results(config: StudyConfig, storage: RDBStorage) -> list[FrozenTrial]:
    """The complete trials of the studies of ``transfer_from`` that are points of this study, as trials of it.

    At another budget losses have another level, which would make a whole study look bad or good; so the values of each
    study are shifted to the median of the first. Their numbers are negative, so none is taken for one of this study.

    Raises:
        InputError: a study is not in the store.
    """
    names = {study.study_name: study._study_id for study in storage.get_all_studies()}
    results: list[FrozenTrial] = []
    level: float | None = None
    for name in config.transfer_from:
        if name not in names or name == config.name:
            raise InputError(
                f"study {config.name}: transfer_from names {name}, which is not another study of the store; "
                f"it holds {', '.join(sorted(names.keys() - {config.name})) or 'none yet'}"
            )
        found = list(_matching(config, storage.get_all_trials(names[name], deepcopy=False)))
        if not found:
            continue
        own_level = median(trial.values[0] for trial in found)
        level = own_level if level is None else level
        for trial in found:
            trial.values = [trial.values[0] + level - own_level]
            trial.number = -1 - len(results)
            results.append(trial)
    return results


def note_transfer(config: StudyConfig, storage: RDBStorage) -> None:
    """Write down how many results of which study the sampler knows."""
    if config.transfer_from:
        study_id = storage.get_study_id_from_name(config.name)
        storage.set_study_system_attr(study_id, TRANSFERRED, len(earlier_results(config, storage)))


def _matching(config: StudyConfig, trials: list[FrozenTrial]) -> Iterator[FrozenTrial]:
    for trial in trials:
        if first_value(trial) is None or CONFIG not in trial.system_attrs:
            continue
        values = trial.system_attrs[CONFIG]
        params: dict[str, object] = {}
        for path in in_order(config.search):
            if is_active(config.search[path], params):
                params[path] = lookup(values, path)
        if not all(contains(config.search[path], value) for path, value in params.items()):
            continue
        if _is_same_but_for_budget(config, params, TrialConfig.model_validate(values)):
            result = copy.copy(trial)
            result.params = params
            result.distributions = {path: d for path, d in distributions(config.search).items() if path in params}
            yield result


def _is_same_but_for_budget(config: StudyConfig, params: dict[str, object], earlier: TrialConfig) -> bool:
    try:
        ours = resolve(config.base, params)
    except InfeasibleError:
        return False
    return ours.model_copy(update={"budget": earlier.budget}).fingerprint() == earlier.fingerprint()
