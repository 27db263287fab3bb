"""Whether a SQLite file is refused to a second machine, and to no other command."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from moesearch.errors import InputError
from moesearch.results.records import SESSION_PREFIX, WORKER
from moesearch.search.one_machine import machine_id, refuse_other_machines
from moesearch.search.worker_names import worker_name
from tests.search.stand_ins import begin, storage_in, study_config

OTHER = "elsewhere:17:1700000000.00"
STUDY = """\
name: toy
num_trials: 6
base:
  data: {{ text: {text} }}
search:
  moe.num_experts: {{ type: categorical, choices: [2, 4] }}
"""


@pytest.fixture
def storage(tmp_path: Path) -> RDBStorage:
    begin(study_config(), tmp_path)
    return storage_in(tmp_path)


def _train_on(storage: RDBStorage, worker: str, silent_seconds: int = 0) -> None:
    """Leave a trial that the worker has begun, with its last sign of life so long ago."""
    begun = optuna.create_trial(state=TrialState.RUNNING, user_attrs={WORKER: worker})
    trial_id = storage.create_new_trial(storage.get_study_id_from_name("toy"), begun)
    storage.record_heartbeat(trial_id)
    with storage.engine.begin() as connection:
        ago = f"-{silent_seconds} seconds"
        connection.execute(
            sqlalchemy.text("UPDATE trial_heartbeats SET heartbeat = datetime('now', :ago) WHERE trial_id = :id"),
            {"ago": ago, "id": trial_id},
        )


def _command_on(storage: RDBStorage, process: str, **facts: Any) -> None:
    session = {"started": time.time(), "ended": None, "process": process, **facts}
    storage.set_study_system_attr(storage.get_study_id_from_name("toy"), f"{SESSION_PREFIX}x", session)


def test_another_machine_at_work_is_named_with_two_ways_on(storage: RDBStorage, tmp_path: Path) -> None:
    _train_on(storage, OTHER, silent_seconds=20)
    with pytest.raises(InputError) as refused:
        refuse_other_machines(storage)
    said = str(refused.value)
    assert said.startswith(f"{tmp_path / 'optuna.db'}: is a SQLite file, which only one machine can work in")
    assert "elsewhere gave a sign of life 2" in said
    assert "--storage postgresql+psycopg://" in said
    assert said.endswith(("again in 40 s", "again in 39 s", "again in 38 s"))


def test_another_machine_whose_command_has_just_begun_counts_before_its_first_trial(storage: RDBStorage) -> None:
    _command_on(storage, OTHER)
    with pytest.raises(InputError, match="elsewhere gave a sign of life"):
        refuse_other_machines(storage)


def test_a_machine_that_has_been_silent_locks_nobody_out(storage: RDBStorage) -> None:
    _train_on(storage, OTHER, silent_seconds=90)
    _command_on(storage, OTHER, started=time.time() - 90)
    refuse_other_machines(storage)


def test_a_command_that_has_ended_locks_nobody_out(storage: RDBStorage) -> None:
    _command_on(storage, OTHER, ended=time.time())
    refuse_other_machines(storage)


def test_workers_of_this_host_are_welcome(storage: RDBStorage) -> None:
    _train_on(storage, worker_name())
    refuse_other_machines(storage)


def test_a_host_of_another_name_on_this_machine_is_welcome(storage: RDBStorage) -> None:
    """A container, or this host before it was renamed: the locks of SQLite hold among all processes of a kernel."""
    _train_on(storage, OTHER)
    _command_on(storage, "elsewhere:4:1700000000.00", machine=machine_id())
    refuse_other_machines(storage)


def test_a_servers_store_is_for_all_machines(every_store: str, tmp_path: Path) -> None:
    begin(study_config(), tmp_path)
    storage = storage_in(tmp_path)
    _command_on(storage, OTHER)
    if every_store == "sqlite":
        with pytest.raises(InputError):
            refuse_other_machines(storage)
    else:
        refuse_other_machines(storage)


def test_the_command_refuses_with_code_2(storage: RDBStorage, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("To be, or not to be, that is the question.\n" * 100)
    (tmp_path / "toy.yaml").write_text(STUDY.format(text=tmp_path / "text.txt"))
    _train_on(storage, OTHER)
    places = ["--runs", str(tmp_path), "--reports", str(tmp_path / "reports")]
    done = subprocess.run(
        [sys.executable, "-m", "moesearch.run", str(tmp_path / "toy.yaml"), *places],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "which only one machine can work in" in done.stderr
    assert "Traceback" not in done.stderr
