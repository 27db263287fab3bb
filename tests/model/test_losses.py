from __future__ import annotations

import math

import pytest
import torch

from moesearch.config.trial import MoEConfig
from moesearch.model.losses import (
    LossWeights,
    language_model_losses,
    load_balancing_loss,
    router_z_loss,
    training_losses,
)
from tests.model.tiny import VOCAB_SIZE, model_of, routing_of, tokens_for, trial


def moe(num_experts: int, top_k: int) -> MoEConfig:
    return MoEConfig(num_experts=num_experts, top_k=top_k, noise=False)


def test_load_balancing_loss_is_the_number_of_experts_at_collapse() -> None:
    logits = torch.zeros(1, 12, 6)
    logits[..., 2] = 50
    assert float(load_balancing_loss(routing_of(logits, moe(6, 1)))) == pytest.approx(6)


def test_router_losses_of_a_lane_do_not_count_experts_that_it_lacks() -> None:
    logits = torch.randn(2, 12, 6)
    together = routing_of(logits, moe(6, 2), moe(3, 1))
    alone = routing_of(logits[1:, :, :3], moe(3, 1))
    for loss in (load_balancing_loss, router_z_loss):
        assert float(loss(together)[1]) == pytest.approx(float(loss(alone)[0]))


def test_router_z_loss_is_the_mean_square_of_the_log_partition() -> None:
    logits = torch.full((1, 5, 4), 3.0)
    routing = routing_of(logits, moe(4, 1))
    assert float(router_z_loss(routing)) == pytest.approx((3 + math.log(4)) ** 2)


def test_a_uniform_guess_costs_the_log_of_the_vocabulary() -> None:
    losses_R = language_model_losses(torch.zeros(2, 3, 4, VOCAB_SIZE), torch.zeros(2, 3, 4, dtype=torch.int64))
    torch.testing.assert_close(losses_R, torch.full((2,), math.log(VOCAB_SIZE)))


def test_the_total_adds_each_lanes_weighted_router_losses_as_means_over_layers() -> None:
    configs = [
        trial({"moe.load_balancing_loss_weight": 0.5}),
        trial({"moe.router_z_loss_weight": 0.25}),
        trial(),
    ]
    window_RBT1 = tokens_for(configs)
    output = model_of(*configs)(window_RBT1[..., :-1])
    losses = training_losses(output, window_RBT1[..., 1:], LossWeights.of(configs))
    balance_R = torch.stack([load_balancing_loss(routing) for routing in output.routings]).mean(0)
    z_R = torch.stack([router_z_loss(routing) for routing in output.routings]).mean(0)
    extra_R = torch.stack([0.5 * balance_R[0], 0.25 * z_R[1], torch.zeros(())])
    torch.testing.assert_close(losses.total_R, losses.language_model_R + extra_R)


def test_weights_that_no_lane_uses_cost_nothing() -> None:
    assert LossWeights.of([trial(), trial()]) == LossWeights(None, None)
