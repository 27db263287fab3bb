from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from filelock import FileLock

import moesearch
from moesearch.config.loader import load_trial
from moesearch.data.tokenizers import tokenizer_from_json
from moesearch.data.tokens import load_tokens
from moesearch.errors import InputError
from moesearch.model.transformer import MoETransformer
from moesearch.train import _stop_on_signals, main
from moesearch.training.evaluation import evaluate_split
from moesearch.training.full_run import FullRun
from moesearch.training.model_folder import RESULT_FILES, load_model
from moesearch.training.peers import Peers
from tests.training import tiny

SOURCE = Path(moesearch.__file__).parents[1]

CONFIG = """
trial:
  model: {{width: 8, num_layers: 1, num_heads: 2, context: 8}}
  moe: {{num_experts: 3}}
  data: {{text: {text}, batch_size: 4}}
  budget: {{steps: 12, milestones: 3}}
provenance: {{study: words}}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration file in an empty folder, which is the working directory."""
    # MLflow's own tests are elsewhere; where it cannot be reached, training goes on without it.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nowhere/at/all/mlflow.db")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text(tiny.text(3000, 3))
    path = tmp_path / "best.yaml"
    path.write_text(CONFIG.format(text=tmp_path / "words.txt"))
    return path


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def reproducible(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in point.items() if not name.endswith("seconds")} for point in points]


def test_it_prints_one_json_object_per_milestone(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(config), "--json"]) == 0
    points = json_lines(capsys.readouterr().out)
    assert [point["step"] for point in points] == [4, 8, 12]
    assert {"tokens", "train_loss", "val_loss", "val_bpb", "train_seconds", "load_entropy"} <= points[0].keys()


def test_it_writes_weights_configuration_tokenizer_curve_and_text(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(config)]) == 0
    out = Path("runs/train/best")
    trial = load_trial(out / "config.yaml")
    assert trial == load_trial(config)
    tokens = load_tokens(trial.data)
    assert tokenizer_from_json((out / "tokenizer.json").read_text()) == tokens.tokenizer
    rows = list(csv.DictReader((out / "curves.csv").read_text().splitlines()))
    model = MoETransformer([trial], tokens.vocab_size)
    model.load_lane(0, safetensors.torch.load_file(out / "model.safetensors"))
    results = evaluate_split(model, tokens.val, tokens.bytes_per_id_V)
    assert results is not None
    assert float(rows[-1]["val_loss"]) == results[0].loss
    assert results[0].router_health is not None
    assert float(rows[-1]["max_vio"]) == results[0].router_health.max_vio
    assert (out / "sample.txt").read_text() in capsys.readouterr().out


def test_the_same_command_again_shows_the_run_without_training(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert main([str(config), "--json"]) == 0
    points = json_lines(capsys.readouterr().out)
    assert points[:3] == points[3:]


def test_a_set_changes_the_configuration(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(config), "--json", "--set", "budget.milestones=1", "--out", "elsewhere"]) == 0
    assert len(json_lines(capsys.readouterr().out)) == 1
    assert Path("elsewhere/model.safetensors").exists()


def test_a_run_of_another_configuration_is_not_overwritten(config: Path) -> None:
    assert main([str(config)]) == 0
    with pytest.raises(InputError, match=r"optim\.lr is 0\.001 there and 0\.5 here"):
        main([str(config), "--set", "optim.lr=0.5"])


