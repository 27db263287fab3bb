"""Where every study of a store stands: read only, and by few queries, so that one can look while others write."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL

from moesearch.config.confirm_runs import num_confirm_runs
from moesearch.config.labels import config_label, running_label
from moesearch.config.secrets import mask_url
from moesearch.errors import StoreError
from moesearch.results import records
from moesearch.results.standing import first_value, milestones_of

SILENT_SECONDS = 120
"""After this long without a sign of life a trial may be taken over by another worker."""

Phase = Literal["search", "confirm", "done"]
TrialPhase = Literal["search", "confirm"]

# The count of a study's trials by state and outcome, without loading one of them: of 10,000 trials that takes seconds.
# One that waits where it was stopped (see ``standing.is_stopped``) has a rung.
_COUNTS = sqlalchemy.text(
    "SELECT trials.study_id, trials.state, outcomes.value_json, rungs.key, COUNT(*) FROM trials "
    "LEFT JOIN trial_user_attributes AS outcomes ON outcomes.trial_id = trials.trial_id AND outcomes.key = :outcome "
    "LEFT JOIN trial_system_attributes AS rungs "
    "ON rungs.trial_id = trials.trial_id AND rungs.key = :stopped_at AND trials.state = 'WAITING' "
    "AND rungs.value_json = (SELECT CAST(MAX(curves.step) AS TEXT) FROM trial_intermediate_values AS curves "
    "WHERE curves.trial_id = trials.trial_id) "
    "GROUP BY trials.study_id, trials.state, outcomes.value_json, rungs.key"
)


@dataclass(frozen=True)
class _Kind:
    """What is counted of a trial."""

    state: TrialState
    outcome: str | None
    is_stopped: bool
    """Whether it was stopped at a rung, and may be promoted yet."""

    @property
    def is_done(self) -> bool:
        has_ended_well = self.outcome is None or self.outcome in records.FINISHED_OUTCOMES
        return self.is_stopped or (has_ended_well and self.state in (TrialState.COMPLETE, TrialState.PRUNED))


@dataclass(frozen=True)
class RunningTrial:
    """A trial that the store takes to be in training."""

    phase: TrialPhase
    number: int
    label: str
    milestone: int
    num_milestones: int
    value: float | None
    """The objective at the last milestone; None before the first."""
    started: datetime | None
    """UTC."""
    worker: str
    """``host:pid:start``; empty before the worker has signed."""
    is_silent: bool
    """Whether its worker has given no sign of life for SILENT_SECONDS."""


@dataclass(frozen=True)
class StudyOverview:
    """A study in a few numbers; its confirmation is a phase of it."""

    name: str
    objective: str
    num_trials: int
    complete: int
    pruned: int
    infeasible: int
    failed: int
    confirmed: int
    num_confirm_runs: int
    """Planned ones; before the confirmation begins, as many as the study file asks for."""
    is_confirmed: bool
    """Whether the confirmation is over, or none is asked for."""
    open_session: str | None
    """The process (``host:pid:start``) of the last run of the command, if it has not said that it ended; one that was
    killed never does. Empty for a run of an earlier version."""
    search_end: str
    """Why the search ended before its number of trials, as a sentence; empty where it did not."""
    best_number: int | None
    best_label: str
    best_value: float | None
    running: tuple[RunningTrial, ...]

    @property
    def finished(self) -> int:
        """Trials that count against ``num_trials``."""
        return self.complete + self.pruned

    @property
    def phase(self) -> Phase:
        """What the study is at, or would go on with."""
        if self.finished < self.num_trials and not self.search_end:
            return "search"
        return "done" if self.is_confirmed else "confirm"


def read_overview(url: str) -> tuple[StudyOverview, ...]:
    """All studies of a store that moesearch wrote, by name. Nothing is created, locked or changed.

    Raises:
        StoreError: there is no store, or it cannot be read.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise StoreError(
            "this is no storage URL; write sqlite:///runs/optuna.db or postgresql+psycopg://user@host/database"
        ) from None
    place = mask_url(url)
    _see_that_it_is_there(parsed)
    try:
        with opened_to_read(parsed) as storage:
            return tuple(_overviews(storage))
    except ImportError:
        raise StoreError(
            f"{place}: its driver is not installed; `pip install psycopg[binary]` brings PostgreSQL's"
        ) from None
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        cause = getattr(error.__cause__, "orig", None) or getattr(error, "orig", None) or error
        reason = str(cause).strip().partition("\n")[0]
        raise StoreError(f"{place}: cannot be read as a study store: {reason}") from None
    except Exception as error:  # of a damaged file the libraries raise whatever they stumble over
        raise StoreError(f"{place}: is damaged, or not of moesearch: a record holds {error!r}") from None


def _see_that_it_is_there(url: URL) -> None:
    if url.get_backend_name() == "sqlite" and not str(url.database).startswith("file:"):
        path = Path(url.database or "")
        if not path.is_file():
            raise StoreError(
                f"{path}: there is no store yet; run a study first (python -m moesearch.run STUDY.yaml), "
                "or say where it is with --runs DIR or --storage URL"
            )


