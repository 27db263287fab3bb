from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from moesearch.errors import StudyFileError
from moesearch.run import main

STUDY = """\
name: tiny
num_trials: 3
base:
  model: {{ width: 8, num_layers: 1, num_heads: 2, context: 8 }}
  data: {{ text: {text}, batch_size: 4 }}
  budget: {{ steps: 8, milestones: 2 }}
search:
  moe.num_experts: {{ type: categorical, choices: [2, 4] }}
  moe.top_k: {{ type: categorical, choices: [1, 2] }}
enqueue:
  - {{ moe.num_experts: 4, moe.top_k: 2 }}
confirm: {{ top: 1, seeds: 2 }}
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    text, path = tmp_path / "text.txt", tmp_path / "tiny.yaml"
    text.write_text("To be, or not to be, that is the question.\n" * 100)
    path.write_text(STUDY.format(text=text))
    return path


def _command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "moesearch.run", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_dry_run_trains_nothing_and_writes_nothing(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(study.parent.iterdir())
    assert main([str(study), "--dry-run", "--runs", str(study.parent / "runs")]) == 0
    assert "4 points, 4 of them feasible" in capsys.readouterr().out
    assert sorted(study.parent.iterdir()) == before


def test_a_dry_run_can_be_read_by_a_program(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(study), "--dry-run", "--json", "--trials", "7", "--set", "base.moe.init=normal"])
    assert json.loads(capsys.readouterr().out)["num_trials"] == 7


@pytest.mark.parametrize(
    "arguments", [["--trials", "none"], ["--workers", "0"], ["--lanes", "65"], ["--device", "tpu"], ["--seed", "-1"]]
)
def test_a_flag_is_checked_as_the_field_that_it_sets(study: Path, arguments: list[str]) -> None:
    with pytest.raises(StudyFileError):
        main([str(study), "--dry-run", *arguments])


def test_a_mistake_ends_with_code_2_and_without_a_traceback(tmp_path: Path) -> None:
    done = _command(tmp_path / "missing.yaml")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "missing.yaml" in done.stderr


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, moesearch.run; sys.exit(any(m in sys.modules for m in ('torch', 'optuna', 'mlflow', 'pandas')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