def test_a_damaged_run_is_named_with_the_way_on(config: Path) -> None:
    assert main([str(config)]) == 0
    for path in Path("runs/train/best/checkpoints").glob("*.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="remove the folder"):
        main([str(config)])


def test_two_commands_cannot_train_into_one_folder(config: Path) -> None:
    out = Path("runs/train/best")
    out.mkdir(parents=True)
    with FileLock(out / ".lock"), pytest.raises(InputError, match="another command is training there"):
        main([str(config)])


def test_a_file_in_the_way_is_a_message(config: Path) -> None:
    with pytest.raises(InputError, match="File exists"):
        main([str(config), "--out", str(config)])


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cuda:x"])
def test_a_device_that_is_not_there_is_a_message(config: Path, device: str) -> None:
    with pytest.raises(InputError, match=f"--device {device}"):
        main([str(config), "--device", device])


def test_a_diverged_run_says_so_and_writes_no_weights(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["optim.lr=100", "optim.weight_decay=100", "budget.steps=60"]
    assert main([str(config), "--json", *(part for change in changes for part in ("--set", change))]) == 2
    captured = capsys.readouterr()
    assert json_lines(captured.out)[-1]["val_loss"] is None
    assert "diverged at step" in captured.err
    assert not Path("runs/train/best/model.safetensors").exists()


LONG = ["--json", "--set", "budget.steps=200", "--set", "budget.milestones=40"]


def test_a_terminated_run_continues_bit_for_bit(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "moesearch.train", str(config), *LONG]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(SOURCE)}, **pipes) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        rest, messages = process.communicate(timeout=60)
    before = json_lines(first + rest)
    assert process.returncode == 130, messages
    assert "the same command goes on" in messages
    assert 0 < len(before) < 40
    assert main([str(config), *LONG]) == 0
    resumed = json_lines(capsys.readouterr().out)
    assert resumed[: len(before)] == before
    assert main([str(config), *LONG, "--out", "through"]) == 0
    assert reproducible(resumed) == reproducible(json_lines(capsys.readouterr().out))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_is_the_callers(number: signal.Signals) -> None:
    heard: list[int] = []
    before = signal.signal(number, lambda received, _: heard.append(received))
    try:
        with _stop_on_signals() as stop:
            signal.raise_signal(number)
            assert (stop.is_set(), heard) == (True, [])
            signal.raise_signal(number)
            assert heard == [number]
    finally:
        signal.signal(number, before)


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, moesearch.train; print([m for m in ('torch', 'mlflow', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=SOURCE)
    assert done.stdout.strip() == "[]"


def test_a_run_is_in_mlflow_with_its_losses_and_its_files(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    for _ in range(2):
        assert main([str(config)]) == 0
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{Path('runs/mlflow.db').absolute()}")
    experiment = client.get_experiment_by_name("final")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["moe.num_experts"] == "3"
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "val_loss")] == [4, 8, 12]
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert names == set(RESULT_FILES)
    assert torch.is_tensor(safetensors.torch.load_file("runs/train/best/model.safetensors")["head.weight"])


def test_patience_stops_where_the_loss_no_longer_falls_and_keeps_its_lowest(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [str(config), "--json", "--patience", "2", "--set", "optim.lr=0.3", "--set", "budget.milestones=12"]
    assert main(flags) == 0
    points = json_lines(capsys.readouterr().out)
    losses = [point["val_loss"] for point in points]
    assert len(points) < 12
    assert losses.index(min(losses)) == len(losses) - 3
    out = Path("runs/train/best")
    trained, tokens = load_model(out), load_tokens(load_trial(config).data)
    results = evaluate_split(trained.model, tokens.val, tokens.bytes_per_id_V)
    assert results is not None
    assert results[0].loss == min(losses)
    assert "was the lowest of the run" in (out / "README.md").read_text()
    assert len(list((out / "milestones").iterdir())) == 1


def test_the_weights_of_the_last_milestones_are_averaged(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(config), "--average", "2"]) == 0
    out = Path("runs/train/best")
    kept = [safetensors.torch.load_file(path) for path in sorted((out / "milestones").iterdir())]
    assert len(kept) == 2
    for name, tensor in safetensors.torch.load_file(out / "model.safetensors").items():
        torch.testing.assert_close(tensor, (kept[0][name] + kept[1][name]) / 2)
    assert "the weights are the mean of those at steps 8, 12" in (out / "README.md").read_text()
    assert "averaged_val_loss" in (out / "config.yaml").read_text()


def test_a_larger_run_says_what_is_not_proven_of_it(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(config), "--scale", "width=2,tokens=2x"]) == 0
    trial = load_trial(Path("runs/train/best/config.yaml"))
    assert (trial.model.width, trial.model.num_heads, trial.budget.steps) == (16, 4, 24)
    assert trial.optim.mup_base_width == 8
    assert "--scale: no rule carries a learning rate to more tokens" in capsys.readouterr().err


def test_two_processes_train_as_one_with_the_same_batch(config: Path) -> None:
    flags = ["--json", "--set", "moe.bias_update_speed=0.01", "--set", "optim.grad_clip=1.0"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]

    def losses(out: str, launcher: list[str]) -> list[float]:
        command = [sys.executable, *launcher, "moesearch.train", str(config), *flags, "--out", out]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        points = json_lines(done.stdout)
        return [point[name] for point in points for name in ("train_loss", "val_loss")]

    assert losses("two", torchrun) == pytest.approx(losses("one", ["-m"]), abs=2e-5)
    assert {path.name for path in Path("two").iterdir()} >= set(RESULT_FILES)


def test_a_batch_that_cannot_be_shared_out_is_named(config: Path) -> None:
    with pytest.raises(InputError, match=r"data.batch_size \(4\) must be a multiple of the 3 processes"):
        FullRun(load_trial(config), load_tokens(load_trial(config).data), "cpu", Path("out"), peers=Peers(0, 3))
