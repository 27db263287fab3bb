from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from moesearch.config.trial import TrialConfig
from moesearch.errors import TrackingError
from moesearch.results.records import (
    CONFIG,
    EVAL_SECONDS,
    FINGERPRINT,
    MILESTONE_PREFIX,
    MLFLOW_RUN_ID,
    OUTCOME,
    REASON,
    REPLICATE,
    SEED,
    TRAIN_SECONDS,
)
from moesearch.results.standing import is_finished, is_void
from moesearch.search.worker import run_worker
from tests.search.stand_ins import (
    JsonCheckpoints,
    TableCheckpoint,
    TableTrainer,
    begin,
    curve,
    new_job,
    study_config,
    work,
)

pytestmark = pytest.mark.usefixtures("every_store")


def _only(trials: list[FrozenTrial]) -> FrozenTrial:
    (trial,) = trials
    return trial


class StoppingTrainer(TableTrainer):
    """Asks for a stop once it has reached some milestones."""

    def __init__(self, stop: threading.Event, after: int) -> None:
        super().__init__()
        self._stop, self._after = stop, after

    def advance(self, should_stop: Callable[[], bool]) -> list[Any]:
        if len(self.trained) == self._after:
            self._stop.set()
            return []
        return super().advance(should_stop)


class DyingTrainer(TableTrainer):
    """Its process dies at a milestone: a BaseException, which the loop does not handle, as a kill would not be."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._at = at

    def advance(self, should_stop: Callable[[], bool]) -> list[Any]:
        if len(self.trained) == self._at:
            raise KeyboardInterrupt
        return super().advance(should_stop)


def test_a_trial_leaves_its_whole_story_in_the_store(tmp_path: Path) -> None:
    config = study_config(num_trials=1)
    study = begin(config, tmp_path)
    work(config, tmp_path)
    trial = _only(study.trials)
    resolved = TrialConfig.model_validate(trial.system_attrs[CONFIG])
    assert trial.state is TrialState.COMPLETE
    assert trial.intermediate_values == dict(enumerate(curve(resolved), start=1))
    assert trial.value == curve(resolved)[-1]
    assert trial.user_attrs[FINGERPRINT] == resolved.fingerprint()
    assert (trial.user_attrs[SEED], trial.user_attrs[REPLICATE]) == (resolved.seed, 0)
    assert (trial.user_attrs[TRAIN_SECONDS], trial.user_attrs[EVAL_SECONDS]) == (4.0, 0.4)
    records = [trial.system_attrs[f"{MILESTONE_PREFIX}{milestone:04d}"] for milestone in (1, 2, 3, 4)]
    assert [record["step"] for record in records] == [10, 20, 30, 40]
    assert [len(record["val_block_losses"]) for record in records] == [0, 0, 0, 2]


def test_the_objective_can_be_bits_per_byte(tmp_path: Path) -> None:
    config = study_config(num_trials=1, objective="val_bpb")
    study = begin(config, tmp_path)
    work(config, tmp_path)
    trial = _only(study.trials)
    record = trial.system_attrs[f"{MILESTONE_PREFIX}0004"]
    assert trial.value == trial.intermediate_values[4] == record["val_bpb"] != record["val_loss"]


def test_a_trial_worse_than_the_median_at_its_milestone_is_pruned_there(tmp_path: Path) -> None:
    config = study_config(num_trials=6, pruner={"type": "median", "warmup_milestones": 1, "warmup_trials": 2})
    study = begin(config, tmp_path)
    counter = iter(range(100))
    losses: dict[int, float] = {}

    def ever_worse(trial: TrialConfig) -> list[float]:
        return [losses.setdefault(trial.seed, 2.0 + next(counter))] * 4

    trainer = work(config, tmp_path, trainer=TableTrainer(losses=ever_worse))
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.COMPLETE] * 2 + [TrialState.PRUNED] * 4
    assert [trial.last_step for trial in study.trials] == [4, 4, 2, 2, 2, 2]
    assert len(trainer.trained) == 2 * 4 + 4 * 2
    assert all(trial.user_attrs[OUTCOME] == "pruned" and is_finished(trial) for trial in study.trials[2:])


def test_a_diverged_trial_is_a_violated_constraint_and_does_not_count(tmp_path: Path) -> None:
    config = study_config(num_trials=2)
    study = begin(config, tmp_path)
    bad: list[int] = []

    def first_diverges(trial: TrialConfig) -> list[float]:
        bad.append(trial.seed)
        return [math.nan] * 4 if trial.seed == bad[0] else curve(trial)

    work(config, tmp_path, trainer=TableTrainer(losses=first_diverges))
    first, *others = study.trials
    assert (first.state, first.user_attrs[OUTCOME]) == (TrialState.PRUNED, "diverged")
    assert first.system_attrs["constraints"] == [1.0]
    assert first.constraints["feasible"] == 1.0
    assert is_void(first)
    assert [trial.state for trial in others] == [TrialState.COMPLETE] * 2


@pytest.mark.parametrize(
    ("error", "outcome", "state"),
    [
        (MemoryError("no room"), "out_of_memory", TrialState.PRUNED),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), "out_of_memory", TrialState.PRUNED),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out_of_memory", TrialState.PRUNED),
        (ZeroDivisionError("a bug"), "error", TrialState.FAIL),
    ],
)
def test_an_error_ends_its_trial_under_its_name_and_the_study_goes_on(
    error: Exception, outcome: str, state: TrialState, tmp_path: Path
) -> None:
    config = study_config(num_trials=2)
    study = begin(config, tmp_path)
    seeds: list[int] = []

    def first_fails(trial: TrialConfig) -> list[float]:
        seeds.append(trial.seed)
        if trial.seed == seeds[0]:
            raise error
        return curve(trial)

    work(config, tmp_path, trainer=TableTrainer(losses=first_fails))
    first, *others = study.trials
    assert (first.state, first.user_attrs[OUTCOME]) == (state, outcome)
    assert str(error) in first.user_attrs[REASON]
    assert [trial.state for trial in others] == [TrialState.COMPLETE] * 2


def test_a_study_whose_trials_all_fail_ends(tmp_path: Path) -> None:
    config = study_config(num_trials=50)
    study = begin(config, tmp_path)
    work(config, tmp_path, trainer=TableTrainer(losses=lambda _: [math.nan] * 4))
    assert len(study.trials) == 10


def test_an_infeasible_configuration_is_told_and_neither_trained_nor_counted(tmp_path: Path) -> None:
    config = study_config(num_trials=2, enqueue=({"moe.num_experts": 2, "moe.top_k": 4, "moe.noise": True},))
    study = begin(config, tmp_path)
    trainer = work(config, tmp_path)
    first, *others = study.trials
    assert (first.state, first.user_attrs[OUTCOME]) == (TrialState.PRUNED, "infeasible")
    assert "top_k (4) must be at most num_experts (2)" in first.user_attrs[REASON]
    assert len(trainer.trained) == 2 * 4
    assert [trial.state for trial in others] == [TrialState.COMPLETE] * 2


@pytest.mark.parametrize("num_lanes", [1, 2])
def test_a_lost_device_ends_the_worker_and_no_trial(num_lanes: int, tmp_path: Path) -> None:
    config = study_config(num_trials=2)
    study = begin(config, tmp_path)

    class LostDevice(TableTrainer):
        def advance(self, should_stop: Callable[[], bool]) -> list[Any]:
            if len(self.trained) >= num_lanes:
                raise RuntimeError("CUDA error: unspecified launch failure")
            return super().advance(should_stop)

    with pytest.raises(RuntimeError, match="unspecified launch failure"):
        work(config, tmp_path, trainer=LostDevice(num_lanes=num_lanes), worker="elsewhere:1:0.00")
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING] * num_lanes  # a dead worker's: they go back


def test_a_sampler_that_reads_no_trials_proposes_too(tmp_path: Path) -> None:
    lr = {"optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}}
    config = study_config(num_trials=2, search=lr, sampler={"type": "random"})
    study = begin(config, tmp_path)
    work(config, tmp_path)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2


def test_a_repeated_configuration_becomes_its_next_seed(tmp_path: Path) -> None:
    queued = {"moe.num_experts": 4, "moe.top_k": 1, "moe.noise": True}
    config = study_config(num_trials=11, enqueue=(queued,))
    study = begin(config, tmp_path)
    work(config, tmp_path)
    first, last = study.trials[0], study.trials[10]
    assert first.user_attrs[REPLICATE] == 0
    repeated = [trial for trial in study.trials if trial.user_attrs[FINGERPRINT] == last.user_attrs[FINGERPRINT]]
    assert [trial.user_attrs[REPLICATE] for trial in repeated] == [0, 1]
    assert len({trial.user_attrs[SEED] for trial in study.trials}) == 11


def test_a_stopped_worker_puts_its_trial_back_and_another_goes_on_where_it_stood(tmp_path: Path) -> None:
    config = study_config(num_trials=2)
    study = begin(config, tmp_path)
    stop = threading.Event()
    before = work(config, tmp_path, trainer=StoppingTrainer(stop, after=6), stop=stop)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.WAITING]
    after = work(config, tmp_path)
    assert [milestone for _, _, milestone in before.trained] == [1, 2, 3, 4, 1, 2]
    assert [milestone for _, _, milestone in after.trained] == [3, 4]
    assert [list(trial.intermediate_values) for trial in study.trials] == [[1, 2, 3, 4]] * 2


@pytest.mark.parametrize("at", [0, 3, 4, 7])
def test_a_worker_that_dies_at_any_milestone_costs_at_most_the_milestone(at: int, tmp_path: Path) -> None:
    config = study_config(num_trials=2)
    study = begin(config, tmp_path)
    dead = DyingTrainer(at)
    with pytest.raises(KeyboardInterrupt):
        work(config, tmp_path, trainer=dead, worker="elsewhere:1:0.00")
    study._storage.set_trial_state_values(study.trials[-1]._trial_id, TrialState.WAITING)  # as `recover` does
    after = work(config, tmp_path)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
    assert len(dead.trained) + len(after.trained) == 8


def test_a_milestone_with_a_checkpoint_but_no_report_is_reported_from_the_checkpoint(tmp_path: Path) -> None:
    config = study_config(num_trials=1)
    study = begin(config, tmp_path)

    class DiesAfterSaving(JsonCheckpoints):
        def save(self, key: str, checkpoint: TableCheckpoint) -> None:
            super().save(key, checkpoint)
            if len(checkpoint.points) == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(config, tmp_path, checkpoints=DiesAfterSaving(tmp_path / "checkpoints"))
    assert list(_only(study.trials).intermediate_values) == [1, 2]
    study._storage.set_trial_state_values(study.trials[0]._trial_id, TrialState.WAITING)
    after = work(config, tmp_path)
    assert [milestone for _, _, milestone in after.trained] == [4]
    assert list(_only(study.trials).intermediate_values) == [1, 2, 3, 4]


def test_a_trial_without_its_checkpoint_trains_again_and_reports_nothing_twice(tmp_path: Path) -> None:
    config = study_config(num_trials=1)
    study = begin(config, tmp_path)
    stop = threading.Event()
    work(config, tmp_path, trainer=StoppingTrainer(stop, after=2), stop=stop)
    before = dict(_only(study.trials).intermediate_values)
    for path in (tmp_path / "checkpoints").iterdir():
        path.unlink()
    after = work(config, tmp_path)
    trial = _only(study.trials)
    assert [milestone for _, _, milestone in after.trained] == [1, 2, 3, 4]
    assert dict(list(trial.intermediate_values.items())[:2]) == before
    assert list(trial.intermediate_values) == [1, 2, 3, 4]


def test_a_folder_that_cannot_be_written_costs_checkpoints_and_no_trial(tmp_path: Path) -> None:
    config = study_config(num_trials=2)
    study = begin(config, tmp_path)

    class ReadOnly(JsonCheckpoints):
        def save(self, key: str, checkpoint: TableCheckpoint) -> None:
            raise OSError(30, "Read-only file system")

    work(config, tmp_path, checkpoints=ReadOnly(tmp_path / "checkpoints"))
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2


def test_finished_trials_leave_no_checkpoints(tmp_path: Path) -> None:
    config = study_config(num_trials=3)
    begin(config, tmp_path)
    work(config, tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_worker_that_lost_its_trial_drops_it_and_takes_another(tmp_path: Path) -> None:
    config = study_config(num_trials=2)
    study = begin(config, tmp_path)

    class Overslept(TableTrainer):
        def advance(self, should_stop: Callable[[], bool]) -> list[Any]:
            if len(self.trained) == 1:  # meanwhile another worker finds the trial stale
                study._storage.set_trial_state_values(study.trials[0]._trial_id, TrialState.FAIL)
            return super().advance(should_stop)

    work(config, tmp_path, trainer=Overslept())
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
    assert list(study.trials[0].intermediate_values) == [1]


def test_lanes_are_filled_and_refilled_side_by_side(tmp_path: Path) -> None:
    config = study_config(num_trials=5)
    study = begin(config, tmp_path)
    trainer = work(config, tmp_path, trainer=TableTrainer(num_lanes=2))
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 5
    assert len({seed for _, seed, _ in trainer.trained[:2]}) == 2


class NoteTracker:
    """What MLflow would be told."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.notes: list[tuple[Any, ...]] = []
        self.fails_at = fails_at

    def _note(self, *note: Any) -> None:
        self.notes.append(note)
        if self.fails_at == len(self.notes):
            raise TrackingError("MLflow at http://tracking: could not log metrics: connection refused")

    def start_run(self, name: str, params: Mapping[str, object], tags: Mapping[str, str]) -> str:
        self._note("start", tags["trial"], params["moe.top_k"])
        return f"run-{tags['trial']}"

    def resume_run(self, run_id: str) -> None:
        self._note("resume", run_id)

    def pause_run(self, run_id: str) -> None:
        self._note("pause", run_id)

    def log_dataset(self, run_id: str, name: str, sha256: str) -> None:
        self._note("dataset", run_id)

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int) -> None:
        self._note("log", run_id, step)

    def finish_run(self, run_id: str, status: str, tags: Mapping[str, str]) -> None:
        self._note("finish", run_id, status, tags["outcome"])


