"""A run that was killed and resumed has the curve of one that was not, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from moesearch.training.checkpoints import load_checkpoint, save_checkpoint
from moesearch.training.trainer import LaneTrainer
from tests.training.tiny import RANDOM, TOKENS, curve, losses, run_to_end, stop_after, trainer_of, trial

FULL: Mapping[str, object] = {
    **RANDOM,
    "optim.schedule": "cosine",
    "optim.warmup_tokens": 100,
    "optim.grad_clip": 1.0,
    "moe.load_balancing_loss_weight": 0.01,
    "moe.router": "sigmoid",
    "moe.noise_std": 0.5,
    "moe.input_jitter": 0.1,
    "moe.bias_update_speed": 0.01,
    "moe.capacity_factor": 1.0,
    "optim.expert_optimizer": "muon",
    "optim.mup_base_width": 4,
}


def resumed(folder: Path) -> LaneTrainer:
    """A new trainer that continues from the folder's newest checkpoint."""
    checkpoint = load_checkpoint(folder)
    trainer = LaneTrainer(TOKENS)
    trainer.load(0, checkpoint.config, checkpoint)
    return trainer


@pytest.mark.parametrize("num_steps", [0, 1, 5, 7, 19])
def test_a_resumed_run_continues_bit_for_bit_wherever_it_was_stopped(tmp_path: Path, num_steps: int) -> None:
    config = trial(FULL)
    trainer = trainer_of(config)
    points = []
    while trainer.step(0) < num_steps:
        points += [point for _, point in trainer.advance(stop_after(num_steps - trainer.step(0)))]
    save_checkpoint(trainer.checkpoint(0), tmp_path)
    points += run_to_end(resumed(tmp_path)).get(0, [])
    assert losses(points) == losses(curve(config))


def test_parameters_and_moments_of_a_resumed_run_are_bit_equal(tmp_path: Path) -> None:
    config = trial(FULL)
    through, stopped = trainer_of(config), trainer_of(config)
    stopped.advance(stop_after(3))
    save_checkpoint(stopped.checkpoint(0), tmp_path)
    after = resumed(tmp_path)
    for trainer in (through, after):
        run_to_end(trainer)
    ours, theirs = after.checkpoint(0), through.checkpoint(0)
    for left, right in (
        (ours.parameters, theirs.parameters),
        (ours.exp_avg, theirs.exp_avg),
        (ours.exp_avg_sq, theirs.exp_avg_sq),
    ):
        assert all(torch.equal(left[name], right[name]) for name in right)


def test_a_torn_newest_checkpoint_costs_steps_but_no_bits(tmp_path: Path) -> None:
    config = trial(FULL)
    trainer = trainer_of(config)
    for _ in range(2):
        trainer.advance()
        save_checkpoint(trainer.checkpoint(0), tmp_path)
    newest = max(tmp_path.glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:100])
    after = resumed(tmp_path)
    assert after.step(0) == 5
    run_to_end(after)
    assert losses(list(after.points(0)))[-1] == losses(curve(config))[-1]


def test_a_checkpoint_holds_the_whole_curve_so_far() -> None:
    trainer = trainer_of(trial())
    points = [trainer.advance()[0][1] for _ in range(3)]
    assert list(trainer.checkpoint(0).points) == points


def test_a_checkpoint_is_a_snapshot_that_further_training_leaves_alone() -> None:
    trainer = trainer_of(trial())
    checkpoint = trainer.checkpoint(0)
    before = {name: tensor.clone() for name, tensor in checkpoint.parameters.items()}
    trainer.advance()
    assert all(torch.equal(checkpoint.parameters[name], tensor) for name, tensor in before.items())


def test_a_lane_resumes_among_others_as_it_would_alone(tmp_path: Path) -> None:
    config = trial(FULL)
    alone = trainer_of(config)
    alone.advance(stop_after(7))
    alone.advance(stop_after(2))
    save_checkpoint(alone.checkpoint(0), tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    trainer = LaneTrainer(TOKENS, num_lanes=2)
    trainer.load(0, trial({"moe.num_experts": 6}, seed=4))
    trainer.load(1, config, checkpoint)
    points = run_to_end(trainer)[1]
    expected = curve(config)[-len(points) :]
    assert [point.val_loss for point in points] == pytest.approx([point.val_loss for point in expected], abs=1e-4)
