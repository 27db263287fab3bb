from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moesearch.config.dense import dense_control
from moesearch.config.resolve import resolve
from moesearch.config.trial import TrialConfig
from moesearch.model.cost import (
    active_params,
    flops_per_token,
    num_steps,
    router_flops_per_token,
    total_params,
    training_flops_per_token,
)
from tests.model.tiny import VOCAB_SIZE, model_of, randomness_for, tokens_for, trial

ARTICLE = TrialConfig()


def test_the_articles_setting_costs_what_the_article_says() -> None:
    assert total_params(ARTICLE, 65) == 8_996_545
    assert total_params(dense_control(ARTICLE), 65) == 2_656_833
    assert active_params(ARTICLE, 65) == pytest.approx(2.67e6, rel=0.005)


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (6, 2), (5, 5)])
def test_forward_flops_are_those_that_torch_counts(num_experts: int, top_k: int, noise: bool) -> None:
    config = trial({"moe.num_experts": num_experts, "moe.top_k": top_k, "moe.noise": noise, "model.dropout": 0.1})
    model = model_of(config, backend="loop")
    window_RBT = tokens_for([config], context=7)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(window_RBT, randomness_for([config]))
    tokens = window_RBT.numel()
    assert counter.get_total_flops() == flops_per_token(config, VOCAB_SIZE) * tokens
    in_routers = [sum(flops.values()) for name, flops in counter.get_flop_counts().items() if name.endswith(".router")]
    assert sum(in_routers) == router_flops_per_token(config) * tokens


def test_training_costs_three_forward_passes() -> None:
    assert training_flops_per_token(ARTICLE, 65) == 3 * flops_per_token(ARTICLE, 65)


def test_the_routers_share_is_two_maps_per_layer_with_noise_and_one_without() -> None:
    assert router_flops_per_token(ARTICLE) == 8 * 2 * 2 * 128 * 8
    quiet = resolve(ARTICLE, {"moe.noise": False})
    assert router_flops_per_token(quiet) == router_flops_per_token(ARTICLE) // 2


def test_experts_that_are_not_chosen_cost_parameters_and_no_flops_but_the_routers() -> None:
    more = resolve(ARTICLE, {"moe.num_experts": 64})
    assert total_params(more, 65) > 7 * total_params(ARTICLE, 65)
    difference = flops_per_token(more, 65) - flops_per_token(ARTICLE, 65)
    assert difference == router_flops_per_token(more) - router_flops_per_token(ARTICLE)


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ({"budget.steps": 300}, 300),
        ({"budget.tokens": 512 * 40}, 40),
        ({"budget.tokens": 512 * 40 + 1}, 41),
        ({"budget.active_flops": 1.0}, 10),
        ({"budget.active_flops": 3.0 * 5_423_360 * 512 * 25}, 25),
    ],
    ids=["steps", "tokens", "rounded up", "one per milestone at least", "active FLOPs"],
)
def test_a_budget_in_any_unit_is_a_number_of_steps(budget: dict[str, object], steps: int) -> None:
    config = resolve(ARTICLE, {"budget.steps": None, **budget})
    assert num_steps(config, 65) == steps
