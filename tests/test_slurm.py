"""The Slurm recipe, by submitit's local executor: jobs are processes of this machine, and warned as by Slurm."""

from __future__ import annotations

import importlib.util
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import psutil
import pytest

from moesearch.results.standing import is_finished
from tests.search.stand_ins import storage_in

pytest.importorskip("submitit", reason="submitit is not installed: pip install 'moesearch[slurm]'")

STUDY = """\
name: toy
num_trials: 4
base:
  model: {{ width: 8, num_layers: 1, num_heads: 1, context: 8 }}
  data: {{ text: {text}, batch_size: 2 }}
  budget: {{ steps: 800, milestones: 8 }}
search:
  moe.num_experts: {{ type: categorical, choices: [2, 4] }}
  optim.lr: {{ type: float, low: 1e-4, high: 1e-2, log: true }}
confirm: {{ top: 0 }}
"""


@pytest.fixture
def recipe() -> ModuleType:
    path = Path(__file__).parents[1] / "docs" / "slurm.py"
    spec = importlib.util.spec_from_file_location("slurm_recipe", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.timeout(600)
def test_a_job_whose_time_is_up_is_queued_again_and_the_study_ends_exactly(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    (tmp_path / "text.txt").write_text("To be, or not to be, that is the question.\n" * 200)
    (tmp_path / "toy.yaml").write_text(STUDY.format(text=tmp_path / "text.txt"))
    arguments = [str(tmp_path / "toy.yaml"), "--workers", "2", "--quiet"]
    arguments += ["--runs", str(tmp_path), "--reports", str(tmp_path / "reports")]
    (job,) = recipe.submit(arguments, "local", tmp_path / "jobs", 1, timeout_min=10)
    controller = psutil.Process(int(job.job_id))
    try:
        _wait_until_a_trial_trains(tmp_path)
        for task in controller.children():
            task.send_signal(signal.SIGUSR2)  # as the controller does, and Slurm, when the time is nearly up
        assert job.result() == 0
    finally:
        for process in _family(controller):
            with suppress(psutil.NoSuchProcess):
                process.kill()
    trials = optuna.load_study(study_name="toy", storage=storage_in(tmp_path)).trials
    assert "Requeued job" in job.stderr() + job.stdout()
    assert sum(map(is_finished, trials)) == len(trials) == 4  # what was begun before went on after


def _wait_until_a_trial_trains(folder: Path, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while True:
        assert time.monotonic() < deadline
        time.sleep(0.2)
        if (folder / "optuna.db").exists():
            try:
                trials = optuna.load_study(study_name="toy", storage=storage_in(folder)).trials
            except KeyError:
                continue
            if any(trial.last_step for trial in trials):
                return


def _family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return []
