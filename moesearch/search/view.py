"""MLflow as a view that a worker writes on the way. Whatever goes wrong with it costs the view, never a trial."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Literal, Protocol, cast

import optuna
from optuna.trial import FrozenTrial, TrialState

from moesearch.config.flat import flatten
from moesearch.errors import TrackingError
from moesearch.results.records import MLFLOW_RUN_ID, OUTCOME, Outcome
from moesearch.results.standing import as_they_stand
from moesearch.search.assignments import Assignment
from moesearch.search.claims import fenced
from moesearch.tracking.labels import Phase, milestone_metrics, run_name, trial_tags
from moesearch.tracking.mlflow import MLflowTracker, RunStatus, run_status
from moesearch.training.points import EvalPoint

_EndState = Literal["COMPLETE", "PRUNED", "FAIL"]

_logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """What is used of MLflowTracker; every method may raise TrackingError."""

    def start_run(self, name: str, params: Mapping[str, object], tags: Mapping[str, str]) -> str: ...
    def resume_run(self, run_id: str) -> None: ...
    def pause_run(self, run_id: str) -> None: ...
    def log_dataset(self, run_id: str, name: str, sha256: str) -> None: ...
    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int) -> None: ...
    def finish_run(self, run_id: str, status: RunStatus, tags: Mapping[str, str]) -> None: ...


class RunView:
    """The runs of the trials that a worker has; silent for good after the first failure, which is logged."""

    def __init__(self, tracker: Tracker | None, study_name: str, phase: Phase, corpus: tuple[str, str]) -> None:
        """``corpus`` is the name of the text and its SHA-256."""
        self._tracker = tracker
        self._corpus = corpus
        self._study_name = study_name
        self._phase = phase
        self._run_ids: dict[int, str] = {}

    def begin(self, assignment: Assignment, facts: Mapping[str, object]) -> None:
        """Start the trial's run, or take up the one that an earlier worker started."""
        trial = assignment.trial

        def start(tracker: Tracker) -> None:
            run_id = trial.user_attrs.get(MLFLOW_RUN_ID)
            if run_id is not None:
                tracker.resume_run(run_id)
            else:
                name = run_name(trial.params, trial.number)
                params = {**flatten(assignment.config.model_dump(mode="json")), **facts}
                run_id = tracker.start_run(name, params, self._tags(assignment))
                tracker.log_dataset(run_id, *self._corpus)
                with fenced(trial):
                    trial.set_user_attr(MLFLOW_RUN_ID, run_id)
            self._run_ids[trial.number] = run_id

        self._try(start)

    def log(self, assignment: Assignment, point: EvalPoint) -> None:
        metrics = milestone_metrics(asdict(point))
        self._try_run(assignment.trial, lambda tracker, run_id: tracker.log_metrics(run_id, metrics, point.step))

    def pause(self, assignment: Assignment) -> None:
        self._try_run(assignment.trial, lambda tracker, run_id: tracker.pause_run(run_id))

    def end(self, assignment: Assignment, state: TrialState, outcome: Outcome) -> None:
        status, tags = run_status(cast("_EndState", state.name)), self._tags(assignment, outcome)
        self._try_run(assignment.trial, lambda tracker, run_id: tracker.finish_run(run_id, status, tags))
        self._run_ids.pop(assignment.trial.number, None)

    def _tags(self, assignment: Assignment, outcome: Outcome | None = None) -> dict[str, str]:
        return trial_tags(
            study=self._study_name,
            number=assignment.trial.number,
            fingerprint=assignment.fingerprint,
            replicate=assignment.replicate,
            phase=self._phase,
            outcome=outcome,
        )

    def _try_run(self, trial: optuna.Trial, write: Callable[[Tracker, str], None]) -> None:
        run_id = self._run_ids.get(trial.number)
        if run_id is not None:
            self._try(lambda tracker: write(tracker, run_id))

    def _try(self, write: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            write(self._tracker)
        except TrackingError as error:
            _logger.warning("MLflow is left out from here on, training goes on: %s", error)
            self._tracker = None


def reconcile(tracker: MLflowTracker, trials: Iterable[FrozenTrial]) -> None:
    """End the runs that MLflow takes to be running although their trials are not, since a worker was killed.

    A worker writes to the store first, so the store is right. Raises TrackingError.
    """
    running = tracker.running_runs()
    live: set[str] = set()
    for trial in as_they_stand(tuple(trials)):
        run_id = trial.user_attrs.get(MLFLOW_RUN_ID)
        if run_id not in running:
            continue
        live.add(run_id)
        if trial.state.is_finished():
            outcome = trial.user_attrs.get(OUTCOME, "lost")
            tracker.finish_run(run_id, run_status(cast("_EndState", trial.state.name)), {"outcome": outcome})
        elif trial.state is TrialState.WAITING:
            tracker.pause_run(run_id)
    tracker.kill_lost_runs(live)
