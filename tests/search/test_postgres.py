"""What only a server's store has: locks that hold across hosts, passwords, databases of others."""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from moesearch.errors import StoreError
from moesearch.locks import ServerLock
from moesearch.search.storage import closing_store, open_storage, store_lock
from tests.postgres import PostgresServer
from tests.search.processes import in_processes, start
from tests.search.stand_ins import begin, close_stores, study_config, use_store, work

NUM_QUEUED = 40


@pytest.fixture
def url(postgres: PostgresServer) -> Iterator[str]:
    """A database that nobody has used."""
    url = postgres.new_database()
    yield url
    close_stores()
    postgres.drop(url)


@pytest.fixture
def storage(url: str) -> Iterator[RDBStorage]:
    with closing_store(open_storage(url)) as storage:
        yield storage


def _create(url: str) -> None:
    with closing_store(open_storage(url)) as storage:
        optuna.create_study(storage=storage, study_name="one", load_if_exists=True)


def test_hosts_that_start_together_create_one_store(url: str) -> None:
    with in_processes([(_create, (url,))] * 4):
        pass
    with closing_store(open_storage(url)) as storage:
        assert [study.study_name for study in storage.get_all_studies()] == ["one"]


def _work(folder: str, host: str) -> None:
    work(study_config(num_trials=10), Path(folder), worker=f"{host}:1:0.00")


def test_hosts_that_work_together_try_each_point_once_and_no_trial_too_many(url: str, tmp_path: Path) -> None:
    use_store(tmp_path, url)
    study = begin(study_config(num_trials=10), tmp_path)  # ten points are feasible
    with in_processes([(_work, (str(tmp_path), f"host-{index}")) for index in range(4)]):
        pass
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 10
    assert len({trial.user_attrs["fingerprint"] for trial in study.trials}) == 10


def _hold(url: str, taken: multiprocessing.synchronize.Event) -> None:
    with closing_store(open_storage(url)) as storage, store_lock(storage):
        taken.set()
        time.sleep(60)


def test_the_lock_of_a_holder_that_is_killed_is_free_again(url: str, storage: RDBStorage) -> None:
    taken = multiprocessing.get_context("forkserver").Event()
    holder = start(_hold, url, taken)
    try:
        assert taken.wait(30)
        engine = sqlalchemy.create_engine(url, connect_args={"options": "-c lock_timeout=100"})
        with pytest.raises(sqlalchemy.exc.OperationalError, match="lock timeout"), ServerLock(engine, "lock", 60):
            pass
        engine.dispose()
    finally:
        holder.kill()
    with store_lock(storage):
        pass


def test_a_holder_may_take_the_lock_again_inside(storage: RDBStorage) -> None:
    lock = store_lock(storage)
    with lock, lock:
        pass
    with store_lock(storage):  # it was freed as often as it was taken
        pass


def test_a_holder_that_falls_silent_loses_the_lock_and_hears_of_it(
    storage: RDBStorage, caplog: pytest.LogCaptureFixture
) -> None:
    silent, other = (ServerLock(storage.engine, "lock", max_seconds) for max_seconds in (1, 60))
    with caplog.at_level(logging.WARNING), silent, other:
        pass  # the other has it after a second
    assert "the store's lock was lost meanwhile" in caplog.text
    assert storage.get_all_studies() == []  # and the connections go on


def test_a_store_whose_connections_were_cut_goes_on(storage: RDBStorage, postgres: PostgresServer) -> None:
    storage.get_all_studies()
    postgres.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        f" WHERE datname = '{storage.engine.url.database}' AND pid <> pg_backend_pid()"
    )
    assert storage.get_all_studies() == []


def test_a_worker_keeps_two_connections(url: str, tmp_path: Path, postgres: PostgresServer) -> None:
    use_store(tmp_path, url)
    begin(study_config(num_trials=2), tmp_path)
    work(study_config(num_trials=2), tmp_path)
    engine = sqlalchemy.create_engine(postgres.url(), poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        count = connection.execute(
            sqlalchemy.text("SELECT count(*) FROM pg_stat_activity WHERE datname = :name"),
            {"name": sqlalchemy.make_url(url).database},
        ).scalar_one()
    assert count == 2


def test_a_wrong_password_is_refused_and_not_shown(url: str) -> None:
    wrong = sqlalchemy.make_url(url).set(password="not-the-secret").render_as_string(hide_password=False)
    with pytest.raises(StoreError, match="password authentication failed") as error:
        open_storage(wrong)
    assert "not-the-secret" not in str(error.value)


def test_mlflows_database_is_refused(url: str, postgres: PostgresServer) -> None:
    name = sqlalchemy.make_url(url).database
    assert name is not None
    for table in ("alembic_version", "experiments", "runs"):
        postgres.execute(f"CREATE TABLE {table} (x int)", name)
    with pytest.raises(StoreError, match="is an MLflow database"):
        open_storage(url)
