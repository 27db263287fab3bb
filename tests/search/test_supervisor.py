from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.trial import TrialState

from moesearch.config.study import StudyConfig
from moesearch.errors import InputError, MoesearchError
from moesearch.results.records import CORPUS_FACTS, OUTCOME, REASON, SESSION_PREFIX, VERDICT_MAKER
from moesearch.search import crew, supervisor
from moesearch.search.crew import Crew
from moesearch.search.machine import Placement, available_cores, gpu_names, place
from moesearch.search.order import WorkOrder
from moesearch.search.progress import Progress
from moesearch.search.storage import store_lock
from moesearch.search.supervisor import Outcome, run_study
from moesearch.search.worker_names import host_name
from tests.search.processes import start
from tests.search.stand_ins import MILESTONES, begin, storage_in, study_config, url_of

pytestmark = pytest.mark.usefixtures("every_store")

TEXT = "To be, or not to be, that is the question.\n" * 300


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers find the tests' modules where pytest was started."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def _config(folder: Path, num_trials: int = 6, **changes: Any) -> StudyConfig:
    text = folder / "text.txt"
    if not text.exists():
        text.write_text(TEXT)
    base = {"data": {"text": str(text)}, "budget": {"steps": 40, "milestones": MILESTONES}}
    return study_config(base=base, num_trials=num_trials, **changes)


def _run(
    folder: Path,
    mishap: str = "none",
    *,
    num_trials: int = 6,
    num_workers: int = 1,
    shown: list[Progress] | None = None,
    said: list[str] | None = None,
    **changes: Any,
) -> Outcome:
    shown = [] if shown is None else shown
    order = WorkOrder(_config(folder, num_trials, **changes), url_of(folder), folder, None, "cpu")
    placement = Placement("cpu", (), num_workers, threads=1)
    return run_study(
        order,
        Crew(order, placement, command=(sys.executable, "-m", "tests.search.fake_process", mishap)),
        fresh=False,
        command="python -m moesearch.run toy.yaml",
        show=shown.append,
        note=(lambda _: None) if said is None else said.append,
    )


def _trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="toy", storage=storage_in(folder)).trials


def test_two_workers_bring_a_study_to_its_end_and_the_store_says_how(tmp_path: Path) -> None:
    shown: list[Progress] = []
    outcome = _run(tmp_path, num_workers=2, shown=shown)
    storage = storage_in(tmp_path)
    attrs = storage.get_study_system_attrs(storage.get_study_id_from_name("toy"))
    (session,) = (attrs[name] for name in attrs if name.startswith(SESSION_PREFIX))
    assert [trial.state for trial in _trials(tmp_path)] == [TrialState.COMPLETE] * 6
    assert (outcome.had_work, outcome.progress.num_finished, outcome.progress.phase) == (True, 6, "report")
    assert shown
    assert attrs[CORPUS_FACTS]["characters"] == len(TEXT)
    assert session["command"] == "python -m moesearch.run toy.yaml"
    assert session["started"] < session["ended"]
    assert list((tmp_path / "logs" / "toy").iterdir()) == []
    assert not _run(tmp_path, "dies-at-once").had_work  # again: no worker is started


def test_a_killed_worker_is_started_again_and_its_trial_goes_on(tmp_path: Path) -> None:
    _run(tmp_path, "killed-once")
    assert (tmp_path / "killed").exists()
    assert [trial.state for trial in _trials(tmp_path)] == [TrialState.COMPLETE] * 6
    assert all(list(trial.intermediate_values) == [1, 2, 3, 4] for trial in _trials(tmp_path))


def test_a_worker_that_dies_again_and_again_ends_the_run_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "MAX_RESTARTS", 1)
    with pytest.raises(MoesearchError, match=r"died 2 times in a row[\s\S]*no luck today"):
        _run(tmp_path, "dies-at-once")


def test_a_hung_trial_ends_with_its_worker_and_the_study_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "HANG_SECONDS", 0.0)
    outcome = _run(tmp_path, "hangs-once", num_trials=3, run={"max_trial_seconds": 2})
    first, *others = _trials(tmp_path)
    assert (first.state, first.user_attrs[OUTCOME]) == (TrialState.PRUNED, "timed_out")
    assert "its worker did not react" in first.user_attrs[REASON]
    assert [trial.state for trial in others] == [TrialState.COMPLETE] * 3
    assert outcome.progress.num_finished == 3


def test_a_full_disk_pauses_the_study_until_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "NO_ROOM_SECONDS", 2.0)
    shown: list[Progress] = []
    _run(tmp_path, "no-room-once", num_trials=3, shown=shown)
    news = [progress.lacks_room for progress in shown]
    assert True in news
    assert not news[0]
    assert [trial.state for trial in _trials(tmp_path)] == [TrialState.COMPLETE] * 3


