"""Everything the store knows of one study, read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import pandas as pd
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from moesearch.config.knobs import active_values
from moesearch.config.labels import config_label
from moesearch.config.quantities import Loss
from moesearch.config.resolve import resolve
from moesearch.config.study import StudyConfig
from moesearch.config.trial import TrialConfig
from moesearch.errors import InfeasibleError, StoreError, UnknownStudyError
from moesearch.results import records
from moesearch.results.confirmation import confirm_runs
from moesearch.results.frames import (
    as_utc,
    frame_of_curves,
    frame_of_trials,
    lookup,
    outcome_of,
)
from moesearch.results.lookup import all_names, unknown_study
from moesearch.results.ranking import COSTS, configurations
from moesearch.results.standing import as_they_stand
from moesearch.results.statistics import pooled_deviation
from moesearch.results.verdict import Candidate, LeftOut, Unit, Verdict, decide

Storage = BaseStorage
"""The store, under a name for those who only pass it on."""

LEADERS_SHOWN = 10
UNITS: Mapping[Loss, Unit] = {"val_loss": "nats", "val_bpb": "bits per byte"}


@dataclass(frozen=True)
class Session:
    """One run of the command. Times are UTC; ``ended`` is None while it runs, and for ever if it was killed."""

    started: datetime
    ended: datetime | None
    workers: int | None
    device: str
    host: str
    versions: Mapping[str, str]
    command: str


@dataclass(frozen=True)
class StudyResults:
    """One study: its configuration, its trials and its confirmation."""

    name: str
    config: StudyConfig
    sessions: tuple[Session, ...]
    corpus: Mapping[str, Any]
    stored_verdict: Verdict | None
    search_trials: tuple[FrozenTrial, ...]
    confirm_trials: tuple[FrozenTrial, ...]
    """The runs that the verdict rests on."""
    rate_trials: tuple[FrozenTrial, ...] = ()
    """The runs before them, that found each finalist's learning rate."""
    search_end: str = ""
    """Why the search ended before its number of trials: a limit or a stopping rule; empty where neither did."""
    num_transferred: int = 0
    """Results of other studies that the sampler knew."""

    @cached_property
    def trials(self) -> pd.DataFrame:
        return frame_of_trials(self.search_trials, tuple(self.config.search), self.config.curve)

    @cached_property
    def curves(self) -> pd.DataFrame:
        return frame_of_curves(self.search_trials, self.config.curve)

    @cached_property
    def confirm(self) -> pd.DataFrame:
        """The confirmation trials, as ``trials``."""
        return frame_of_trials(self.confirm_trials, tuple(self.config.search), self.config.curve)

    @cached_property
    def rates(self) -> pd.DataFrame:
        """The runs that found learning rates, as ``trials``."""
        return frame_of_trials(self.rate_trials, tuple(self.config.search), self.config.curve)

    @cached_property
    def ranking(self) -> pd.DataFrame:
        """One row per configuration, best first."""
        return configurations(self.trials, tuple(self.config.search), self.config.curve)

    @cached_property
    def costs(self) -> pd.DataFrame:
        """What each configuration costs, by its fingerprint.

        From the search; for one that the search did not train to an end, or never had (the dense control), from its
        confirmation runs.
        """
        runs = self.confirm[self.confirm["outcome"] == "complete"]
        confirmed = runs.groupby("fingerprint")[list(COSTS)].mean()
        return self.ranking.set_index("fingerprint")[list(COSTS)].astype(float).combine_first(confirmed.astype(float))

    @cached_property
    def verdict(self) -> Verdict:
        """What the confirmation runs say now, with the stored opening of the test split; else the search's leaders."""
        live = decide(confirm_runs(self), num_searched=self.num_configurations, unit=UNITS[self.config.curve])
        if live.conclusion in ("nothing", "unconfirmed"):
            return _unconfirmed(self, live.left_out)
        stored = self.stored_verdict
        # The split was opened for one configuration; its loss says nothing of another.
        if stored is not None and stored.ranking and stored.ranking[0].fingerprint == live.ranking[0].fingerprint:
            return replace(live, test=stored.test)
        return live

    @cached_property
    def baseline(self) -> TrialConfig:
        """What others are measured against: the first configuration of ``enqueue``, else the base."""
        if not self.config.enqueue:
            return self.config.base
        try:
            return resolve(self.config.base, self.config.enqueue[0])
        except InfeasibleError:
            return self.config.base

    @cached_property
    def baseline_fingerprint(self) -> str:
        return self.baseline.fingerprint()

    def knobs_of(self, config: TrialConfig) -> dict[str, Any]:
        """A configuration's values of the knobs of this study."""
        values = config.model_dump(mode="json")
        return {path: lookup(values, path) for path in self.config.search}

    def label_of(self, config: TrialConfig) -> str:
        """Name of a configuration by the knobs of this study that are searched beside the others' values."""
        return config_label(active_values(self.config.search, self.knobs_of(config)))

    @property
    def num_configurations(self) -> int:
        """Configurations that were trained to an end or pruned."""
        return int(((self.ranking["num_seeds"] > 0) | (self.ranking["num_pruned"] > 0)).sum())

    @property
    def num_finished(self) -> int:
        """Trials that count against the study's budget."""
        return int(self.trials["outcome"].isin(records.FINISHED_OUTCOMES).sum())

    @property
    def is_running(self) -> bool:
        """Whether the store says that a trial is being trained. One whose worker was killed says so as well."""
        return any(
            trial.state == TrialState.RUNNING
            for trial in (*self.search_trials, *self.rate_trials, *self.confirm_trials)
        )

    @property
    def is_finished(self) -> bool:
        """Whether all that the study file asks for has been done."""
        is_confirmed = self.config.confirm.top == 0 or self.stored_verdict is not None
        is_searched = self.num_finished >= self.config.num_trials or bool(self.search_end)
        return is_searched and is_confirmed and not self.is_running

    @property
    def wall_seconds(self) -> float:
        """Time in which at least one session of the command ran; a killed one counts until its last sign of life."""
        signs = [
            as_utc(moment) for trial in self._all_trials for moment in (trial.datetime_start, trial.datetime_complete)
        ]
        last_sign = max((sign for sign in signs if sign is not None), default=None)
        total, covered_until = 0.0, datetime.min.replace(tzinfo=UTC)
        for session in self.sessions:
            start = max(session.started, covered_until)
            end = session.ended or max(session.started, last_sign or session.started)
            total += max(0.0, (end - start).total_seconds())
            covered_until = max(covered_until, end)
        return total

    @property
    def _all_trials(self) -> tuple[FrozenTrial, ...]:
        return (*self.search_trials, *self.rate_trials, *self.confirm_trials)

    def trial(self, number: int) -> FrozenTrial:
        """The trial of the search with this number.

        Raises:
            UnknownStudyError: there is none.
        """
        count = len(self.search_trials)
        if not 0 <= number < count:
            held = f"its trials are numbered 0 to {count - 1}" if count else "it has no trials yet"
            raise UnknownStudyError(f"study {self.name} has no trial {number}; {held}")
        return self.search_trials[number]

    def trial_config(self, number: int) -> TrialConfig:
        """The resolved configuration of a trial, seeds included.

        Raises:
            UnknownStudyError: there is no such trial, or it was never resolved (waiting, or infeasible).
        """
        values = self.trial(number).system_attrs.get(records.CONFIG)
        if values is None:
            outcome = outcome_of(self.trial(number))
            raise UnknownStudyError(f"trial {number} of study {self.name} has no configuration yet; it is {outcome}")
        return TrialConfig.model_validate(values)