@contextmanager
def opened_to_read(url: URL) -> Iterator[RDBStorage]:
    """The store for those who only read: no lock that a worker could wait for; on SQLite the file is read-only."""
    if url.get_backend_name() == "sqlite" and not str(url.database).startswith("file:"):
        uri = Path(url.database or "").absolute().as_uri()
        url = url.set(database=uri, query={"mode": "ro", "uri": "true"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats
        storage = RDBStorage(
            # Optuna formats it, as a template of its own.
            url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}"),
            skip_table_creation=True,
            skip_compatibility_check=True,
            heartbeat_interval=SILENT_SECONDS // 4,
            grace_period=SILENT_SECONDS,
        )
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _overviews(storage: RDBStorage) -> Iterator[StudyOverview]:
    ids = {study.study_name: study._study_id for study in storage.get_all_studies()}
    counts = _counts(storage)
    for name, study_id in sorted(ids.items()):
        attrs = storage.get_study_system_attrs(study_id)
        if records.STUDY_CONFIG in attrs:
            confirm_id = ids.get(records.confirm_study_name(name))
            yield _overview(storage, name, study_id, confirm_id, attrs, counts)


def _counts(storage: RDBStorage) -> Mapping[int, Counter[_Kind]]:
    """Study id -> how many trials there are of each kind."""
    counts: dict[int, Counter[_Kind]] = {}
    names = {"outcome": records.OUTCOME, "stopped_at": records.STOPPED_AT}
    with storage.engine.connect() as connection:
        for study_id, state, outcome, rung, count in connection.execute(_COUNTS, names):
            kind = _Kind(TrialState[state], None if outcome is None else json.loads(outcome), rung is not None)
            counts.setdefault(study_id, Counter())[kind] += count
    return counts


def _overview(
    storage: RDBStorage,
    name: str,
    study_id: int,
    confirm_id: int | None,
    attrs: Mapping[str, Any],
    counts: Mapping[int, Counter[_Kind]],
) -> StudyOverview:
    config = attrs[records.STUDY_CONFIG]
    search = counts.get(study_id, Counter())
    confirm = Counter() if confirm_id is None else counts.get(confirm_id, Counter())
    finished = sum(count for kind, count in search.items() if kind.is_done)
    complete = sum(count for kind, count in search.items() if kind.is_done and kind.state is TrialState.COMPLETE)
    infeasible = sum(count for kind, count in search.items() if kind.outcome == "infeasible")
    void = sum(count for kind, count in search.items() if kind.state.is_finished() and not kind.is_done)
    best = _best(storage, study_id, is_constrained=bool(config.get("constraints"))) if complete else None
    milestones = config["base"]["budget"]["milestones"]
    running = [*_running(storage, study_id, "search", milestones)]
    if confirm_id is not None:
        running += _running(storage, confirm_id, "confirm", milestones)
    return StudyOverview(
        name=name,
        objective=config["objective"],
        num_trials=config["num_trials"],
        complete=complete,
        pruned=finished - complete,
        infeasible=infeasible,
        failed=void - infeasible,
        confirmed=sum(count for kind, count in confirm.items() if kind.state.is_finished()),
        num_confirm_runs=confirm.total() or _planned_runs(config),
        is_confirmed=config["confirm"]["top"] == 0 or records.VERDICT in attrs,
        open_session=_open_session(attrs),
        search_end=attrs.get(records.SEARCH_END, ""),
        best_number=None if best is None else best.number,
        best_label="" if best is None else config_label(best.params),
        best_value=None if best is None else best.values[0],
        running=tuple(running),
    )


def _planned_runs(config: Mapping[str, Any]) -> int:
    confirm = config["confirm"]
    return num_confirm_runs(
        top=confirm["top"],
        seeds=confirm["seeds"],
        lr_search=confirm.get("lr_search", False),
        lr_is_knob="optim.lr" in config["search"],
        has_baseline=bool(config["enqueue"]),
        has_control=config.get("control") == "dense",
    )


def _best(storage: RDBStorage, study_id: int, *, is_constrained: bool) -> FrozenTrial | None:
    """The best complete trial by the leading objective. One query finds it, unless there are several or constraints."""
    if len(storage.get_study_directions(study_id)) == 1 and not is_constrained:
        return storage.get_best_trial(study_id)
    trials = storage.get_all_trials(study_id, deepcopy=False, states=(TrialState.COMPLETE,))
    candidates = [trial for trial in trials if first_value(trial) is not None]
    return min(candidates, key=lambda trial: first_value(trial) or 0.0, default=None)


def _running(storage: RDBStorage, study_id: int, phase: TrialPhase, milestones: int) -> Iterator[RunningTrial]:
    trials = storage.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
    # The rule by which Optuna itself takes a trial from its worker, by the clock of the database.
    silent = set(storage._get_stale_trial_ids(study_id)) if trials else set()
    for trial in trials:
        yield _running_trial(trial, phase, milestones, is_silent=trial._trial_id in silent)


def _running_trial(trial: FrozenTrial, phase: TrialPhase, milestones: int, *, is_silent: bool) -> RunningTrial:
    return RunningTrial(
        phase=phase,
        number=trial.number,
        label=running_label(trial.params),
        milestone=trial.last_step or 0,
        num_milestones=milestones_of(trial, milestones),
        value=None if trial.last_step is None else trial.intermediate_values[trial.last_step],
        started=None if trial.datetime_start is None else trial.datetime_start.astimezone(UTC),
        worker=trial.user_attrs.get(records.WORKER, ""),
        is_silent=is_silent,
    )


def _open_session(attrs: Mapping[str, Any]) -> str | None:
    sessions = [value for key, value in attrs.items() if key.startswith(records.SESSION_PREFIX)]
    last = max(sessions, key=lambda session: session["started"], default=None)
    return None if last is None or last["ended"] is not None else last.get("process", "")
