from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moesearch.model.initialization import initialize_lane
from tests.model.tiny import mixed_trials, model_of, trial

LARGE = {
    "model.width": 64,
    "model.num_heads": 4,
    "model.num_layers": 1,
    "moe.num_experts": 64,
    "moe.top_k": 2,
    "moe.expert_hidden_dim": 128,
    "moe.noise": True,
}
# Inputs and outputs of each linear map of a model of that size.
FANS = {
    "attention.qkv": (64, 64),
    "attention.projection": (64, 64),
    "moe.router.logits": (64, 64),
    "moe.router.noise": (64, 64),
    "moe.experts_in": (64, 128),
    "moe.experts_out": (128, 64),
}


def weights_of(init: str) -> dict[str, Tensor]:
    tensors = model_of(trial({**LARGE, "moe.init": init, "moe.init_std": 0.05})).lane_parameters(0)
    renamed = {name.replace("experts.weight", "experts"): tensor for name, tensor in tensors.items()}
    return {name: renamed.get(f"layers.0.{name}.weight", renamed.get(f"layers.0.{name}")) for name in FANS}  # type: ignore[misc]


@pytest.mark.parametrize("name", FANS)
@pytest.mark.parametrize("init", ["kaiming_normal", "kaiming_uniform", "xavier_normal", "xavier_uniform", "normal"])
def test_each_linear_weight_has_the_deviation_of_its_scheme(init: str, name: str) -> None:
    fan_in, fan_out = FANS[name]
    expected = {"kaiming": math.sqrt(2 / fan_in), "xavier": math.sqrt(2 / (fan_in + fan_out)), "normal": 0.05}
    std = expected[init.split("_")[0]]
    weight = weights_of(init)[name].double()
    assert float(weight.mean()) == pytest.approx(0, abs=5 * std / weight.numel() ** 0.5)
    assert float(weight.std()) == pytest.approx(std, rel=5 / weight.numel() ** 0.5)
    if init.endswith("uniform"):
        assert float(weight.abs().max()) <= math.sqrt(3) * std
    else:
        assert float(weight.abs().max()) > 3 * std


@pytest.mark.parametrize(
    ("init", "scheme"),
    [
        ("kaiming_normal", torch.nn.init.kaiming_normal_),
        ("kaiming_uniform", torch.nn.init.kaiming_uniform_),
        ("xavier_normal", torch.nn.init.xavier_normal_),
        ("xavier_uniform", torch.nn.init.xavier_uniform_),
    ],
)
def test_schemes_are_torchs_own(init: str, scheme: Callable[[Tensor], Tensor]) -> None:
    """The same deviation as torch.nn.init gives a matrix of outputs by inputs."""
    config = trial({"model.width": 100, "model.num_heads": 1, "moe.expert_hidden_dim": 400, "moe.init": init})
    ours = model_of(config).lane_parameters(0)["layers.0.moe.experts.weight_in"]
    assert float(ours.std()) == pytest.approx(float(scheme(torch.empty(400, 100)).std()), rel=0.02)


def test_biases_are_uniform_within_the_inverse_root_of_their_inputs() -> None:
    tensors = model_of(trial(LARGE)).lane_parameters(0)
    for name, fan_in in {"layers.0.moe.experts.bias_in": 64, "layers.0.moe.experts.bias_out": 128}.items():
        assert float(tensors[name].abs().max()) == pytest.approx(fan_in**-0.5, rel=0.01)
        assert float(tensors[name].std()) == pytest.approx(fan_in**-0.5 / math.sqrt(3), rel=0.05)


def test_embeddings_are_standard_normal_and_norms_the_identity() -> None:
    tensors = model_of(trial({**LARGE, "model.context": 64})).lane_parameters(0)
    assert float(tensors["position_embedding.weight"].std()) == pytest.approx(1, abs=0.05)
    assert (tensors["layers.0.attention_norm.weight"] == 1).all()
    assert (tensors["norm.bias"] == 0).all()


def test_a_lanes_initial_values_depend_on_its_own_configuration_and_seed_alone() -> None:
    configs = mixed_trials()
    together = model_of(*configs)
    for lane, config in enumerate(configs):
        alone = model_of(config).lane_parameters(0)
        for name, tensor in together.lane_parameters(lane).items():
            assert torch.equal(tensor, alone[name]), name


def test_another_seed_gives_other_values() -> None:
    first, second = (model_of(trial(seed=seed)).lane_parameters(0)["head.weight"] for seed in (0, 1))
    assert not torch.equal(first, second)


def test_a_float64_model_starts_from_the_same_numbers() -> None:
    single, double = (model_of(trial(), backend="split", dtype=d) for d in (torch.float32, torch.float64))
    for name, tensor in double.lane_parameters(0).items():
        assert torch.equal(tensor, single.lane_parameters(0)[name].double()), name


def test_initialising_again_gives_the_same_values() -> None:
    config = trial(seed=3)
    model = model_of(config)
    before = {name: tensor.clone() for name, tensor in model.lane_parameters(0).items()}
    for tensor in model.lane_parameters(0).values():
        tensor.fill_(float("nan"))
    initialize_lane(model.lane_parameters(0), config)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.lane_parameters(0).items())