def read_study(storage: Storage, study_name: str) -> StudyResults:
    """Read one study and its confirmation.

    Raises:
        UnknownStudyError: the storage holds no study of that name, or one that moesearch did not write.
        StoreError: the study's configuration is not one that this version knows.
    """
    names = all_names(storage)
    if study_name not in names:
        raise unknown_study(study_name, names)
    study_id = storage.get_study_id_from_name(study_name)
    attrs = storage.get_study_system_attrs(study_id)
    if records.STUDY_CONFIG not in attrs:
        raise UnknownStudyError(f"study {study_name} is in the store, but moesearch did not write it")
    try:
        config = StudyConfig.model_validate(attrs[records.STUDY_CONFIG])
    except ValidationError as error:
        raise StoreError(f"study {study_name} was written by another version of moesearch: {error}") from None
    confirm_name = records.confirm_study_name(study_name)
    confirm_trials: list[FrozenTrial] = []
    if confirm_name in names:
        confirm_trials = storage.get_all_trials(storage.get_study_id_from_name(confirm_name), deepcopy=False)
    verdict = attrs.get(records.VERDICT)
    return StudyResults(
        name=study_name,
        config=config,
        sessions=_sessions(attrs),
        corpus=attrs.get(records.CORPUS_FACTS, {}),
        stored_verdict=None if verdict is None else Verdict.from_json(verdict),
        search_trials=tuple(as_they_stand(storage.get_all_trials(study_id, deepcopy=False))),
        confirm_trials=tuple(trial for trial in confirm_trials if records.RATE not in trial.system_attrs),
        rate_trials=tuple(trial for trial in confirm_trials if records.RATE in trial.system_attrs),
        search_end=attrs.get(records.SEARCH_END, ""),
        num_transferred=attrs.get(records.TRANSFERRED, 0),
    )


def _unconfirmed(results: StudyResults, left_out: tuple[LeftOut, ...]) -> Verdict:
    """What the search alone says: its leaders, on the seeds that it happened to train."""
    complete = results.ranking[results.ranking["num_seeds"] > 0]
    seed_values = results.trials.query("outcome == 'complete'").groupby("fingerprint")["value"].apply(list)
    leaders = tuple(
        Candidate(
            fingerprint=str(row["fingerprint"]),
            label=str(row["label"]),
            params={path: row[path] for path in results.config.search},
            num_seeds=int(row["num_seeds"]),
            mean=float(row["value"]),
            low=None,
            high=None,
            search_value=float(row["value"]),
            is_baseline=row["fingerprint"] == results.baseline_fingerprint,
        )
        for row in complete.head(LEADERS_SHOWN).to_dict("records")
    )
    return Verdict(
        "unconfirmed" if leaders else "nothing",
        unit=UNITS[results.config.curve],
        ranking=leaders,
        num_seeds=leaders[0].num_seeds if leaders else 0,
        seed_noise=pooled_deviation(list(seed_values)),
        num_searched=results.num_configurations,
        left_out=left_out,
    )


def _sessions(attrs: Mapping[str, Any]) -> tuple[Session, ...]:
    """Runs of the command, oldest first."""
    found = [_session(values) for key, values in attrs.items() if key.startswith(records.SESSION_PREFIX)]
    return tuple(sorted(found, key=lambda session: session.started))


def _session(values: Mapping[str, Any]) -> Session:
    ended = values.get("ended")
    return Session(
        started=datetime.fromtimestamp(values["started"], UTC),
        ended=None if ended is None else datetime.fromtimestamp(ended, UTC),
        workers=values.get("workers"),
        device=str(values.get("device", "")),
        host=str(values.get("host", "")),
        versions=values.get("versions", {}),
        command=str(values.get("command", "")),
    )
