from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor

from moesearch.config.quantities import ROUTER_QUANTITIES
from moesearch.config.trial import MoEConfig
from moesearch.model.routers import Routing
from moesearch.training.points import EvalPoint, RouterHealth
from moesearch.training.router_stats import RouterStats
from tests.model.tiny import routing_of
from tests.training.tiny import DIVERGING, TOKENS, curve, trainer_of, trial


def routing(logits_RNE: Tensor, num_experts: tuple[int, ...], top_k: tuple[int, ...]) -> Routing:
    """What a router with these logits decides."""
    lanes = [
        MoEConfig(num_experts=experts, top_k=k, noise=False) for experts, k in zip(num_experts, top_k, strict=True)
    ]
    return routing_of(logits_RNE.double(), *lanes)


def health(logits_NE: Tensor, top_k: int = 1) -> RouterHealth:
    """Router health of one layer of one lane."""
    stats, num_experts = RouterStats(), (logits_NE.shape[1],)
    stats.add([routing(logits_NE.unsqueeze(0), num_experts, (top_k,))])
    (found,) = stats.read(num_experts)
    assert found is not None
    return found


def one_hot(choices: list[int], num_experts: int, size: float = 1.0) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(choices), num_experts) * size


def test_health_says_what_was_dropped_and_how_far_biases_are_apart() -> None:
    moe = MoEConfig(num_experts=2, top_k=1, noise=False, capacity_factor=0.5, bias_update_speed=0.1)
    logits_RNE = torch.tensor([[[2.0, 0.0, 0.0]] * 12])
    lanes, bias_RE = (moe, MoEConfig(num_experts=3, top_k=1, noise=False)), torch.tensor([[-0.1, 0.3, 0.0], [0.0] * 3])
    stats = RouterStats()
    for _ in range(2):
        stats.add([routing_of(logits_RNE.repeat(2, 1, 1), *lanes, bias_RE=bias_RE)])
    dropping, dropless = stats.read((2, 3))
    assert dropping is not None
    assert dropless is not None
    assert (dropping.layers[0].dropped_fraction, dropping.layers[0].bias_range) == pytest.approx((0.75, 0.4))
    assert (dropless.layers[0].dropped_fraction, dropless.layers[0].bias_range) == (0.0, 0.0)


def test_probabilities_of_a_sigmoid_router_are_its_shares() -> None:
    stats = RouterStats()
    moe = MoEConfig(num_experts=2, top_k=1, noise=False, router="sigmoid")
    stats.add([routing_of(torch.tensor([[[0.0, -math.log(3)]] * 4]), moe)])  # sigmoids 1/2 and 1/4
    (found,) = stats.read((2,))
    assert found is not None
    assert found.layers[0].top1_probability == pytest.approx(2 / 3)
    assert found.layers[0].router_entropy == pytest.approx(math.log(3) - 2 / 3 * math.log(2))


def test_equal_load_is_balance() -> None:
    found = health(one_hot([0, 1, 2, 3] * 5, 4))
    assert found.layers[0].load == (0.25,) * 4
    assert found.load_entropy == pytest.approx(1)
    assert (found.max_vio, found.dead_experts) == (0, 0)


def test_one_expert_with_all_the_load_is_collapse() -> None:
    found = health(one_hot([2] * 20, 4))
    assert found.layers[0].load == (0, 0, 1, 0)
    assert (found.load_entropy, found.max_vio, found.dead_experts) == (0, 3, 3)


def test_load_counts_the_choices_of_every_rank() -> None:
    # Both tokens choose expert 0 second.
    found = health(torch.tensor([[2.0, 3.0, 0.0], [2.0, 0.0, 3.0]]), top_k=2)
    assert found.layers[0].load == (0.5, 0.25, 0.25)
    assert found.max_vio == pytest.approx(0.5)


def test_an_expert_is_dead_below_a_hundredth_of_its_fair_share() -> None:
    # Of 1,000 slots, 2 experts' fair share is 500, and a hundredth of that is 5.
    assert health(one_hot([0] * 995 + [1] * 5, 2)).dead_experts == 0
    assert health(one_hot([0] * 996 + [1] * 4, 2)).dead_experts == 1


def test_a_router_that_does_not_care_has_the_largest_entropy() -> None:
    found = health(torch.zeros(6, 4))
    assert found.router_entropy == pytest.approx(math.log(4))
    assert found.top1_probability == pytest.approx(0.25)
    assert found.router_logit_rms == 0


