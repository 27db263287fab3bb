from __future__ import annotations

import os
import signal
import sqlite3
from pathlib import Path

import optuna
import pytest
import sqlalchemy

from moesearch.errors import StoreError
from moesearch.search.storage import open_storage
from tests.search.processes import in_processes, start
from tests.search.stand_ins import url_of

NUM_QUEUED = 40


def _create_and_take(folder: str) -> None:
    """Open the store for the first time, together with others, and work the queue off."""
    storage = open_storage(url_of(Path(folder)))
    study = optuna.create_study(storage=storage, study_name="queue", load_if_exists=True)
    while True:
        waiting = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,))
        finished = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        if not waiting and len(finished) >= NUM_QUEUED:
            return
        if not waiting:
            continue
        trial = study.ask()
        if trial.number >= NUM_QUEUED:
            return  # another took the last one in between, and Optuna made a new one
        with Path(folder, "taken").open("a") as file:
            file.write(f"{trial.number}\n")
        study.tell(trial, 1.0)


def test_workers_that_start_together_create_one_store_and_take_each_queued_trial_once(tmp_path: Path) -> None:
    with in_processes([(_create_and_take, (str(tmp_path),))] * 4):
        storage = open_storage(url_of(tmp_path))
        study = optuna.create_study(storage=storage, study_name="queue", load_if_exists=True)
        for index in range(NUM_QUEUED):
            study.enqueue_trial({"x": index})
    taken = (tmp_path / "taken").read_text().split()
    assert sorted(map(int, taken)) == list(range(NUM_QUEUED))


def test_a_store_opens_again_with_what_it_held(tmp_path: Path) -> None:
    optuna.create_study(storage=open_storage(url_of(tmp_path / "new" / "folder")), study_name="kept")
    again = open_storage(url_of(tmp_path / "new" / "folder"))
    assert [study.study_name for study in again.get_all_studies()] == ["kept"]


def _open_and_write(folder: str) -> None:
    optuna.create_study(storage=open_storage(url_of(Path(folder))), study_name="another")


def test_opening_a_store_twice_leaves_its_locks_in_place(tmp_path: Path) -> None:
    # Without them, another process takes itself for the only one, and removes the log under our connections.
    first = open_storage(url_of(tmp_path))
    optuna.create_study(storage=first, study_name="one")
    open_storage(url_of(tmp_path))
    with in_processes([(_open_and_write, (str(tmp_path),))]):
        pass
    assert [study.study_name for study in first.get_all_studies()] == ["one", "another"]


def test_a_sqlite_store_keeps_a_write_ahead_log(tmp_path: Path) -> None:
    open_storage(url_of(tmp_path))
    assert sqlite3.connect(tmp_path / "optuna.db").execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "is no storage URL"),
        ("delphi://x/y", "no database is called 'delphi'"),
        ("sqlite:///:memory:", "cannot be shared by workers"),
        ("sqlite:///{folder}", "is a folder; name a file in it"),
        ("sqlite:////proc/none/optuna.db", "cannot be made a folder"),
        ("sqlite:///{folder}/text", "is no SQLite database"),
        ("sqlite:///{folder}/mlflow.db", "is an MLflow database"),
        ("sqlite:///{folder}/other.db", "holds something else"),
        ("postgresql+psycopg://u:pw@localhost:1/x", r"psycopg://\*\*\*@localhost:1/x"),
    ],
)
def test_a_store_that_cannot_be_one_is_refused_with_the_reason(url: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, but a letter")
    for name, tables in (("mlflow", ("alembic_version", "experiments", "runs")), ("other", ("customers",))):
        database = sqlite3.connect(tmp_path / f"{name}.db")
        for table in tables:
            database.execute(f"CREATE TABLE {table} (x)")
        database.close()
    with pytest.raises(StoreError, match=message) as error:
        open_storage(url.format(folder=tmp_path))
    assert "pw" not in str(error.value)
    assert (tmp_path / "text").read_text() == "not a database, but a letter"


def test_a_file_that_is_no_store_gets_no_lock_beside_it(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, but a letter")
    with pytest.raises(StoreError):
        open_storage(f"sqlite:///{tmp_path / 'text'}")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_a_reader_creates_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no study store is here"):
        open_storage(url_of(tmp_path), create=False)
    assert list(tmp_path.iterdir()) == []


def _create_and_die(folder: str) -> None:
    @sqlalchemy.event.listens_for(sqlalchemy.engine.Engine, "after_cursor_execute")
    def _die(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "CREATE TABLE studies" in statement:  # its unique index comes next
            os.kill(os.getpid(), signal.SIGKILL)

    open_storage(url_of(Path(folder)))


def test_a_kill_while_a_store_is_created_leaves_none_or_a_whole_one(tmp_path: Path) -> None:
    creator = start(_create_and_die, str(tmp_path))
    creator.join(60)
    assert creator.exitcode == -signal.SIGKILL
    storage = open_storage(url_of(tmp_path))
    optuna.create_study(storage=storage, study_name="one")
    with pytest.raises(optuna.exceptions.DuplicatedStudyError):
        optuna.create_study(storage=storage, study_name="one")
    assert not (tmp_path / "optuna.db.draft").exists()
