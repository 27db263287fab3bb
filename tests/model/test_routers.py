from __future__ import annotations

import torch
from torch import Tensor

from moesearch.config.trial import MoEConfig
from moesearch.model.lanes import LaneLayout
from moesearch.model.randomness import LayerRandomness, StepRandomness
from moesearch.model.routers import Routing, TopKRouter
from moesearch.model.slots import slots_of, sort_by_group

LAYOUT = LaneLayout((4, 2, 7), (2, 1, 3))
WIDTH, TOKENS = 5, 40


def router(layout: LaneLayout = LAYOUT, *, noise: tuple[bool, ...] = (False, False, False)) -> TopKRouter:
    torch.manual_seed(0)
    lanes = [MoEConfig(noise=is_noisy) for is_noisy in noise]
    made = TopKRouter(layout, WIDTH, lanes, TOKENS, device=torch.device("cpu"), dtype=torch.float32)
    for parameter in made.parameters():
        parameter.data.normal_()
    return made


def inputs(lanes: int = 3) -> Tensor:
    return torch.randn(lanes, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))


def randomness(step: int = 0) -> LayerRandomness:
    return StepRandomness(torch.tensor([1, 2, 3]), torch.full((3,), step)).layers(1)[0]


def test_gates_sum_to_one_over_a_lanes_own_ranks() -> None:
    routing: Routing = router()(inputs(), TOKENS, None)
    torch.testing.assert_close(routing.gates_RNK.sum(-1), torch.ones(3, TOKENS))
    for lane, top_k in enumerate(LAYOUT.top_k):
        assert (routing.gates_RNK[lane, :, :top_k] > 0).all()
        assert (routing.gates_RNK[lane, :, top_k:] == 0).all()


def test_the_chosen_experts_are_those_with_the_largest_logits() -> None:
    routing: Routing = router()(inputs(), TOKENS, None)
    for lane, top_k in enumerate(LAYOUT.top_k):
        ranked = routing.logits_RNE[lane].argsort(-1, descending=True)[:, :top_k]
        assert torch.equal(routing.experts_RNK[lane, :, :top_k], ranked)


def test_a_lane_never_chooses_an_expert_that_it_lacks() -> None:
    routing: Routing = router()(inputs(), TOKENS, None)
    for lane, (num_experts, top_k) in enumerate(zip(LAYOUT.num_experts, LAYOUT.top_k, strict=True)):
        assert int(routing.experts_RNK[lane, :, :top_k].max()) < num_experts
        assert (routing.logits_RNE[lane, :, num_experts:] == float("-inf")).all()


def test_counts_are_those_of_the_chosen_experts() -> None:
    routing: Routing = router()(inputs(), TOKENS, None)
    for lane, (num_experts, top_k) in enumerate(zip(LAYOUT.num_experts, LAYOUT.top_k, strict=True)):
        counted = torch.bincount(routing.experts_RNK[lane, :, :top_k].flatten(), minlength=LAYOUT.max_experts)
        assert routing.counts_RE()[lane].tolist() == counted.tolist()
        assert int(routing.counts_RE()[lane].sum()) == TOKENS * top_k
        assert (routing.counts_RE()[lane, num_experts:] == 0).all()


def test_noise_is_learned_and_belongs_to_the_lanes_that_want_it() -> None:
    noisy = router(noise=(True, False, True))
    routing: Routing = noisy(inputs(), TOKENS, randomness())
    silent: Routing = noisy(inputs(), TOKENS, None)
    torch.testing.assert_close(routing.logits_RNE, silent.logits_RNE)
    changed = (routing.gates_RNK != silent.gates_RNK).flatten(1).any(1)
    assert changed.tolist() == [True, False, True]
    assert noisy.noise is not None
    routing.gates_RNK[..., 0].sum().backward()  # type: ignore[no-untyped-call]
    assert noisy.noise.weight.grad is not None
    assert (noisy.noise.weight.grad.abs().flatten(1).sum(1) > 0).tolist() == [True, False, True]


def test_noise_has_the_scale_that_the_second_map_gives() -> None:
    noisy = router(LaneLayout((6,), (6,)), noise=(True,))
    assert noisy.noise is not None
    noisy.logits.weight.data.zero_()
    noisy.logits.bias.data.zero_()
    noisy.noise.weight.data.zero_()
    scale = torch.tensor([0.0, 0.1, 0.5, 1.0, 2.0, 3.0])
    noisy.noise.bias.data.copy_(torch.expm1(scale).clamp(min=1e-9).log())  # the inverse of softplus
    draws = []
    for step in range(60):
        layer = StepRandomness(torch.tensor([1]), torch.tensor([step])).layers(1)[0]
        routing: Routing = noisy(inputs(1), TOKENS, layer)
        # All experts are chosen, so gates are a softmax of the noise: differences of logs give it back.
        logs_NK = routing.gates_RNK[0].log()
        by_expert_NE = torch.zeros(TOKENS, 6).scatter(1, routing.experts_RNK[0], logs_NK)
        draws.append(by_expert_NE - by_expert_NE[:, :1])
    deviation_E = torch.cat(draws).std(0)
    torch.testing.assert_close(deviation_E, scale, rtol=0.05, atol=1e-5)


def test_slots_lie_lane_by_lane_token_by_token_and_as_many_as_a_lane_routes() -> None:
    slots = slots_of(LaneLayout((3, 2), (2, 1)), 2, torch.device("cpu"))
    assert slots.lane_S.tolist() == [0, 0, 0, 0, 1, 1]
    assert slots.token_S.tolist() == [0, 0, 1, 1, 2, 3]
    assert slots.row_S.tolist() == [0, 1, 2, 3, 0, 1]
    assert slots.bag_starts.tolist() == [0, 2, 4, 5]
    assert slots.first_slot_G.tolist() == [0, 0, 0, 4, 4]


def test_slots_made_in_inference_mode_serve_training() -> None:
    layout = LaneLayout((3, 5), (3, 2))
    made = router(layout, noise=(False, False))
    x_RNC = inputs(2)[:, :37]
    with torch.inference_mode():
        made(x_RNC, 37, None)
    routing: Routing = made(x_RNC, 37, None)
    routing.gates_S().sum().backward()  # type: ignore[no-untyped-call]


def test_sorting_by_group_is_stable_and_knows_empty_groups() -> None:
    order_S, ends_G = sort_by_group(torch.tensor([3, 0, 3, 0, 1], dtype=torch.int32), 5)
    assert order_S.tolist() == [1, 3, 4, 0, 2]
    assert ends_G.tolist() == [2, 3, 3, 5, 5]
    assert ends_G.dtype == torch.int32
