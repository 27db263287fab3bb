"""The Optuna study of a study file: created once, joined by workers, and never continued under other settings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol

import optuna
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from pydantic import ValidationError

from moesearch.config.flat import flatten
from moesearch.config.quantities import RAISED
from moesearch.config.study import StudyConfig
from moesearch.errors import InputError
from moesearch.results.records import STUDY_CONFIG, WORKER, confirm_study_name
from moesearch.search.claims import Claims
from moesearch.search.endings import why_ended
from moesearch.search.leases import time_account
from moesearch.search.pruning import make_pruner
from moesearch.search.reserves import Limits, flops_limit, never
from moesearch.search.storage import store_lock
from moesearch.search.suggest import make_sampler
from moesearch.search.transfer import earlier_results, note_transfer
from moesearch.search.widening import is_widened, widen
from moesearch.search.worker_names import is_dead_here, worker_name

MAY_CHANGE = ("num_trials", "limits", "stop", "transfer_from", "run", "confirm", "control")
"""Parts of a study file that may change between runs: they decide how much is done, not what is compared."""


class Deletable(Protocol):
    """Checkpoints of a study, as far as a study that begins anew looks into them."""

    def clear(self) -> None:
        """Delete all of them."""


def open_study(
    config: StudyConfig, storage: RDBStorage, *, fresh: bool, checkpoints: Deletable | None = None
) -> optuna.Study:
    """Create the study of a study file, or check that the stored one asks the same; queue its ``enqueue`` trials.

    ``fresh`` deletes the stored study first, with its confirmation and its ``checkpoints``.

    Raises:
        InputError: the stored study has other settings, or is being worked on while ``fresh`` would delete it.
    """
    with store_lock(storage):
        names = {study.study_name for study in storage.get_all_studies()}
        if fresh and config.name in names:
            _delete(config.name, storage, names, checkpoints)
            names.discard(config.name)
        if config.name in names:
            _compare(config, storage)
        study = optuna.create_study(
            storage=storage,
            study_name=config.name,
            pruner=make_pruner(config),
            directions=["maximize" if name in RAISED else "minimize" for name in config.all_objectives],
            load_if_exists=True,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(config.all_objectives))
        for params in config.enqueue:
            study.enqueue_trial(dict(params), skip_if_exists=True)
        _store_config(config, storage)
        note_transfer(config, storage)
    return study


def join_study(config: StudyConfig, storage: RDBStorage) -> optuna.Study:
    """The stored study with the sampler and the pruner of its file, for a worker."""
    return optuna.load_study(
        study_name=config.name,
        storage=storage,
        sampler=make_sampler(config, earlier_results(config, storage)),
        pruner=make_pruner(config),
    )


def open_claims(
    config: StudyConfig,
    storage: RDBStorage,
    study: optuna.Study,
    *,
    is_search: bool,
    is_time_up: Callable[[], bool] | None = None,
) -> Claims:
    """What this process may take of a search, or of its confirmation, within the study's budgets.

    ``is_time_up`` is for a worker, which leases its time; without it the account of hours is looked at.

    Raises:
        InputError: a limit of the study file leaves no room for a trial.
    """
    if is_time_up is None:
        account = time_account(config, storage, is_search=is_search)
        is_time_up = never if account is None else account.is_spent
    return Claims(
        study,
        storage,
        store_lock(storage),
        worker_name(),
        config.num_trials if is_search else None,
        Limits(flops_limit(config, storage, is_search=is_search), is_time_up),
        **({"ends": partial(why_ended, config)} if is_search else {}),
    )


def _store_config(config: StudyConfig, storage: RDBStorage) -> None:
    study_id = storage.get_study_id_from_name(config.name)
    storage.set_study_system_attr(study_id, STUDY_CONFIG, config.model_dump(mode="json"))


def _compare(config: StudyConfig, storage: RDBStorage) -> None:
    study_id = storage.get_study_id_from_name(config.name)
    stored = storage.get_study_system_attrs(study_id).get(STUDY_CONFIG)
    num_trials = len(storage.get_all_trials(study_id, deepcopy=False))
    if stored is None:
        if num_trials == 0:  # its creation was cut short
            return
        raise InputError(
            f"the store holds a study {config.name} that moesearch did not write; "
            "give this one another `name:`, or another store with --storage"
        )
    kept = _comparable(stored)
    given = _comparable(config.model_dump(mode="json"))
    if (before := _known(stored)) is not None and is_widened(before, config):
        kept, given = _without_search(kept), _without_search(given)
    differences = list(_differences(kept, given))
    if not differences and before is not None and before.search != config.search:
        _refuse_if_at_work(config.name, storage, "then it may be given the wider space")
        widen(config, storage)
    if differences:
        raise InputError(
            f"study {config.name} is in the store with other settings:\n"
            + "".join(f"  {line}\n" for line in differences)
            + f"Its {num_trials} trials cannot be compared with new ones; only a wider `search` could go on with them. "
            "Two ways on: give the file a new `name:`, or delete them with --fresh"
        )


def _known(stored: Mapping[str, Any]) -> StudyConfig | None:
    """Stored settings; None if they are another version's."""
    try:
        return StudyConfig.model_validate(stored)
    except ValidationError:
        return None


def _without_search(values: Mapping[str, Any]) -> dict[str, Any]:
    return {path: value for path, value in values.items() if not path.startswith("search.")}


def _comparable(values: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a study's results, flat; a default that a later version added counts as written."""
    if (known := _known(values)) is not None:
        values = known.model_dump(mode="json")
    return flatten({name: value for name, value in values.items() if name not in MAY_CHANGE})


def _differences(stored: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[str]:
    for path in [*stored, *(path for path in given if path not in stored)]:
        if path not in given:
            yield f"{path}: {stored[path]!r} in the store, absent from the file"
        elif path not in stored:
            yield f"{path}: absent from the store, {given[path]!r} in the file"
        elif stored[path] != given[path]:
            yield f"{path}: {stored[path]!r} in the store, {given[path]!r} in the file"


def _refuse_if_at_work(name: str, storage: RDBStorage, then: str) -> None:
    running = storage.get_all_trials(storage.get_study_id_from_name(name), deepcopy=False, states=(TrialState.RUNNING,))
    at_work = {worker for trial in running if (worker := trial.user_attrs.get(WORKER)) and not is_dead_here(worker)}
    if at_work:
        raise InputError(
            f"study {name} is being worked on by {', '.join(sorted(at_work))} (host:process:start); "
            f"stop that first, {then}"
        )


def _delete(name: str, storage: RDBStorage, names: set[str], checkpoints: Deletable | None) -> None:
    _refuse_if_at_work(name, storage, "then --fresh may delete it")
    for doomed in (confirm_study_name(name), name):
        if doomed in names:
            optuna.delete_study(study_name=doomed, storage=storage)
    if checkpoints is not None:
        checkpoints.clear()
