from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from moesearch import status
from moesearch.errors import StoreError
from moesearch.results import records
from moesearch.results.overview import read_overview
from moesearch.search.storage import open_storage
from moesearch.search.worker_names import host_name, worker_name
from tests.results.stores import BASE_PARAMS, LEADERS, STARTED, StoreBuilder, finished_study, study_config

DEAD_WORKER = f"{host_name()}:999999999:1.00"


def url_in(folder: Path) -> str:
    return f"sqlite:///{folder / 'runs' / 'optuna.db'}"


@contextmanager
def store_in(folder: Path, **kwargs: Any) -> Iterator[StoreBuilder]:
    storage = open_storage(url_in(folder))
    yield StoreBuilder(storage=storage, **kwargs)
    storage.engine.dispose()


def add_running(builder: StoreBuilder, worker: str, *, confirm: bool = False) -> None:
    """A trial in training after 3 milestones, at the hands of this worker."""
    builder.add(LEADERS[0], "running", milestone=3, confirm=confirm)
    study_id = builder.confirm_id if confirm else builder.study_id
    assert study_id is not None
    trial = builder.storage.get_all_trials(study_id)[-1]
    builder.storage.set_trial_user_attr(trial._trial_id, records.WORKER, worker)


def shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert status.main(["--runs", str(folder / "runs")]) == 0
    return capsys.readouterr().out.splitlines()


def study_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    status.main(["--json", "--runs", str(folder / "runs")])
    (study,) = json.loads(capsys.readouterr().out)["studies"]
    assert isinstance(study, dict)
    return study


def test_without_a_store_it_says_the_way_on_and_makes_none(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no store yet; run a study first .* --runs DIR or --storage URL"):
        status.main(["--runs", str(tmp_path / "runs")])
    assert list(tmp_path.iterdir()) == []


def test_counts_are_those_of_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = open_storage(url_in(tmp_path))
    finished_study(storage=storage)
    storage.engine.dispose()
    study = study_json(tmp_path, capsys)
    from moesearch.results.study import read_study

    results = read_study(open_storage(url_in(tmp_path)), "experts_topk")
    assert study["finished"] == results.num_finished
    for outcome in ("complete", "pruned", "infeasible"):
        assert study[outcome] == int((results.trials["outcome"] == outcome).sum())
    assert study["failed"] == 3
    assert (study["confirmed"], study["num_confirm_runs"]) == (12, 12)
    assert study["best_value"] == results.trials["value"].min()
    assert (study["phase"], study["state"]) == ("done", "done")


def test_a_running_trial_is_shown_with_its_worker_and_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with store_in(tmp_path) as builder:
        builder.add()
        add_running(builder, worker_name())
    lines = shown(tmp_path, capsys)
    assert lines[1].split()[:4] == ["experts_topk", "running", "search", "1/24"]
    assert "E8 k2 kaiming noise-on" in lines[1]
    name, number, milestone, loss, *_ = lines[-1].split()
    assert (name, number, milestone) == ("experts_topk", "#1", "3/10")
    assert 2 < float(loss) < 4
    assert f"{host_name()}:{os.getpid()}" in lines[-1]
    assert lines[-1].endswith("E16 k4 xavier noise-off")


def test_confirmation_is_a_phase_of_its_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with store_in(tmp_path, config=study_config(num_trials=1)) as builder:
        builder.add()
        builder.add_confirmation(LEADERS[:1], seeds=2)
        add_running(builder, worker_name(), confirm=True)
    lines = shown(tmp_path, capsys)
    assert [line.split()[0] for line in lines if line] == ["study", "experts_topk", "running", "experts_topk"]
    assert lines[1].split()[1:4] == ["running", "confirm", "1/1"]
    assert "2/3" in lines[1].split()
    assert lines[-1].startswith("experts_topk (confirm)")


def test_a_study_whose_workers_are_dead_is_paused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with store_in(tmp_path) as builder:
        builder.session()
        add_running(builder, DEAD_WORKER)
    study = study_json(tmp_path, capsys)
    assert (study["state"], study["running"][0]["health"]) == ("paused", "dead")
    assert f"{DEAD_WORKER.rpartition(':')[0]} (dead)" in shown(tmp_path, capsys)[-1]


def test_a_worker_of_another_host_that_gives_no_sign_of_life_is_silent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with store_in(tmp_path) as builder:
        add_running(builder, "elsewhere:1:1.00")
        builder.storage.record_heartbeat(1)  # type: ignore[attr-defined]
    assert study_json(tmp_path, capsys)["running"][0]["health"] == "alive"
    with closing(sqlite3.connect(tmp_path / "runs" / "optuna.db")) as database:
        database.execute("UPDATE trial_heartbeats SET heartbeat = '2026-01-01 00:00:00'")
        database.commit()
    assert study_json(tmp_path, capsys)["running"][0]["health"] == "silent"


def test_between_two_trials_a_study_still_runs_until_its_command_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with store_in(tmp_path) as builder:
        builder.add()
        builder.session(ended=STARTED.timestamp() + 60)
        assert study_json(tmp_path, capsys)["state"] == "paused"
        builder.session(started=STARTED.timestamp() + 90, number=1)
        assert study_json(tmp_path, capsys)["state"] == "running"


def test_a_study_that_is_not_ours_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = open_storage(url_in(tmp_path))
    import optuna

    optuna.create_study(storage=storage, study_name="other")
    storage.engine.dispose()
    assert shown(tmp_path, capsys) == ["The store holds no study yet; python -m moesearch.run STUDY.yaml starts one"]


def test_looking_changes_nothing_and_waits_for_no_writer(tmp_path: Path) -> None:
    with store_in(tmp_path) as builder:
        builder.add(BASE_PARAMS)
    path = tmp_path / "runs" / "optuna.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")  # as a worker in the middle of a write
        before = path.read_bytes()
        (study,) = read_overview(url_in(tmp_path))
        assert study.complete == 1
        writer.execute("ROLLBACK")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "this is no storage URL"),
        ("nosuchdb://u:secret@host/x", r"nosuchdb://\*\*\*@host/x: cannot be read as a study store"),
    ],
)
def test_a_url_that_cannot_be_read_is_a_persons_mistake(url: str, words: str) -> None:
    with pytest.raises(StoreError, match=words):
        read_overview(url)


def test_another_database_is_no_store(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "x.db")) as database:
        database.execute("CREATE TABLE experiments (id)")
    with pytest.raises(StoreError, match="cannot be read as a study store"):
        read_overview(f"sqlite:///{tmp_path / 'x.db'}")


def test_it_loads_neither_torch_nor_pandas(tmp_path: Path) -> None:
    with store_in(tmp_path) as builder:
        builder.add()
    code = f"""
import sys
from moesearch.status import main
main(["--runs", {str(tmp_path / "runs")!r}])
print([name for name in ("torch", "pandas", "mlflow", "scipy", "pydantic") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1], check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("process", "state"), [(DEAD_WORKER, "paused"), (worker_name(), "running")], ids=["dead", "alive"]
)
def test_a_command_that_was_killed_between_two_trials_does_not_run(
    process: str, state: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with store_in(tmp_path) as builder:
        builder.add(LEADERS[0], "complete")
        session = {"started": STARTED.timestamp(), "ended": None, "process": process}
        builder.storage.set_study_system_attr(builder.study_id, f"{records.SESSION_PREFIX}x", session)
    assert study_json(tmp_path, capsys)["state"] == state
