from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from moesearch.errors import TrackingError
from moesearch.tracking.mlflow import MLflowTracker, run_status


def runs_of(client: MlflowClient, tracker: MLflowTracker, query: str = "") -> list[Run]:
    return list(client.search_runs([tracker.experiment_id], query))


def test_parameters_are_kept_as_a_study_file_spells_them(tracker: MLflowTracker, client: MlflowClient) -> None:
    run_id = tracker.start_run("E8 k2 #0", {"moe.noise": True, "optim.lr": 1e-3, "data.text": None}, {})
    assert client.get_run(run_id).data.params == {"moe.noise": "true", "optim.lr": "0.001", "data.text": "null"}


def test_a_run_bears_its_name_and_tags(tracker: MLflowTracker, client: MlflowClient) -> None:
    run_id = tracker.start_run("E8 k2 #0", {}, {"phase": "search"})
    run = client.get_run(run_id)
    assert (run.info.run_name, run.data.tags["phase"]) == ("E8 k2 #0", "search")


def test_each_metric_keeps_its_steps(tracker: MLflowTracker, client: MlflowClient) -> None:
    run_id = tracker.start_run("run", {}, {})
    tracker.log_metrics(run_id, {"val_loss": 2.5, "train_loss": 2.4}, step=30)
    tracker.log_metrics(run_id, {"val_loss": 2.25, "train_loss": 2.2}, step=60)
    history = client.get_metric_history(run_id, "val_loss")
    assert [(point.step, point.value) for point in history] == [(30, 2.5), (60, 2.25)]


def test_two_runs_can_be_open_at_once(tracker: MLflowTracker, client: MlflowClient) -> None:
    first, second = tracker.start_run("first", {}, {}), tracker.start_run("second", {}, {})
    tracker.log_metrics(first, {"val_loss": 1.0}, step=1)
    tracker.log_metrics(second, {"val_loss": 2.0}, step=1)
    assert [client.get_run(run_id).data.metrics["val_loss"] for run_id in (first, second)] == [1.0, 2.0]


def test_no_global_active_run_is_left_behind(tracker: MLflowTracker) -> None:
    tracker.log_metrics(tracker.start_run("run", {}, {}), {"val_loss": 1.0}, step=1)
    assert mlflow.active_run() is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_left_out(tracker: MLflowTracker, client: MlflowClient, value: float) -> None:
    run_id = tracker.start_run("run", {}, {})
    tracker.log_metrics(run_id, {"val_loss": value, "train_loss": 2.0}, step=1)
    assert client.get_run(run_id).data.metrics == {"train_loss": 2.0}


def test_more_parameters_than_one_batch_takes_are_all_kept(tracker: MLflowTracker, client: MlflowClient) -> None:
    params = {f"section.field_{n}": n for n in range(250)}
    run_id = tracker.start_run("run", params, {})
    assert client.get_run(run_id).data.params == {name: str(value) for name, value in params.items()}


def test_text_over_the_limits_is_cut_with_a_mark(tracker: MLflowTracker, client: MlflowClient) -> None:
    data = client.get_run(tracker.start_run("run", {"data.text": "x" * 7000}, {"reason": "y" * 9000})).data
    assert data.params["data.text"] == "x" * 5999 + "…"
    assert data.tags["reason"] == "y" * 7999 + "…"


@pytest.mark.parametrize(
    ("name", "kept_as"),
    [("load<3>", "load_3_"), ("../../etc", "_/_/etc"), ("a//b", "a/_/b"), ("/root", "_/root"), ("x" * 300, "x" * 250)],
)
def test_a_name_that_mlflow_would_refuse_is_changed(
    tracker: MLflowTracker, client: MlflowClient, name: str, kept_as: str
) -> None:
    run_id = tracker.start_run("run", {}, {})
    tracker.log_metrics(run_id, {name: 1.0}, step=1)
    assert list(client.get_run(run_id).data.metrics) == [kept_as]


def test_finishing_a_run_sets_its_status_its_end_and_its_tags(tracker: MLflowTracker, client: MlflowClient) -> None:
    run_id = tracker.start_run("run", {}, {})
    tracker.finish_run(run_id, run_status("PRUNED"), {"outcome": "pruned"})
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["outcome"]) == ("KILLED", "pruned")
    assert run.info.end_time is not None


def test_a_finished_run_resumes_and_takes_more_metrics(tracker: MLflowTracker, client: MlflowClient) -> None:
    run_id = tracker.start_run("run", {}, {})
    tracker.finish_run(run_id, "KILLED", {})
    tracker.resume_run(run_id)
    tracker.log_metrics(run_id, {"val_loss": 2.0}, step=9)
    run = client.get_run(run_id)
    assert (run.info.status, run.data.metrics["val_loss"]) == ("RUNNING", 2.0)