def test_a_mistake_that_a_worker_finds_is_a_persons(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^tiny_shakespeare: cannot be downloaded$"):
        _run(tmp_path, "no-corpus")


def test_a_study_whose_trials_nearly_all_fail_stops_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1\d of 1\d trials failed; the last one: diverged"):
        _run(tmp_path, "diverges", num_trials=50)


def test_a_text_that_changed_under_a_study_is_refused(tmp_path: Path) -> None:
    begin(_config(tmp_path), tmp_path)
    storage = storage_in(tmp_path)
    storage.set_study_system_attr(storage.get_study_id_from_name("toy"), CORPUS_FACTS, {"sha256": "0" * 64})
    with pytest.raises(InputError, match="began on another text"):
        _run(tmp_path)


def _run_slowly(folder: str) -> None:
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    try:
        _run(Path(folder), "slow", num_trials=3, num_workers=2)
    except KeyboardInterrupt:
        sys.exit(130)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_leaves_no_trial_running_and_the_next_one_finishes(number: int, tmp_path: Path) -> None:
    supervisor = start(_run_slowly, str(tmp_path))
    assert supervisor.pid is not None
    _wait_for(lambda: any(t.last_step for t in _trials_if_any(tmp_path)))
    workers = psutil.Process(supervisor.pid).children()
    os.kill(supervisor.pid, number)
    supervisor.join(15)
    gone, alive = psutil.wait_procs(workers, timeout=15)
    assert (len(gone), alive) == (2, [])
    assert supervisor.exitcode == (-number if number == signal.SIGKILL else 130)
    assert {trial.state for trial in _trials(tmp_path)} <= {TrialState.WAITING, TrialState.COMPLETE}
    _run(tmp_path, num_trials=3)
    trials = _trials(tmp_path)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    assert all(list(trial.intermediate_values) == [1, 2, 3, 4] for trial in trials)


def test_a_command_that_waits_for_anothers_verdict_says_whose(tmp_path: Path) -> None:
    _run(tmp_path)
    storage, said = storage_in(tmp_path), list[str]()
    study_id = storage.get_study_id_from_name("toy")
    with ThreadPoolExecutor() as threads:
        with store_lock(storage, "verdict"):
            storage.set_study_system_attr(study_id, VERDICT_MAKER, "elsewhere")
            waiting = threads.submit(_run, tmp_path, said=said)
            _wait_for(lambda: bool(said) or waiting.done())
            assert not waiting.done()
        assert not waiting.result(30).had_work
    assert said == ["toy: waiting for the verdict that elsewhere makes"]
    assert storage.get_study_system_attrs(study_id)[VERDICT_MAKER] == host_name()


def _trials_if_any(folder: Path) -> list[optuna.trial.FrozenTrial]:
    try:
        return _trials(folder)
    except KeyError:
        return []


def _wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_by_default_there_is_a_worker_per_core_with_a_thread_each_and_none_to_spare() -> None:
    cores = available_cores()
    assert place("cpu", "auto", num_runs=1000) == Placement("cpu", (), cores, threads=1)
    assert place("cpu", "auto", num_runs=1) == Placement("cpu", (), 1, threads=cores)
    assert place("cpu", 1, num_runs=1000).environment(0)["OMP_NUM_THREADS"] == str(cores)


def test_workers_take_turns_on_the_gpus() -> None:
    placement = Placement("cuda", ("3", "5"), num_workers=3, threads=1)
    assert [placement.environment(index)["CUDA_VISIBLE_DEVICES"] for index in range(3)] == ["3", "5", "3"]


def test_a_worker_whose_gpu_is_lost_is_given_up_while_another_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "MAX_RESTARTS", 1)
    placement = Placement("cuda", ("0", "1"), 2, threads=1)
    order = WorkOrder(_config(tmp_path), url_of(tmp_path), tmp_path, None, "cpu")
    command = (sys.executable, "-m", "tests.search.fake_process", "gpu-1-is-lost")
    workers = Crew(order, placement, command=command)
    outcome = run_study(order, workers, fresh=False, command="", show=lambda _: None, note=print)
    assert [trial.state for trial in _trials(tmp_path)] == [TrialState.COMPLETE] * 6
    (log,) = outcome.notes
    assert "device is lost" in log.read_text()


@pytest.mark.parametrize(
    ("count", "visible", "names"),
    [
        (2, None, ("0", "1")),
        (2, "", ("0", "1")),
        (2, "3, 5", ("3", "5")),
        (1, "3,nonsense,5", ("3",)),  # CUDA stops at what it does not know
        (2, "GPU-8932f937,MIG-11e8", ("GPU-8932f937", "MIG-11e8")),
        (0, "-1", ()),
    ],
)
def test_gpus_are_named_as_cuda_visible_devices_names_them(
    count: int, visible: str | None, names: tuple[str, ...]
) -> None:
    assert gpu_names(count, visible) == names


def test_a_gpu_that_is_not_there_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    if not Path("/proc/driver/nvidia/version").exists():
        with pytest.raises(InputError, match="no GPU is visible here"):
            place("cuda", "auto", num_runs=1)
