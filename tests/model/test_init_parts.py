"""Initialisation of single parts, by depth, and of the shapes beyond the article's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.model.test_initialization import LARGE
from tests.model.tiny import model_of, trial

ROUTER, EXPERTS = "layers.0.moe.router.logits.weight", "layers.0.moe.experts.weight_in"
ATTENTION, HEAD = "layers.0.attention.qkv.weight", "head.weight"


def tensors_of(**params: object) -> dict[str, Tensor]:
    named = {name.replace("__", "."): value for name, value in params.items()}
    return model_of(trial({**LARGE, "moe.init": "normal", "moe.init_std": 0.05, **named})).lane_parameters(0)


def std_of(tensor: Tensor) -> float:
    return float(tensor.double().std())


@pytest.mark.parametrize(
    ("scale", "name", "fan_in"), [(1.0, EXPERTS, 64), (0.1, "layers.0.moe.experts.weight_out", 128)]
)
def test_truncated_normal_has_the_fan_in_deviation_and_ends_at_two_of_it(scale: float, name: str, fan_in: int) -> None:
    weight = tensors_of(moe__init="truncated_normal", moe__init_scale=scale)[name]
    std = math.sqrt(scale / fan_in)
    assert 1.95 * std < float(weight.abs().max()) <= 2 * std
    # What is left of a normal deviation when all beyond two of it is cut off.
    assert std_of(weight) == pytest.approx(0.8796 * std, rel=0.01)


@pytest.mark.parametrize(
    ("field", "changed"), [("init_router", ROUTER), ("init_experts", EXPERTS), ("init_attention", ATTENTION)]
)
def test_a_part_may_have_a_scheme_of_its_own(field: str, changed: str) -> None:
    tensors = tensors_of(**{f"moe__{field}": "xavier_normal"})
    fans = {ROUTER: (64, 64), EXPERTS: (64, 128), ATTENTION: (64, 64)}
    for name in (ROUTER, EXPERTS, ATTENTION, HEAD):
        std = math.sqrt(2 / sum(fans[name])) if name == changed else 0.05
        assert std_of(tensors[name]) == pytest.approx(std, rel=5 / tensors[name].numel() ** 0.5)


def test_dense_layers_and_shared_experts_follow_the_experts_scheme() -> None:
    params = {"model__num_layers": 2, "moe__every": 2, "moe__num_shared_experts": 1, "moe__expert_hidden_dim": 512}
    tensors = tensors_of(**params, moe__init_experts="kaiming_normal")
    for name in ("layers.0.feed_forward.weight_in", "layers.1.moe.shared.weight_in"):
        assert std_of(tensors[name]) == pytest.approx(math.sqrt(2 / 64), rel=0.02)


def test_depth_scaled_maps_to_the_residual_stream_start_smaller_by_their_number() -> None:
    params = {"model__num_layers": 8, "moe__num_shared_experts": 1}
    plain, scaled = (tensors_of(**params, moe__init_depth_scaled=flag) for flag in (False, True))
    for name, tensor in plain.items():
        writes = name.endswith((".projection.weight", ".experts.weight_out", ".shared.weight_out"))
        torch.testing.assert_close(scaled[name], tensor / 4 if writes else tensor)


def test_gates_and_values_of_swiglu_are_two_maps_side_by_side() -> None:
    tensors = tensors_of(moe__activation="swiglu", moe__init="xavier_normal")
    inner = tensors["layers.0.moe.experts.weight_out"].shape[-2]
    assert std_of(tensors[EXPERTS]) == pytest.approx(math.sqrt(2 / (64 + inner)), rel=0.01)


def test_the_bias_of_a_tied_head_starts_as_that_of_an_untied_one() -> None:
    bias = tensors_of(model__tied_head=True)["head.bias"]
    assert 0 < float(bias.abs().max()) <= 64**-0.5
