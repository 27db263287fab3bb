"""Twenty kills in one study, at every seam and at random moments; then nothing is lost, repeated or left running."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import optuna
import psutil
import pytest
from optuna.trial import FrozenTrial, TrialState

from moesearch.results.records import FINGERPRINT, MILESTONE_PREFIX, MLFLOW_RUN_ID, REPLICATE, confirm_study_name
from moesearch.results.standing import is_finished
from moesearch.search.storage import closing_store, open_storage
from moesearch.tracking.database import open_client
from moesearch.tracking.mlflow import run_status
from tests.chaos.points import FOLDER, SUPERVISOR_POINTS, WORKER_POINTS, arm, is_armed
from tests.postgres import PostgresServer

NUM_TRIALS = 12
NUM_RANDOM_KILLS = 9
MAX_COMMANDS = 20
STUDY = """\
name: chaos
num_trials: 12
pruner: {{ type: none }}
base:
  model: {{ width: 8, num_layers: 1, num_heads: 2, context: 8 }}
  data: {{ text: {text}, batch_size: 4 }}
  budget: {{ steps: 60, milestones: 6 }}
search:
  moe.num_experts: {{ type: categorical, choices: [2, 4, 8] }}
  moe.top_k: {{ type: categorical, choices: [1, 2] }}
  moe.noise: {{ type: categorical, choices: [true, false] }}
confirm: {{ top: 1, seeds: 2, lr_search: false }}
control: none
"""
Curve = tuple[tuple[object, ...], ...]


@dataclass(frozen=True)
class Run:
    """A study's run in a folder of its own, and where its store is."""

    study: Path
    folder: Path
    store: str
    mlflow: str


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chaos")
    text, path = folder / "text.txt", folder / "chaos.yaml"
    text.write_text("".join(f"To be, or not to be, that is question {n * 7919 % 1000}.\n" for n in range(400)))
    path.write_text(STUDY.format(text=text))
    return path


@pytest.fixture(scope="module")
def quiet(study: Path) -> Run:
    """The same study without a kill, on SQLite: what the others have to come to, on whatever store."""
    run = _on_sqlite(study, study.parent / "quiet")
    assert _command("moesearch.run", run).wait() == 0
    return run


@pytest.fixture(params=["sqlite", "postgresql"])
def run(request: pytest.FixtureRequest, study: Path, tmp_path: Path) -> Iterator[Run]:
    if request.param == "sqlite":
        yield _on_sqlite(study, tmp_path / "chaos")
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    store = server.new_database()
    yield Run(study, tmp_path / "chaos", store, f"{store}_mlflow")
    for url in (store, f"{store}_mlflow"):
        server.drop(url)


def _on_sqlite(study: Path, folder: Path) -> Run:
    runs = folder / "runs"
    return Run(study, folder, f"sqlite:///{runs / 'optuna.db'}", f"sqlite:///{runs / 'mlflow.db'}")


@pytest.mark.timeout(600)
def test_twenty_kills_lose_repeat_and_change_nothing(quiet: Run, run: Run, tmp_path: Path) -> None:
    points = tmp_path / "points"
    points.mkdir()
    num_random_kills, num_commands = _run_through(run, points)
    num_named_kills = len(WORKER_POINTS) + len(SUPERVISOR_POINTS)
    assert not list(points.iterdir()), "a point was never reached"
    assert num_named_kills + num_random_kills >= 20
    print(f"{num_named_kills} kills at named points, {num_random_kills} at random, {num_commands} commands")
    for phase in ("chaos", confirm_study_name("chaos")):
        trials = _trials(run, phase)
        assert {trial.state for trial in trials} == {TrialState.COMPLETE}
        assert sum(map(is_finished, trials)) == (NUM_TRIALS if phase == "chaos" else 2)
        curves = {_key(trial): _curve(trial) for trial in trials}
        assert len(curves) == len(trials), "a trial ran twice"
        assert curves == {_key(trial): _curve(trial) for trial in _trials(quiet, phase)}
        assert _mlflow_states(run, trials) == {
            trial.user_attrs[MLFLOW_RUN_ID]: run_status("COMPLETE") for trial in trials
        }
    assert (run.folder / "reports" / "chaos" / "index.html").exists()
    assert not list((run.folder / "runs" / "checkpoints" / "chaos").glob("*/*.tmp"))


