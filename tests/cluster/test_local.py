"""`--cluster ray` without a cluster: a Ray of this machine alone, that lasts as long as the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import psutil
import pytest
from optuna.trial import TrialState

from tests.search.stand_ins import storage_in

pytest.importorskip("ray", reason="Ray is not installed: pip install 'moesearch[ray]'")

STUDY = """\
name: tiny
num_trials: 3
base:
  model: {{ width: 8, num_layers: 1, num_heads: 1, context: 8 }}
  data: {{ text: {text}, batch_size: 2 }}
  budget: {{ steps: 4, milestones: 2 }}
search:
  moe.num_experts: {{ type: categorical, choices: [2, 4] }}
  optim.lr: {{ type: float, low: 1e-4, high: 1e-2, log: true }}
confirm: {{ top: 1, seeds: 2 }}
"""


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def test_the_command_trains_on_actors_and_ends_as_without_them(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("To be, or not to be, that is the question.\n" * 200)
    (tmp_path / "tiny.yaml").write_text(STUDY.format(text=tmp_path / "text.txt"))
    done = subprocess.run(
        [sys.executable, "-m", "moesearch.run", "tiny.yaml", "--cluster", "ray", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["finished"] == 3
    assert outcome["verdict"] is not None
    assert (tmp_path / "reports" / "tiny" / "index.html").exists()


def test_ctrl_c_puts_trials_back_ends_ray_and_the_next_run_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.cluster.studies", str(tmp_path)]
    driver = subprocess.Popen(command, start_new_session=True)
    try:
        _wait_for(lambda: (tmp_path / "trained").exists())
        children = psutil.Process(driver.pid).children(recursive=True)
        os.killpg(driver.pid, signal.SIGINT)  # as a terminal does, to all of the group
        assert driver.wait(60) == 130
    finally:
        driver.kill()
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert len(gone) >= 3
    assert alive == []
    trials = optuna.load_study(study_name="toy", storage=storage_in(tmp_path)).trials
    assert {trial.state for trial in trials} <= {TrialState.WAITING, TrialState.COMPLETE}
    subprocess.run(command, check=True)
    trials = optuna.load_study(study_name="toy", storage=storage_in(tmp_path)).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6
    assert len((tmp_path / "trained").read_text().splitlines()) == 6 * 4  # nothing was trained twice


def _wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
