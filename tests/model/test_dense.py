"""One expert is a dense layer: no router, alone as beside experts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from moesearch.config.dense import dense_control
from moesearch.config.trial import TrialConfig
from moesearch.model.losses import LossWeights
from moesearch.model.routers import RouterLinear
from moesearch.model.transformer import MoETransformer
from tests.model.tiny import losses_and_gradients, model_of, randomness_for, tokens_for, trial

DENSE = {"moe.num_experts": 1, "moe.top_k": 1, "moe.expert_hidden_dim": 24}


def test_the_article_sized_dense_model_has_the_articles_count_of_parameters() -> None:
    model = MoETransformer([dense_control(TrialConfig())], 65, device="meta", initialized_lanes=())
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_656_833


def test_a_dense_model_has_no_router_and_no_routing() -> None:
    model = model_of(trial(DENSE))
    assert not any(isinstance(module, RouterLinear) for module in model.modules())
    assert model(tokens_for([trial(DENSE)], context=7)).routings == ()


def test_a_dense_layer_is_two_linear_maps_and_a_relu() -> None:
    model = model_of(trial(DENSE))
    experts, tensors = model.get_submodule("layers.0.moe.experts"), model.lane_parameters(0)
    weight_in, bias_in, weight_out, bias_out = (
        tensors[f"layers.0.moe.experts.{name}"][0] for name in ("weight_in", "bias_in", "weight_out", "bias_out")
    )
    x_RNC = torch.randn(1, 5, 16)
    expected = F.relu(x_RNC @ weight_in + bias_in) @ weight_out + bias_out
    torch.testing.assert_close(experts(x_RNC, None, None), expected)


@pytest.mark.parametrize("backend", ["loop", "split", "padded", "blocks"])
def test_a_dense_lane_beside_experts_gives_its_losses_and_gradients_alone(backend: str) -> None:
    dense = trial({**DENSE, "model.dropout": 0.2, "moe.load_balancing_loss_weight": 1.0}, seed=1)
    configs = [trial({"moe.noise": True}), dense]
    beside = losses_and_gradients(model_of(*configs, backend=backend, dtype=torch.float64), randomness_for(configs))
    alone = losses_and_gradients(model_of(dense, backend=backend, dtype=torch.float64), randomness_for([dense]))
    torch.testing.assert_close(beside[1][1], alone[1][0])
    torch.testing.assert_close(beside[0]["total"][1], alone[0]["total"][0])


def test_a_dense_lane_has_no_router_losses() -> None:
    weighted = {"moe.load_balancing_loss_weight": 0.5, "moe.router_z_loss_weight": 0.5}
    assert LossWeights.of([trial({**DENSE, **weighted})]) == LossWeights(None, None)
