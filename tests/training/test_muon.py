from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from moesearch.config.trial import OptimConfig
from moesearch.training.muon import orthogonalized
from moesearch.training.optimizer import LaneOptimizer
from tests.training.tiny import RANDOM, losses, run_to_end, trainer_of, trial

MUON: dict[str, object] = {**RANDOM, "optim.expert_optimizer": "muon", "optim.lr": 1e-2}
OPTIM = OptimConfig(expert_optimizer="muon", lr=1e-2, muon_lr=2e-2, weight_decay=0.1, muon_momentum=0.9)


def parameters(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"experts.weight_in": (3, 8, 16), "experts.weight_out": (3, 16, 8), "head.weight": (8, 5)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def apply(optimizer: LaneOptimizer, gradients: Mapping[str, Tensor], *, scale: float = 1.0, skip: float = 0.0) -> None:
    optimizer.step(gradients, lr=torch.tensor(OPTIM.lr), grad_scale=torch.tensor(scale), skip=torch.tensor(skip))


@pytest.mark.parametrize("shape", [(4, 6, 6), (4, 3, 9), (4, 9, 3)])
def test_each_matrix_is_orthogonalised_as_torchs_own_would_be(shape: tuple[int, int, int]) -> None:
    from torch.optim._muon import _zeropower_via_newtonschulz

    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    ours = orthogonalized(matrices, torch.bfloat16)
    theirs = torch.stack([_zeropower_via_newtonschulz(m, (3.4445, -4.775, 2.0315), 5, 1e-7) for m in matrices])
    torch.testing.assert_close(ours, theirs, atol=0.03, rtol=0.03)
    torch.testing.assert_close(orthogonalized(matrices).bfloat16(), theirs, atol=0.06, rtol=0.06)


def test_singular_values_come_near_one_whatever_they_were() -> None:
    matrices = torch.randn(2, 8, 16) * torch.tensor([1e-3, 1e3])[:, None, None]
    values = torch.linalg.svdvals(orthogonalized(matrices))
    assert 0.6 < float(values.min()) < float(values.max()) < 1.3


def test_steps_are_those_of_torchs_muon_on_each_expert_matrix() -> None:
    ours = parameters()
    theirs = {
        (name, expert): torch.nn.Parameter(matrix.clone())
        for name, tensor in parameters().items()
        if tensor.ndim == 3
        for expert, matrix in enumerate(tensor)
    }
    optimizer = LaneOptimizer(OPTIM, ours)
    reference = torch.optim.Muon(
        list(theirs.values()), lr=2e-2, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw"
    )
    for seed in range(3):
        gradients = parameters(seed + 1)
        apply(optimizer, gradients)
        for (name, expert), parameter in theirs.items():
            parameter.grad = gradients[name][expert].clone()
        reference.step()  # type: ignore[no-untyped-call]
    for (name, expert), parameter in theirs.items():
        # torch multiplies in bfloat16: its rounding is some hundredths of an update of 0.2 * sqrt(16) * 2e-2.
        torch.testing.assert_close(ours[name][expert], parameter.detach(), atol=1.5e-3, rtol=0)


def test_what_is_no_expert_matrix_stays_with_adamw() -> None:
    with_muon, without = parameters(), parameters()
    apply(LaneOptimizer(OPTIM, with_muon), parameters(1))
    apply(LaneOptimizer(OPTIM.model_copy(update={"expert_optimizer": "adamw"}), without), parameters(1))
    assert torch.equal(with_muon["head.weight"], without["head.weight"])
    assert not torch.equal(with_muon["experts.weight_in"], without["experts.weight_in"])


def test_a_skipped_step_changes_nothing_even_on_a_gradient_of_nan() -> None:
    ours = parameters()
    optimizer = LaneOptimizer(OPTIM, ours)
    apply(optimizer, {name: torch.full_like(tensor, float("nan")) for name, tensor in ours.items()}, skip=1.0)
    assert all(torch.equal(ours[name], tensor) for name, tensor in parameters().items())
    assert all(not moment.any() for moment in optimizer.exp_avg.values())


def test_a_gradient_scale_divides_the_gradient() -> None:
    scaled, divided = LaneOptimizer(OPTIM, parameters()), LaneOptimizer(OPTIM, parameters())
    apply(scaled, parameters(1), scale=4.0)
    apply(divided, {name: gradient / 4 for name, gradient in parameters(1).items()})
    assert all(torch.equal(scaled.exp_avg[name], divided.exp_avg[name]) for name in scaled.exp_avg)


def test_muon_keeps_no_second_moments() -> None:
    optimizer = LaneOptimizer(OPTIM, parameters())
    assert optimizer.exp_avg.keys() == parameters().keys()
    assert optimizer.exp_avg_sq.keys() == {"head.weight"}


def test_a_lane_under_muon_trains_as_it_does_alone() -> None:
    configs = [trial(MUON, seed=1), trial({"optim.lr": 1e-2}, seed=2), trial({**MUON, "optim.muon_lr": 3e-3}, seed=3)]
    together = run_to_end(trainer_of(*configs))
    for lane, config in enumerate(configs):
        alone = run_to_end(trainer_of(config))[0]
        assert [p.val_loss for p in together[lane]] == pytest.approx([p.val_loss for p in alone], abs=2e-5)


def test_its_own_learning_rate_is_heeded_when_a_lane_is_refilled() -> None:
    trainer = trainer_of(trial(MUON))
    trainer.advance()
    trainer.free(0)
    second = trial({**MUON, "optim.muon_lr": 3e-3, "optim.lr": 2e-2})
    trainer.load(0, second)
    assert losses(run_to_end(trainer)[0]) == losses(run_to_end(trainer_of(second))[0])
