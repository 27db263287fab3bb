"""Routing that changes as training goes: balancing biases, noise that fades, and losses that no objective holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from moesearch.config.trial import TrialConfig
from moesearch.training.full_run import FullRun
from moesearch.training.lane import Lane
from moesearch.training.pack import LanePack
from moesearch.training.trainer import LaneTrainer
from tests.training.tiny import TOKENS, curve, losses, run_to_end, stop_after, trainer_of, trial

BALANCED: Mapping[str, object] = {"moe.bias_update_speed": 0.02, "moe.router": "sigmoid"}
BIAS = "layers.{}.moe.router.balancing.expert_bias"


def biases(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([tensors[BIAS.format(layer)] for layer in range(2)])


def largest_load(config: TrialConfig) -> float:
    """Load of the fullest expert over the mean, after training, on the training text."""
    trainer = trainer_of(config)
    run_to_end(trainer)
    with torch.no_grad():
        routings = trainer.model(0)(TOKENS.train[:800].view(1, 100, 8)).routings
    counts_RE = torch.stack([routing.counts_RE() for routing in routings]).double()
    return float((counts_RE.amax(-1) / counts_RE.mean(-1)).max())


def test_biases_even_out_the_load() -> None:
    settings = {"budget.steps": 60, "moe.num_experts": 8, "moe.router": "sigmoid"}
    loads = [largest_load(trial({**settings, "moe.bias_update_speed": speed})) for speed in (0.0, 0.02)]
    assert loads[1] < 0.75 * loads[0]


def test_a_bias_moves_by_whole_steps_of_its_speed_and_has_no_moments() -> None:
    trainer = trainer_of(trial(BALANCED))
    trainer.advance(stop_after(3))
    checkpoint = trainer.checkpoint(0)
    moves = biases(checkpoint.parameters) / 0.02
    torch.testing.assert_close(moves, moves.round())
    assert 0 < float(moves.abs().max()) <= 3
    assert checkpoint.exp_avg.keys() == checkpoint.parameters.keys() - {BIAS.format(layer) for layer in range(2)}


def test_a_lane_without_balancing_has_no_biases_beside_one_that_has() -> None:
    trainer = trainer_of(trial(BALANCED), trial({"moe.num_experts": 6}, seed=1))
    trainer.advance()
    assert BIAS.format(0) not in trainer.checkpoint(1).parameters
    assert biases(trainer.checkpoint(0).parameters).shape == (2, 4)


def test_a_refilled_lane_starts_without_its_predecessors_biases() -> None:
    trainer = trainer_of(trial(BALANCED, seed=1))
    trainer.advance()
    trainer.free(0)
    config = trial(BALANCED, seed=2)
    trainer.load(0, config)
    assert losses(run_to_end(trainer)[0]) == losses(curve(config))


def test_a_rehearsal_moves_no_bias_and_a_diverged_lane_keeps_its_own() -> None:
    lanes = [Lane(trial(BALANCED, seed=seed), TOKENS) for seed in (1, 2)]
    pack = LanePack(lanes, TOKENS.train, TOKENS.vocab_size, dtype=torch.float32)
    held = [lane.tensors.parameters for lane in lanes if lane.tensors is not None]
    with pack.step.rehearsal():
        pack.step()
    assert all((biases(tensors) == 0).all() for tensors in held)
    held[0]["head.weight"].fill_(float("nan"))
    pack.step.begin([lane.plan(2) for lane in lanes])
    pack.run_step()
    pack.run_step()
    assert [bool((biases(tensors) == 0).all()) for tensors in held] == [True, False]


def test_the_written_weights_hold_the_biases(tmp_path: Path) -> None:
    run = FullRun(trial({**BALANCED, "budget.steps": 4}), TOKENS, "cpu", tmp_path)
    for _ in run.train(lambda: False):
        pass
    run.write_results()
    assert float(biases(safetensors.torch.load_file(tmp_path / "model.safetensors")).abs().max()) > 0


def test_given_noise_is_gone_after_its_part_of_the_budget() -> None:
    noisy = trial({"moe.noise_std": 1.0, "moe.noise_decay_fraction": 0.5})
    quiet = trial()
    trainer = trainer_of(noisy)
    trainer.advance()
    trainer.advance()
    assert trainer.step(0) == 10
    assert losses(list(trainer.points(0))) != losses(curve(quiet)[:2])
    went_on = LaneTrainer(TOKENS)
    went_on.load(0, quiet, replace(trainer.checkpoint(0), config=quiet))
    assert losses(run_to_end(went_on)[0]) == losses(run_to_end(trainer)[0])


def test_router_losses_are_in_no_reported_loss() -> None:
    weighted = {"moe.load_balancing_loss_weight": 100.0, "moe.router_z_loss_weight": 100.0, "optim.lr": 1e-30}
    # Parameters stay where they start, so only what is counted could differ.
    plain, heavy = (curve(trial({**params, "optim.weight_decay": 0.0})) for params in ({"optim.lr": 1e-30}, weighted))
    assert losses(plain) == losses(heavy)