def test_probabilities_and_logits_are_means_over_tokens() -> None:
    # p = (0.8, 0.2) for one token and (0.5, 0.5) for the other.
    logits_NE = torch.tensor([[math.log(4), 0.0], [0.0, 0.0]])
    found = health(logits_NE)
    assert found.top1_probability == pytest.approx(0.65)
    assert found.router_entropy == pytest.approx((-0.8 * math.log(0.8) - 0.2 * math.log(0.2) + math.log(2)) / 2)
    assert found.router_logit_rms == pytest.approx(math.log(4) / 2)


def test_batches_add_up_to_one_pass_over_all_tokens() -> None:
    logits_NE = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    stats = RouterStats()
    for part in torch.split(logits_NE, [12, 12, 6]):
        stats.add([routing(part.unsqueeze(0), (4,), (2,))])
    (found,) = stats.read((4,))
    assert found is not None
    assert found.summary() == pytest.approx(health(logits_NE, top_k=2).summary())


def test_a_lane_with_fewer_experts_is_measured_by_its_own() -> None:
    logits_NE = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    few_RNE = torch.stack([logits_NE, logits_NE])
    stats = RouterStats()
    stats.add([routing(few_RNE, (2, 4), (1, 2))])
    few, many = stats.read((2, 4))
    assert few is not None
    assert many is not None
    assert len(few.layers[0].load) == 2
    assert few.summary() == pytest.approx(health(logits_NE[:, :2]).summary())
    assert many.summary() == pytest.approx(health(logits_NE, top_k=2).summary())


def test_the_summary_shows_the_worst_layer_and_adds_up_the_dead() -> None:
    stats = RouterStats()
    balanced, collapsed = one_hot([0, 1, 2, 3] * 5, 4), one_hot([2] * 20, 4, size=3.0)
    stats.add([routing(logits.unsqueeze(0), (4,), (1,)) for logits in (balanced, collapsed, collapsed)])
    (found,) = stats.read((4,))
    assert found is not None
    assert (found.load_entropy, found.max_vio, found.dead_experts) == (0, 3, 6)
    assert found.router_logit_rms == pytest.approx(1.5)
    first, second, third = (layer.router_entropy for layer in found.layers)
    assert found.router_entropy == pytest.approx((first + second + third) / 3)


def test_a_dense_lane_has_no_router_health_alone_or_beside_others() -> None:
    dense, sparse = trial({"moe.num_experts": 1, "moe.top_k": 1}), trial()
    assert trainer_of(dense).evaluate(0, "val").router_health is None
    ((_, beside), (_, other)) = trainer_of(dense, sparse).advance()
    assert beside.router_health is None
    assert other.router_health is not None


def test_every_milestone_has_the_health_of_every_layer() -> None:
    for point in curve(trial({"moe.num_experts": 4, "moe.top_k": 2})):
        assert point.router_health is not None
        assert [sum(layer.load) for layer in point.router_health.layers] == pytest.approx([1, 1], abs=1e-5)
        assert set(point.router_health.summary()) == set(ROUTER_QUANTITIES)


def test_health_counts_each_predicted_token_once() -> None:
    # The last window is shorter than the others; if it were filled up, the filling would be routed too.
    found = trainer_of(trial({"moe.top_k": 1})).evaluate(0, "val").router_health
    assert found is not None
    assert (len(TOKENS.val) - 1) % 8 != 0
    for layer in found.layers:
        counts = [share * (len(TOKENS.val) - 1) for share in layer.load]
        assert counts == pytest.approx([round(count) for count in counts], abs=1e-3)


def test_a_trial_that_diverged_has_no_router_health() -> None:
    assert curve(trial(DIVERGING))[-1].router_health is None


def test_a_point_comes_back_from_json_as_it_was() -> None:
    point = curve(trial({"budget.milestones": 1}))[0]
    assert EvalPoint.from_record(json.loads(json.dumps(asdict(point)))) == point


def test_a_brief_point_keeps_the_summary_alone() -> None:
    point = curve(trial({"budget.milestones": 1}))[0]
    assert point.router_health is not None
    back = EvalPoint.from_record(json.loads(json.dumps(asdict(point.brief()))))
    assert back.val_block_losses == ()
    assert back.router_health == replace(point.router_health, layers=())
    assert back.router_health.summary() == point.router_health.summary()


def test_a_record_of_before_there_was_router_health_still_loads() -> None:
    record = asdict(curve(trial({"budget.milestones": 1}))[0])
    del record["router_health"]
    assert EvalPoint.from_record(record).router_health is None
