from __future__ import annotations

from pathlib import Path

import optuna
from mlflow.tracking import MlflowClient
from optuna.trial import TrialState

from moesearch.results.records import MLFLOW_RUN_ID, OUTCOME, STOPPED_AT, STOPPED_TIME
from moesearch.search.view import reconcile
from moesearch.tracking.mlflow import MLflowTracker


def test_runs_that_a_killed_worker_left_running_end_as_their_trials_did(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracker = MLflowTracker(uri, "toy", tmp_path / "artifacts")
    names = ("complete", "pruned", "waiting", "running", "lost", "stopped")
    run_ids = {name: tracker.start_run(name, {}, {}) for name in names}
    study = optuna.create_study()
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.WAITING, TrialState.RUNNING)
    for name, state in zip(names, states, strict=False):
        attrs = {MLFLOW_RUN_ID: run_ids[name], OUTCOME: name}
        value = 1.0 if state is TrialState.COMPLETE else None
        study.add_trial(optuna.create_trial(state=state, value=value, user_attrs=attrs))
    stopped = {STOPPED_AT: 1, STOPPED_TIME: 1.0}
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            user_attrs={MLFLOW_RUN_ID: run_ids["stopped"]},
            system_attrs=stopped,
            intermediate_values={1: 2.0},
        )
    )
    reconcile(tracker, study.trials)
    client = MlflowClient(uri)
    assert {name: client.get_run(run_id).info.status for name, run_id in run_ids.items()} == {
        "complete": "FINISHED",
        "pruned": "KILLED",
        "waiting": "SCHEDULED",
        "running": "RUNNING",
        "lost": "KILLED",  # no trial knows it
        "stopped": "KILLED",  # it waits at a rung
    }
    for name in ("pruned", "stopped"):
        assert client.get_run(run_ids[name]).data.tags["outcome"] == "pruned"
