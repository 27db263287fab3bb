from __future__ import annotations

import multiprocessing
import shutil
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from alembic import command
from alembic.config import Config

from moesearch.errors import TrackingError
from moesearch.tracking.database import default_tracking_uri, prepare, sqlite_path
from moesearch.tracking.mlflow import MLflowTracker


def test_the_default_is_a_database_in_the_folder_of_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert default_tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"


def test_the_environment_redirects_to_a_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.lab:5000")
    assert default_tracking_uri(tmp_path) == "http://mlflow.lab:5000"


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:////data/mlflow.db", Path("/data/mlflow.db")),
        ("sqlite:///runs/mlflow.db", Path("runs/mlflow.db")),
        ("sqlite+pysqlite:////data/mlflow.db?timeout=9", Path("/data/mlflow.db")),
        ("postgresql+psycopg://db/mlflow", None),
        ("http://127.0.0.1:5000", None),
    ],
)
def test_only_a_sqlite_uri_names_a_file(uri: str, path: Path | None) -> None:
    assert sqlite_path(uri) == path


def test_importing_the_tracker_does_not_import_mlflow() -> None:
    code = "import sys, moesearch.tracking.mlflow; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_readers_do_not_stop_writers(empty_database: Path) -> None:
    with closing(sqlite3.connect(empty_database)) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def _start_worker(uri: str, artifacts: Path) -> str:
    prepare(uri)
    return MLflowTracker(uri, "experts_topk", artifacts).start_run("run", {}, {})


def test_workers_that_start_together_share_one_new_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        run_ids = pool.starmap(_start_worker, [(uri, tmp_path / "artifacts")] * 2, chunksize=1)
    assert len(set(run_ids)) == 2


def test_the_database_of_an_older_mlflow_is_brought_up_to_date(uri: str, tmp_path: Path) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    config.set_main_option("sqlalchemy.url", uri)
    command.downgrade(config, "-1")
    prepare(uri)
    assert MLflowTracker(uri, "experts_topk", tmp_path).start_run("run", {}, {})


def test_the_database_of_a_later_mlflow_is_refused_and_a_copy_kept(empty_database: Path, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    shutil.copy(empty_database, path)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    with pytest.raises(TrackingError, match="written by another version of MLflow"):
        prepare(f"sqlite:///{path}")
    assert (tmp_path / "mlflow.db.before-migration").is_file()


def test_an_optuna_store_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "optuna.db")) as database:
        database.execute("CREATE TABLE studies (study_id INTEGER)")
    with pytest.raises(TrackingError, match="is an Optuna store"):
        prepare(f"sqlite:///{tmp_path}/optuna.db")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database, but long enough to be taken for one " * 20)
    with pytest.raises(TrackingError, match="file is not a database"):
        prepare(f"sqlite:///{tmp_path}/mlflow.db")


def test_a_kind_of_place_that_mlflow_does_not_know_is_refused() -> None:
    with pytest.raises(TrackingError, match="could not open it"):
        prepare("gopher://mlflow.lab")


def test_a_server_that_does_not_answer_is_a_tracking_error_without_the_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(TrackingError) as raised:
        prepare(f"http://me:secret@127.0.0.1:{port}")
    assert str(raised.value).startswith(f"MLflow at http://***@127.0.0.1:{port}: could not open it: ")
    assert "secret" not in str(raised.value)