def test_a_paused_run_is_scheduled(tracker: MLflowTracker, client: MlflowClient) -> None:
    run_id = tracker.start_run("run", {}, {})
    tracker.pause_run(run_id)
    assert client.get_run(run_id).info.status == "SCHEDULED"


def test_tags_filter_runs(tracker: MLflowTracker, client: MlflowClient) -> None:
    tracker.start_run("one", {}, {"phase": "search"})
    wanted = tracker.start_run("two", {}, {"phase": "confirm"})
    tracker.set_tags(wanted, {"outcome": "complete"})
    found = runs_of(client, tracker, "tags.phase = 'confirm' and tags.outcome = 'complete'")
    assert [run.info.run_id for run in found] == [wanted]


def test_the_corpus_of_a_run_is_its_dataset(tracker: MLflowTracker, client: MlflowClient) -> None:
    run_id = tracker.start_run("run", {}, {})
    tracker.log_dataset(run_id, "shakespeare", "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed")
    inputs = client.get_run(run_id).inputs
    assert inputs is not None
    (given,) = inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("shakespeare", "86c4e6aa9db7")


def test_the_summary_is_one_run_however_often_it_is_written(
    tracker: MLflowTracker, client: MlflowClient, tmp_path: Path
) -> None:
    report = tmp_path / "report"
    report.mkdir()
    (report / "summary.md").write_text("verdict")
    tracker.log_summary({"verdict": "none yet"}, "**draft**", report)
    run_id = tracker.log_summary({"verdict": "E8 wins"}, "**E8**", report)
    (run,) = runs_of(client, tracker, "tags.phase = 'summary'")
    assert (run.info.run_id, run.info.status, run.data.tags["verdict"]) == (run_id, "FINISHED", "E8 wins")


def test_the_report_is_attached_to_the_summary(tracker: MLflowTracker, client: MlflowClient, tmp_path: Path) -> None:
    report = tmp_path / "report"
    (report / "figures").mkdir(parents=True)
    (report / "index.html").write_text("<p>verdict")
    (report / "figures" / "curves.png").write_bytes(b"png")
    run_id = tracker.log_summary({}, "", report)
    assert {file.path for file in client.list_artifacts(run_id)} == {"index.html", "figures"}
    assert (tmp_path / "runs of today" / "artifacts" / run_id / "artifacts" / "figures" / "curves.png").is_file()


def test_the_summary_describes_the_experiment(tracker: MLflowTracker, client: MlflowClient, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    tracker.log_summary({}, "**E8** wins", tmp_path / "report")
    assert client.get_experiment(tracker.experiment_id).tags["mlflow.note.content"] == "**E8** wins"


def test_only_lost_runs_are_killed(tracker: MLflowTracker, client: MlflowClient) -> None:
    live, lost, done = (tracker.start_run(name, {}, {}) for name in ("live", "lost", "done"))
    tracker.finish_run(done, "FINISHED", {})
    assert tracker.kill_lost_runs({live}) == 1
    assert [client.get_run(run_id).info.status for run_id in (live, lost, done)] == ["RUNNING", "KILLED", "FINISHED"]


def test_a_study_that_starts_afresh_leaves_no_runs(tracker: MLflowTracker, client: MlflowClient) -> None:
    tracker.start_run("old", {}, {})
    tracker.delete_runs()
    assert runs_of(client, tracker) == []


def test_trackers_of_one_study_share_its_experiment(tracker: MLflowTracker, uri: str, tmp_path: Path) -> None:
    assert MLflowTracker(uri, "experts_topk", tmp_path).experiment_id == tracker.experiment_id


def test_an_experiment_in_the_trash_is_restored(
    tracker: MLflowTracker, client: MlflowClient, uri: str, tmp_path: Path
) -> None:
    client.delete_experiment(tracker.experiment_id)
    MLflowTracker(uri, "experts_topk", tmp_path).start_run("again", {}, {})
    assert client.get_experiment(tracker.experiment_id).lifecycle_stage == "active"


def test_an_experiment_opens_on_its_runs(tracker: MLflowTracker, client: MlflowClient) -> None:
    tags = client.get_experiment(tracker.experiment_id).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"


def test_whatever_mlflow_refuses_is_a_tracking_error(tracker: MLflowTracker) -> None:
    with pytest.raises(TrackingError, match=r"could not log metrics: .*no_such_run"):
        tracker.log_metrics("no_such_run", {"val_loss": 1.0}, step=1)


def test_machines_that_begin_the_summary_at_once_share_one(
    tracker: MLflowTracker, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = MLflowTracker(uri, "experts_topk", tmp_path / "artifacts")
    start_run, summaries = other.start_run, []

    def start_later(name: str, params: Mapping[str, object], tags: Mapping[str, str]) -> str:
        summaries.append(tracker._summary_run())  # of another machine, which looked at the same moment
        return start_run(name, params, tags)

    monkeypatch.setattr(other, "start_run", start_later)
    assert other._summary_run() == summaries[0]
    assert tracker._summary_run() == summaries[0]
