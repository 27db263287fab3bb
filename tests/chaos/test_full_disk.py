"""A study on a disk that is filled while it runs: real training, a real store, and a real file system of 16 MB."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from threading import Event

import optuna
import pytest
from optuna.trial import TrialState

from moesearch.config.loader import load_study
from moesearch.search import crew
from moesearch.search.crew import Crew
from moesearch.search.machine import Placement
from moesearch.search.order import WorkOrder
from moesearch.search.progress import Progress
from moesearch.search.storage import closing_store, open_storage
from moesearch.search.supervisor import run_study
from tests.chaos.points import FOLDER
from tests.chaos.test_chaos import STUDY

NUM_TRIALS = 12
MILESTONES = [1, 2, 3, 4, 5, 6]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.timeout(300)
def test_a_study_whose_disk_is_full_pauses_tears_nothing_and_goes_on_when_there_is_room(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "NO_ROOM_SECONDS", 2.5)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv(FOLDER, str(tmp_path))  # no point is armed; with them comes a checkpoint at each milestone
    (tmp_path / "text.txt").write_text("To be, or not to be, that is the question.\n" * 400)
    (tmp_path / "chaos.yaml").write_text(STUDY.format(text=tmp_path / "text.txt"))
    store, is_paused = f"sqlite:///{disk / 'optuna.db'}", Event()
    order = WorkOrder(load_study(tmp_path / "chaos.yaml", ["confirm.top=0"]), store, disk, None, "cpu")
    workers = Crew(
        order, Placement("cpu", (), 1, threads=1), command=(sys.executable, "-m", "tests.chaos.mortal_worker")
    )

    def show(progress: Progress) -> None:
        if progress.lacks_room:
            is_paused.set()

    with ThreadPoolExecutor() as threads:
        filling = threads.submit(_fill_until, is_paused, disk)
        outcome = run_study(order, workers, fresh=False, command="", show=show, note=print)
        num_bytes = filling.result()
    assert is_paused.is_set()
    assert num_bytes > 10**6
    assert outcome.progress.num_finished == NUM_TRIALS
    with closing_store(open_storage(store)) as storage:
        trials = optuna.load_study(study_name="chaos", storage=storage).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * NUM_TRIALS
    assert all(sorted(trial.intermediate_values) == MILESTONES for trial in trials)
    with closing(sqlite3.connect(disk / "optuna.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def _fill_until(is_paused: Event, disk: Path) -> int:
    """Take all room of a disk once a checkpoint is there, free it when the study has paused; bytes that it took."""
    deadline = time.monotonic() + 120
    while not any((disk / "checkpoints").rglob("step-*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    filler, num_bytes = disk / "filler", 0
    with filler.open("wb", buffering=0) as file:
        while not is_paused.is_set() and time.monotonic() < deadline:
            with suppress(OSError):
                num_bytes += file.write(bytes(4096 if num_bytes else 4 << 20))
                continue
            time.sleep(0.01)  # whatever becomes free meanwhile is taken as well
    filler.unlink()
    return num_bytes
