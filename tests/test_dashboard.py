from __future__ import annotations

import itertools
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import optuna
import pytest

from moesearch.dashboard import _choose_port, _mlflow, _optuna_dashboard, _parse, _say_what_is_exposed, _servers, main
from moesearch.errors import InputError, StoreError
from moesearch.servers import free_port, why_not_free
from moesearch.tracking.mlflow import MLflowTracker, prepare


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves behind: a store with a study, and MLflow's database with its experiment."""
    runs = tmp_path_factory.mktemp("runs")
    optuna.create_study(study_name="experts_topk", storage=f"sqlite:///{runs}/optuna.db")
    uri = f"sqlite:///{runs}/mlflow.db"
    prepare(uri)
    tracker = MLflowTracker(uri, "experts_topk", runs / "artifacts")
    tracker.finish_run(tracker.start_run("E8 k2 #0", {}, {}), "FINISHED", {})
    return runs


def test_without_a_store_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no store yet; run a study first .* or say where it is"):
        main(["--runs", str(tmp_path)])


def test_looking_for_a_store_creates_none(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        main(["--runs", str(tmp_path / "typo")])
    assert list(tmp_path.iterdir()) == []


def test_another_database_is_not_taken_for_a_store(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "optuna.db")) as database:
        database.execute("CREATE TABLE experiments (experiment_id INTEGER)")
    with pytest.raises(StoreError, match="this is no Optuna store"):
        main(["--runs", str(tmp_path)])


def test_without_runs_in_mlflow_optuna_dashboard_starts_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    optuna.create_study(storage=f"sqlite:///{tmp_path}/optuna.db")
    assert [server.name for server in _servers(_parse(["--runs", str(tmp_path)]))] == ["optuna-dashboard"]
    assert "MLflow            not started: there is no " in capsys.readouterr().out


def test_a_server_of_mlflow_elsewhere_is_named_without_its_password(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.lab")
    assert [server.name for server in _servers(_parse(["--runs", str(runs)]))] == ["optuna-dashboard"]
    assert "MLflow            https://***@mlflow.lab (MLFLOW_TRACKING_URI)" in capsys.readouterr().out


def test_passwords_of_databases_are_no_arguments_of_a_process() -> None:
    url = "postgresql+psycopg://me:secret@db/x"
    for server in (
        _optuna_dashboard(url, Path("files"), "127.0.0.1", 1),
        _mlflow(url, Path("artifacts"), "127.0.0.1", 2),
    ):
        assert "secret" not in " ".join(server.command)


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


def test_a_default_port_that_is_taken_gives_way_to_a_free_one(taken: int, capsys: pytest.CaptureFixture[str]) -> None:
    port = _choose_port("MLflow", "--mlflow-port", "127.0.0.1", None, taken, taken=())
    assert why_not_free("127.0.0.1", port) is None
    assert capsys.readouterr().out == f"Port {taken}: Address already in use; MLflow takes {port}\n"


def test_a_port_that_was_asked_for_is_not_replaced(taken: int) -> None:
    with pytest.raises(InputError, match=f"--port {taken}: Address already in use; leave --port out for a free port"):
        _choose_port("optuna-dashboard", "--port", "127.0.0.1", taken, 8080, taken=())


def test_both_servers_cannot_have_one_port() -> None:
    with pytest.raises(InputError, match="--mlflow-port 9: the other server has it"):
        _choose_port("MLflow", "--mlflow-port", "127.0.0.1", 9, 5000, taken=(9,))


def test_an_address_of_another_machine_is_refused(runs: Path) -> None:
    with pytest.raises(InputError, match=r"--host 192\.0\.2\.1: this is no address of this machine"):
        main(["--runs", str(runs), "--host", "192.0.2.1"])


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "gpu-box"])
def test_serving_to_others_says_what_they_can_do(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    _say_what_is_exposed(host)
    assert "can read, change and delete" in capsys.readouterr().out


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost"])
def test_serving_to_oneself_needs_no_warning(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    _say_what_is_exposed(host)
    assert capsys.readouterr().out == ""


def test_the_real_dashboard_serves_both_tracks_over_http_and_ends_when_told(runs: Path, tmp_path: Path) -> None:
    """The one slow test: MLflow's server takes 8 s to start, more where several tests run at once."""
    ports = {"--port": free_port("127.0.0.1"), "--mlflow-port": free_port("127.0.0.1")}
    flags = [text for flag, port in ports.items() for text in (flag, str(port))]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    with subprocess.Popen(
        [sys.executable, "-m", "moesearch.dashboard", "--runs", str(runs), "--no-browser", *flags],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as dashboard:
        try:
            assert dashboard.stdout is not None
            printed = list(itertools.takewhile(lambda line: line != "Ctrl-C stops.\n", dashboard.stdout))
            mlflow_url = f"http://127.0.0.1:{ports['--mlflow-port']}"
            assert f"optuna-dashboard  http://127.0.0.1:{ports['--port']}\n" in printed
            assert f"  experts_topk    {mlflow_url}/#/experiments/1/runs?" in printed[-1]
            with urllib.request.urlopen(f"http://127.0.0.1:{ports['--port']}/api/studies", timeout=60) as studies:
                assert b"experts_topk" in studies.read()
            _write_through(mlflow_url, tmp_path)
        finally:
            dashboard.send_signal(signal.SIGTERM)
            dashboard.wait(60)
    assert dashboard.returncode == 130
    assert [why_not_free("127.0.0.1", port) for port in ports.values()] == [None, None]


def _write_through(mlflow_url: str, folder: Path) -> None:
    """What a study does, against a server instead of a database."""
    (folder / "index.html").write_text("<p>verdict")
    prepare(mlflow_url)
    tracker = MLflowTracker(mlflow_url, "over http", folder / "unused")
    run_id = tracker.start_run("E8 k2 #0", {f"p{n}": n for n in range(150)}, {"phase": "search"})
    tracker.log_metrics(run_id, {"val_loss": 2.5}, step=30)
    tracker.log_dataset(run_id, "shakespeare", "86c4e6aa9db7c042")
    tracker.log_artifacts(run_id, folder)
    tracker.finish_run(run_id, "FINISHED", {"outcome": "complete"})
    assert tracker.kill_lost_runs(()) == 0