def test_mlflow_is_told_each_milestone_and_the_end(tmp_path: Path) -> None:
    config = study_config(num_trials=1, enqueue=({"moe.num_experts": 8, "moe.top_k": 4, "moe.noise": True},))
    study = begin(config, tmp_path)
    tracker = NoteTracker()
    work(config, tmp_path, tracker=tracker)
    assert tracker.notes == [
        ("start", "0", 4),
        ("dataset", "run-0"),
        *(("log", "run-0", step) for step in (10, 20, 30, 40)),
        ("finish", "run-0", "FINISHED", "complete"),
    ]
    assert _only(study.trials).user_attrs[MLFLOW_RUN_ID] == "run-0"


def test_a_continued_trial_continues_its_mlflow_run(tmp_path: Path) -> None:
    config = study_config(num_trials=1)
    begin(config, tmp_path)
    tracker, stop = NoteTracker(), threading.Event()
    work(config, tmp_path, trainer=StoppingTrainer(stop, after=3), stop=stop, tracker=tracker)
    work(config, tmp_path, tracker=tracker)
    assert [note[:2] for note in tracker.notes[5:]] == [
        ("pause", "run-0"),
        ("resume", "run-0"),
        ("log", "run-0"),
        ("finish", "run-0"),
    ]


@pytest.mark.parametrize("fails_at", [1, 2, 3, 7])
def test_a_failing_mlflow_is_left_out_and_costs_no_trial(
    fails_at: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = study_config(num_trials=2)
    study = begin(config, tmp_path)
    tracker = NoteTracker(fails_at)
    work(config, tmp_path, tracker=tracker)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
    assert len(tracker.notes) == fails_at
    assert caplog.text.count("MLflow is left out from here on") == 1


def test_trials_that_are_short_beside_a_checkpoint_have_none(tmp_path: Path) -> None:
    config = study_config(num_trials=3)
    begin(config, tmp_path)
    saved: list[str] = []

    class SlowDisk(JsonCheckpoints):
        def save(self, key: str, checkpoint: TableCheckpoint) -> None:
            saved.append(key)
            time.sleep(0.05)

    job = replace(new_job(config, tmp_path), checkpoint_share=0.02)
    run_worker(job, TableTrainer(num_lanes=3), SlowDisk(tmp_path / "checkpoints"), threading.Event())
    # The first one shows what a checkpoint costs.
    assert len(saved) == 1