def _command(module: str, run: Run, **environment: str) -> subprocess.Popen[bytes]:
    flags = ["--workers", "2", "--quiet", "--storage", run.store]
    flags += ["--runs", str(run.folder / "runs"), "--reports", str(run.folder / "reports")]
    # Here, since a fixture of the module is older than those of its tests: bits are compared, so one expert product.
    environment = {"MLFLOW_TRACKING_URI": "", "MOESEARCH_EXPERT_BACKEND": "grouped", **environment}
    with _log(run).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", module, str(run.study), *flags],
            stdout=log,
            stderr=log,
            cwd=Path(__file__).parents[2],
            env={**os.environ, **environment},
            start_new_session=True,
        )


def _log(run: Run) -> Path:
    return run.folder.with_suffix(".log")


def _run_through(run: Run, points: Path) -> tuple[int, int]:
    """Give the same command until it ends well; the numbers of random kills and of commands."""
    chance, num_kills, ahead = random.Random(0), 0, list(WORKER_POINTS)
    for point in SUPERVISOR_POINTS:
        arm(points, point)
    for num_commands in range(1, MAX_COMMANDS + 1):
        process = _command("tests.chaos.mortal_command", run, **{FOLDER: str(points)})
        next_kill = time.monotonic() + chance.uniform(2, 6)
        while process.poll() is None:
            time.sleep(0.05)
            # One after another: a trial whose workers die five times at one milestone is given up, and rightly so.
            if ahead and not is_armed(points, WORKER_POINTS):
                arm(points, ahead.pop(0))
            if num_kills < NUM_RANDOM_KILLS and time.monotonic() > next_kill:
                num_kills += _kill_one_of(process.pid, chance)
                next_kill = time.monotonic() + chance.uniform(1, 5)
        _wait_for_orphans(points)
        if process.returncode == 0:
            return num_kills, num_commands
        # 1 is the command that gave up on workers which died of our points again and again.
        assert process.returncode in (-signal.SIGKILL, 1), _log(run).read_text()[-3000:]
    raise AssertionError(f"{MAX_COMMANDS} commands were not enough")


def _kill_one_of(supervisor: int, chance: random.Random) -> bool:
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(supervisor)
        victim = chance.choice([family, *family.children()])
        victim.kill()
        return True
    return False


def _wait_for_orphans(points: Path) -> None:
    """Workers of a killed supervisor leave by themselves: none is there when the next command begins, or soon after."""
    deadline = time.monotonic() + 60  # one that is still importing torch on a busy machine has not looked yet
    while time.monotonic() < deadline:
        if not any(_is_worker_of(process, points) for process in psutil.process_iter(["cmdline", "environ"])):
            return
        time.sleep(0.05)
    raise AssertionError("a worker outlived its supervisor")


def _is_worker_of(process: psutil.Process, points: Path) -> bool:
    environment = process.info["environ"] or {}
    is_worker = "tests.chaos.mortal_worker" in (process.info["cmdline"] or ())
    return is_worker and environment.get(FOLDER) == str(points) and process.status() != psutil.STATUS_ZOMBIE


def _trials(run: Run, name: str) -> list[FrozenTrial]:
    with closing_store(open_storage(run.store, create=False)) as storage:
        return optuna.load_study(study_name=name, storage=storage).trials


def _key(trial: FrozenTrial) -> tuple[str, int]:
    return trial.user_attrs[FINGERPRINT], trial.user_attrs[REPLICATE]


def _curve(trial: FrozenTrial) -> Curve:
    """Everything of every milestone but the seconds, to the last bit."""
    records = sorted(key for key in trial.system_attrs if key.startswith(MILESTONE_PREFIX))
    return (
        *(
            tuple((name, str(value)) for name, value in trial.system_attrs[key].items() if "seconds" not in name)
            for key in records
        ),
        ("value", trial.value, *trial.intermediate_values.items()),
    )


def _mlflow_states(run: Run, trials: list[FrozenTrial]) -> Mapping[str, str]:
    client = open_client(run.mlflow)
    return {
        run_id: client.get_run(run_id).info.status for run_id in (trial.user_attrs[MLFLOW_RUN_ID] for trial in trials)
    }
