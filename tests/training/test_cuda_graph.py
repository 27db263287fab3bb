"""What a captured step may keep; and, on a GPU, that it captures and agrees. Without one, the step runs eagerly."""

from __future__ import annotations

import pytest
import torch

from moesearch.config.resolve import field_names, is_lane_field, resolve
from moesearch.training.cuda_graph import captured_part, places_for
from moesearch.training.lane import Lane
from moesearch.training.pack import LanePack
from moesearch.training.trainer import LaneTrainer
from tests.training.tiny import BASE, RANDOM, TOKENS, curve, run_to_end, trial

# Lane fields that a step reads from tensors, with another value than BASE's: a refill keeps the captured step.
FREE: dict[str, object] = {
    "seed": 7,
    "data.order_seed": 7,
    "budget.steps": 40,
    "budget.milestones": 2,
    "budget.milestone_share": 0.5,
    "optim.lr": 0.5,
    "optim.grad_clip": 0.5,
    "optim.schedule": "wsd",
    "optim.warmup_tokens": 50,
    "optim.final_lr_fraction": 0.5,
    "optim.decay_fraction": 0.5,
    "optim.muon_lr": 0.5,
    "moe.init": "xavier_normal",
    "moe.init_std": 0.5,
    "moe.init_scale": 0.5,
    "moe.init_depth_scaled": True,
    "moe.init_router": "normal",
    "moe.init_experts": "normal",
    "moe.init_attention": "truncated_normal",
    "moe.router_init_gain": 0.5,
}
# Lane fields that are shapes, constants of kernels or tensors of the model: a refill captures anew.
BUILT_IN: dict[str, object] = {
    "moe.num_experts": 5,
    "moe.top_k": 1,
    "moe.router": "sigmoid",
    "moe.route_norm": False,
    "moe.route_scale": 0.5,
    "moe.noise": True,
    "moe.noise_std": 0.5,
    "moe.noise_decay_fraction": 0.5,
    "moe.input_jitter": 0.5,
    "moe.bias_update_speed": 0.5,
    "moe.capacity_factor": 0.5,
    "moe.eval_capacity_factor": 0.5,
    "moe.drop_policy": "score",
    "moe.load_balancing_loss_weight": 0.5,
    "moe.router_z_loss_weight": 0.5,
    "model.dropout": 0.5,
    "optim.weight_decay": 0.5,
    "optim.beta1": 0.5,
    "optim.beta2": 0.5,
    "optim.eps": 0.5,
    "optim.expert_optimizer": "muon",
    "optim.muon_momentum": 0.5,
    "optim.mup_base_width": 4,
}
# The budget in other units, which excludes steps.
OTHER_BUDGETS = {"budget.tokens", "budget.active_flops", "budget.seconds"}


def test_every_lane_field_is_known_to_be_free_or_built_in() -> None:
    lane_fields = {path for path in field_names() if is_lane_field(path)}
    assert lane_fields == FREE.keys() | BUILT_IN.keys() | OTHER_BUDGETS


@pytest.mark.parametrize("path", FREE)
def test_a_field_read_from_tensors_keeps_the_captured_step(path: str) -> None:
    assert captured_part(resolve(BASE, {path: FREE[path]})) == captured_part(BASE)


@pytest.mark.parametrize("path", BUILT_IN)
def test_a_field_built_into_the_step_needs_another_capture(path: str) -> None:
    assert captured_part(resolve(BASE, {path: BUILT_IN[path]})) != captured_part(BASE)


def test_newcomers_take_the_places_of_their_like() -> None:
    small, large = trial({"moe.num_experts": 2}), trial({"moe.num_experts": 8})
    assert places_for({3: small, 5: large}, [trial({"moe.num_experts": 8}, seed=1), small]) == [5, 3]


def test_a_newcomer_of_another_kind_has_no_place() -> None:
    assert places_for({0: trial()}, [trial({"moe.num_experts": 8})]) is None


def test_no_place_stays_empty_and_none_is_shared() -> None:
    assert places_for({0: trial()}, []) is None
    assert places_for({}, [trial()]) is None
    assert places_for({}, []) == []


def pack_of_two() -> LanePack:
    lanes = [Lane(trial(RANDOM, seed=1), TOKENS), Lane(trial({"moe.num_experts": 3}, seed=2), TOKENS)]
    return LanePack(lanes, TOKENS.train, TOKENS.vocab_size, dtype=torch.float32)


def state_of(pack: LanePack) -> list[torch.Tensor]:
    groups = [
        group
        for lane in pack.lanes
        if lane.tensors is not None
        for group in (lane.tensors.parameters, lane.tensors.exp_avg, lane.tensors.exp_avg_sq)
    ]
    return [tensor.clone() for group in groups for tensor in group.values()]


def test_a_rehearsal_changes_nothing() -> None:
    rehearsed, fresh = pack_of_two(), pack_of_two()
    before = state_of(rehearsed)
    with rehearsed.step.rehearsal():
        for _ in range(4):
            rehearsed.step()
    assert all(torch.equal(left, right) for left, right in zip(state_of(rehearsed), before, strict=True))
    for pack in (rehearsed, fresh):
        pack.step.begin([lane.plan(3) for lane in pack.lanes])
        for _ in range(3):
            pack.run_step()
    assert rehearsed.step.results() == fresh.step.results()
    assert all(torch.equal(left, right) for left, right in zip(state_of(rehearsed), state_of(fresh), strict=True))


def test_a_lane_of_nan_is_masked_and_its_neighbour_is_not() -> None:
    pack, fresh = pack_of_two(), pack_of_two()
    dead, alive = pack.lanes
    assert dead.tensors is not None
    assert alive.tensors is not None
    dead.tensors.parameters["head.weight"].fill_(float("nan"))
    before = {name: tensor.clone() for name, tensor in dead.tensors.parameters.items()}
    for either in (pack, fresh):
        either.step.begin([lane.plan(5) for lane in either.lanes])
        for _ in range(5):
            either.run_step()
    results, expected = pack.step.results(), fresh.step.results()
    assert (results[0].is_alive, results[0].num_applied, results[0].train_loss_sum) == (False, 0, 0.0)
    assert results[1] == expected[1]
    assert all(torch.equal(dead.tensors.parameters[name], t) or name == "head.weight" for name, t in before.items())
    assert fresh.lanes[1].tensors is not None
    theirs = fresh.lanes[1].tensors.parameters
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in alive.tensors.parameters.items())


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@gpu
def test_a_captured_step_agrees_with_the_eager_one() -> None:
    config = trial(RANDOM)
    trainer = LaneTrainer(TOKENS, device="cuda")
    trainer.load(0, config)
    points = run_to_end(trainer)[0]
    assert [p.val_loss for p in points] == pytest.approx([p.val_loss for p in curve(config)], abs=0.05)


@gpu
def test_a_replayed_step_never_waits_for_the_host() -> None:
    lanes = [Lane(trial(RANDOM, seed=1), TOKENS), Lane(trial({"moe.num_experts": 3}, seed=2), TOKENS)]
    pack = LanePack(lanes, TOKENS.train.cuda(), TOKENS.vocab_size, dtype=torch.bfloat16)
    pack.step.begin([lane.plan(5) for lane in lanes])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            pack.run_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [result.num_applied for result in pack.step.results()] == [5, 5]
