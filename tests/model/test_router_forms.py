"""What each form of router means: scores, gates, noise, jitter, and biases that steer the choice alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from moesearch.config.trial import MoEConfig
from moesearch.model.lanes import LaneLayout
from moesearch.model.randomness import LayerRandomness, StepRandomness
from moesearch.model.routers import BalancingBias, Routing, TopKRouter
from tests.model.tiny import first_moe, model_of, randomness_for, routing_of, tokens_for, trial

LOGITS = torch.tensor([[[1.0, 3.0, 0.5, 2.0], [0.0, -1.0, -2.0, 4.0]]])


def moe(num_experts: int = 4, top_k: int = 2, **settings: Any) -> MoEConfig:
    return MoEConfig(num_experts=num_experts, top_k=top_k, **{"noise": False, **settings})


def gates(**settings: Any) -> Tensor:
    return routing_of(LOGITS, moe(**settings)).gates_RNK


def chosen(values_RNE: Tensor) -> Tensor:
    return values_RNE.topk(2).values


def test_softmax_after_the_choice_looks_at_the_chosen_alone() -> None:
    torch.testing.assert_close(gates(), torch.softmax(chosen(LOGITS), -1))


def test_softmax_before_the_choice_looks_at_all_experts() -> None:
    expected = chosen(torch.softmax(LOGITS, -1))
    torch.testing.assert_close(gates(router="softmax_before", route_norm=False), expected)


def test_softmax_before_divided_by_its_sum_is_softmax_after() -> None:
    torch.testing.assert_close(gates(router="softmax_before"), gates())


def test_sigmoid_scores_each_expert_alone() -> None:
    expected = chosen(torch.sigmoid(LOGITS))
    torch.testing.assert_close(gates(router="sigmoid", route_norm=False), expected)
    torch.testing.assert_close(gates(router="sigmoid"), expected / expected.sum(-1, keepdim=True))


@pytest.mark.parametrize("settings", [{}, {"router": "sigmoid"}, {"router": "softmax_before", "route_norm": False}])
def test_the_scale_multiplies_the_gates_last(settings: dict[str, Any]) -> None:
    torch.testing.assert_close(gates(**settings, route_scale=2.5), 2.5 * gates(**settings))


def test_sigmoid_gates_are_numbers_where_all_sigmoids_are_zero() -> None:
    routing = routing_of(torch.full((1, 3, 4), -200.0), moe(router="sigmoid"))
    torch.testing.assert_close(routing.gates_RNK, torch.full((1, 3, 2), 0.5))


@pytest.mark.parametrize("router", ["softmax_after", "softmax_before", "sigmoid"])
def test_probabilities_sum_to_one_over_a_lanes_experts(router: str) -> None:
    logits = LOGITS.repeat(2, 1, 1)
    routing = routing_of(logits, moe(router=router), moe(3, router=router))
    torch.testing.assert_close(routing.probabilities_RNE().sum(-1), torch.ones(2, 2))
    assert (routing.probabilities_RNE()[1, :, 3] == 0).all()


def test_probabilities_of_a_sigmoid_router_are_its_sigmoids_over_their_sum() -> None:
    sigmoids = torch.sigmoid(LOGITS)
    expected = sigmoids / sigmoids.sum(-1, keepdim=True)
    torch.testing.assert_close(routing_of(LOGITS, moe(router="sigmoid")).probabilities_RNE(), expected)


def test_expert_choice_is_refused_with_a_way_on() -> None:
    with pytest.raises(ValidationError, match=r"router \(expert_choice\) .* later ones.* choose softmax_after"):
        moe(router="expert_choice")


def test_expert_choice_would_see_later_tokens() -> None:
    """Zhou et al. 2022: each expert takes the tokens that score best with it. The reason why it is refused."""

    def experts_of_first_token(logits_NE: Tensor) -> list[bool]:
        winners_KE = torch.softmax(logits_NE, 1).topk(2, dim=0).indices
        is_taken: list[bool] = (winners_KE == 0).any(0).tolist()
        return is_taken

    before = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    after = before.clone()
    after[2:] = torch.tensor([9.0, 0.0])
    assert experts_of_first_token(before) != experts_of_first_token(after)


# Noise and jitter, in training.


def layer_randomness(lanes: int = 1, step: int = 0, progress: float = 0.0) -> LayerRandomness:
    seeds_R, steps_R = torch.arange(lanes) + 1, torch.full((lanes,), step)
    return StepRandomness(seeds_R, steps_R, torch.full((lanes,), progress)).layers(1)[0]


def made_router(*lanes: MoEConfig, width: int = 8) -> TopKRouter:
    layout = LaneLayout(tuple(lane.num_experts for lane in lanes), tuple(lane.top_k for lane in lanes))
    router = TopKRouter(layout, width, lanes, 500, device=torch.device("cpu"), dtype=torch.float32)
    torch.manual_seed(0)
    for parameter in router.parameters():
        parameter.data.normal_()
    return router


def noise_deviation(router: TopKRouter, progress: float) -> float:
    """Deviation of the noise on a router whose logits are all 0, from the gates of all experts."""
    for parameter in router.parameters():
        parameter.data.zero_()
    routing: Routing = router(torch.zeros(1, 500, 8), 500, layer_randomness(progress=progress))
    logs_NE = torch.zeros(500, 4).scatter(1, routing.experts_RNK[0], routing.gates_RNK[0].detach().log())
    return float((logs_NE[:, 1:] - logs_NE[:, :1]).std()) / 2**0.5


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 2.0), (0.2, 1.0), (0.3, 0.5), (0.4, 0.0), (0.9, 0.0)])
def test_given_noise_falls_linearly_to_zero_over_its_part_of_the_budget(progress: float, expected: float) -> None:
    router = made_router(moe(4, 4, noise_std=2.0, noise_decay_fraction=0.4))
    assert noise_deviation(router, progress) == pytest.approx(expected, rel=0.06)


def test_given_noise_without_a_decay_stays() -> None:
    router = made_router(moe(4, 4, noise_std=2.0, noise_decay_fraction=None))
    assert noise_deviation(router, progress=0.99) == pytest.approx(2.0, rel=0.06)


@pytest.mark.parametrize("settings", [{"noise_std": 1.0}, {"input_jitter": 0.3}])
def test_given_noise_and_jitter_are_for_training_and_the_lanes_that_want_them(settings: dict[str, Any]) -> None:
    router = made_router(moe(), moe(**settings))
    x_RNC = torch.randn(2, 500, 8, generator=torch.Generator().manual_seed(1))
    silent: Routing = router(x_RNC, 500, None)
    trained: Routing = router(x_RNC, 500, layer_randomness(lanes=2))
    other: Routing = router(x_RNC, 500, layer_randomness(lanes=2, step=1))
    assert torch.equal(trained.gates_RNK[0], silent.gates_RNK[0])
    assert not torch.equal(trained.gates_RNK[1], silent.gates_RNK[1])
    assert not torch.equal(trained.gates_RNK[1], other.gates_RNK[1])


def test_jitter_multiplies_each_input_by_a_uniform_number_around_one() -> None:
    router = made_router(moe(8, input_jitter=0.2))
    router.logits.weight.data.copy_(torch.eye(8)[None])
    router.logits.bias.data.zero_()
    routing: Routing = router(torch.full((1, 500, 8), 3.0), 500, layer_randomness())
    factors = routing.logits_RNE.detach() / 3
    assert float(factors.min()) >= 0.8 - 1e-6
    assert float(factors.max()) <= 1.2 + 1e-6
    assert float(factors.mean()) == pytest.approx(1, abs=0.005)
    assert float(factors.std()) == pytest.approx(0.2 / 3**0.5, rel=0.03)


def test_jitter_does_not_change_what_the_experts_see() -> None:
    config = trial({"moe.num_experts": 1, "moe.top_k": 1})
    # One expert beside a lane of more: the gate is 1 whatever the router sees.
    beside = trial({"moe.input_jitter": 0.5, "moe.top_k": 4}, seed=1)
    layer = first_moe(model_of(config, beside))
    assert layer.router is not None
    layer.router.logits.weight.data.zero_()
    x_RNC = torch.randn(2, 8, 16)
    jittered, silent = (layer(x_RNC, 8, given)[0] for given in (layer_randomness(lanes=2), None))
    torch.testing.assert_close(jittered, silent)


# Precision and initialisation.


@pytest.mark.parametrize(
    "params",
    [
        {"moe.router": "sigmoid", "moe.bias_update_speed": 0.1},
        {"moe.router": "softmax_before", "moe.route_norm": False, "moe.noise_std": 0.5},
        {"moe.noise": True, "moe.input_jitter": 0.1, "moe.capacity_factor": 1.0},
    ],
)
def test_the_router_is_float32_also_with_bfloat16_products(params: dict[str, object]) -> None:
    config = trial(params)
    model = model_of(config, dtype=torch.bfloat16)
    for routing in model(tokens_for([config], context=7), randomness_for([config])).routings:
        assert routing.logits_RNE.dtype == torch.float32
        assert routing.gates_RNK.dtype == torch.float32
    router = first_moe(model).router
    assert router is not None
    x_RNC = torch.randn(1, 8, 16)
    exact = x_RNC.double() @ router.logits.weight.double().mT + router.logits.bias.double()
    torch.testing.assert_close(router(x_RNC, 8, None).logits_RNE, exact.float(), rtol=1e-5, atol=1e-6)


def test_the_init_gain_scales_the_first_logits_and_nothing_else() -> None:
    plain, scaled = (model_of(trial({"moe.router_init_gain": gain}), backend="split") for gain in (1.0, 0.1))
    for name, tensor in plain.lane_parameters(0).items():
        factor = 0.1 if ".router.logits." in name else 1.0
        torch.testing.assert_close(scaled.lane_parameters(0)[name], factor * tensor)


# Biases that balance the load.


def test_a_bias_steers_the_choice_and_no_gate() -> None:
    bias_RE = torch.tensor([[0.0, 0.0, 2.0, 0.0]])
    routing = routing_of(LOGITS, moe(router="sigmoid", bias_update_speed=0.1), bias_RE=bias_RE)
    assert routing.experts_RNK.tolist() == [[[2, 1], [2, 3]]]
    sigmoids = torch.sigmoid(LOGITS).gather(2, routing.experts_RNK)
    torch.testing.assert_close(routing.gates_RNK, sigmoids / sigmoids.sum(-1, keepdim=True))
    torch.testing.assert_close(
        routing.probabilities_RNE(), routing_of(LOGITS, moe(router="sigmoid")).probabilities_RNE()
    )


def test_a_bias_is_added_to_probabilities_where_scores_are_a_softmax() -> None:
    # Expert 3 of the first token has probability 0.24, expert 0 0.09: a bias between changes nothing, one above does.
    for bias, experts in ((0.1, [1, 3]), (0.2, [1, 0])):
        bias_RE = torch.tensor([[bias, 0.0, 0.0, 0.0]])
        routing = routing_of(LOGITS, moe(bias_update_speed=0.1), bias_RE=bias_RE)
        assert routing.experts_RNK[0, 0].tolist() == experts


def test_an_absent_expert_is_never_chosen_however_low_the_others_biases_are() -> None:
    bias_RE = torch.full((2, 4), -5.0)
    bias_RE[1, 3] = 0
    routing = routing_of(LOGITS.repeat(2, 1, 1), *(moe(n, bias_update_speed=0.1) for n in (4, 3)), bias_RE=bias_RE)
    assert int(routing.experts_RNK[1].max()) < 3


def test_a_lane_without_biases_still_chooses_by_its_logits_beside_one_that_has_them() -> None:
    # Too far apart for float32 probabilities: all but the first are 0.
    logits = torch.stack([torch.tensor([0.0, -300.0, -200.0, -250.0]).roll(shift) for shift in range(4)])
    routing = routing_of(logits.repeat(2, 1, 1), moe(bias_update_speed=0.1), moe())
    assert torch.equal(routing.experts_RNK[1], logits.topk(2).indices)


def test_a_bias_moves_by_its_speed_towards_the_mean_load() -> None:
    logits = torch.tensor([[[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [2.0, 1.0, 0.0]]])
    logits[0, 2] = torch.tensor([2.0, 0.0, 1.0])
    speeds = (0.01, 0.0, 0.02)
    routing = routing_of(logits.repeat(3, 1, 1), *(moe(3, 2) for _ in speeds))
    assert routing.counts_RE()[0].tolist() == [3, 2, 1]
    balancing = BalancingBias(routing.layout, speeds, device=torch.device("cpu"), dtype=torch.float32)
    balancing.update(routing, routing.counts_RE(), torch.tensor([True, True, False]))
    expected = torch.tensor([[-0.01, 0.0, 0.01], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(balancing.expert_bias, expected)
