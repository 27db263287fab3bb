"""What every shape of a model must keep, and what each shape knob means."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from moesearch.config.dense import dense_control
from moesearch.config.resolve import resolve
from moesearch.config.trial import TrialConfig
from moesearch.model.attention import Rotation
from moesearch.model.cost import active_params, flops_per_token, router_flops_per_token, total_params
from moesearch.model.generation import generate
from moesearch.model.transformer import MoETransformer
from tests.model.tiny import (
    VOCAB_SIZE,
    first_moe,
    losses_and_gradients,
    model_of,
    randomness_for,
    tokens_for,
    trial,
)

SHAPES: Mapping[str, Mapping[str, object]] = {
    "fine experts": {"moe.iso_flops": True, "moe.num_experts": 8, "moe.top_k": 4},
    "shared experts": {"moe.num_shared_experts": 2},
    "shared in equal FLOPs": {"moe.iso_flops": True, "moe.num_shared_experts": 1, "moe.top_k": 3},
    "every second layer": {"moe.every": 2},
    "relu squared": {"moe.activation": "relu_squared"},
    "gelu": {"moe.activation": "gelu"},
    "swiglu": {"moe.activation": "swiglu", "moe.num_shared_experts": 1, "moe.every": 2},
    "dense swiglu": {"moe.activation": "swiglu", "moe.num_experts": 1, "moe.top_k": 1},
    "rotary": {"model.positions": "rotary"},
    "rms norm": {"model.norm": "rms_norm"},
    "tied head": {"model.tied_head": True},
    "QK norm": {"model.qk_norm": True, "model.positions": "rotary", "model.norm": "rms_norm"},
}
LANES: tuple[Mapping[str, object], ...] = (
    {"model.dropout": 0.2, "moe.noise": True},
    {"model.dropout": 0.1, "moe.init": "truncated_normal"},
)

every_shape = pytest.mark.parametrize("params", SHAPES.values(), ids=SHAPES.keys())


@every_shape
def test_lanes_of_a_shape_give_what_each_gives_alone(params: Mapping[str, object]) -> None:
    configs = [trial({**own, **params}, seed=seed) for seed, own in enumerate(LANES)]
    losses, gradients = losses_and_gradients(
        model_of(*configs, backend="split", dtype=torch.float64), randomness_for(configs)
    )
    for lane, config in enumerate(configs):
        alone = losses_and_gradients(model_of(config, backend="loop", dtype=torch.float64), randomness_for([config]))
        torch.testing.assert_close(losses["total"][lane], alone[0]["total"][0])
        torch.testing.assert_close(gradients[lane], alone[1][0])


@every_shape
def test_counted_parameters_and_flops_are_the_models(params: Mapping[str, object]) -> None:
    config = trial({"moe.noise": True, "model.dropout": 0.1, **params})
    model = model_of(config, backend="loop")
    assert sum(tensor.numel() for tensor in model.lane_parameters(0).values()) == total_params(config, VOCAB_SIZE)
    window_RBT = tokens_for([config], context=7)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(window_RBT, randomness_for([config]))
    tokens = window_RBT.numel()
    assert counter.get_total_flops() == flops_per_token(config, VOCAB_SIZE) * tokens
    routers = [sum(flops.values()) for name, flops in counter.get_flop_counts().items() if name.endswith(".router")]
    assert sum(routers) == router_flops_per_token(config) * tokens


@every_shape
def test_a_later_token_never_changes_an_earlier_output(params: Mapping[str, object]) -> None:
    config = trial({"model.dropout": 0.1, **params})
    model = model_of(config, backend="split")
    window_RBT = tokens_for([config], context=7)
    changed_RBT = window_RBT.clone()
    changed_RBT[..., 4:] = (changed_RBT[..., 4:] + 1) % VOCAB_SIZE
    before, after = (model(tokens, randomness_for([config])).logits_RBTV for tokens in (window_RBT, changed_RBT))
    torch.testing.assert_close(after[:, :, :4], before[:, :, :4])
    assert not torch.allclose(after[:, :, 4], before[:, :, 4])


@every_shape
def test_text_can_be_generated_beyond_the_context(params: Mapping[str, object]) -> None:
    config = trial(params)
    assert len(generate(model_of(config, backend="split"), 0, [3], 10, seed=0)) == 11


@every_shape
def test_products_in_bfloat16_stay_near_float32_ones(params: Mapping[str, object]) -> None:
    config = trial(params)
    window_RBT = tokens_for([config], context=7)
    near, exact = (
        model_of(config, backend="blocks", dtype=dtype)(window_RBT).logits_RBTV
        for dtype in (torch.bfloat16, torch.float32)
    )
    torch.testing.assert_close(near, exact, rtol=0.15, atol=0.15)


@every_shape
def test_a_dense_control_costs_the_active_flops(params: Mapping[str, object]) -> None:
    config = resolve(TrialConfig(), {"moe.expert_hidden_dim": 528, **params})
    control = dense_control(config)
    without_router = flops_per_token(config, 65) - router_flops_per_token(config)
    assert flops_per_token(control, 65) == pytest.approx(without_router, rel=0.01)
    assert total_params(control, 65) == active_params(control, 65)


def test_iso_flops_keeps_the_active_flops_as_granularity_moves() -> None:
    configs = [
        resolve(TrialConfig(), {"moe.iso_flops": True, "moe.num_experts": 8 * k, "moe.top_k": k}) for k in (1, 2, 4, 8)
    ]
    assert [config.expert_hidden_dim for config in configs] == [512, 256, 128, 64]
    assert len({flops_per_token(config, 65) - router_flops_per_token(config) for config in configs}) == 1


def test_iso_flops_counts_shared_experts_among_the_active_ones() -> None:
    shared = resolve(TrialConfig(), {"moe.iso_flops": True, "moe.num_shared_experts": 2})
    assert shared.expert_hidden_dim == 128
    plain = resolve(TrialConfig(), {"moe.iso_flops": True})
    assert flops_per_token(shared, 65) == flops_per_token(plain, 65)


def test_swiglu_has_as_many_parameters_as_relu() -> None:
    relu, swiglu = (
        total_params(resolve(TrialConfig(), {"moe.activation": activation}), 65) for activation in ("relu", "swiglu")
    )
    assert swiglu == pytest.approx(relu, rel=0.01)


def activated(activation: str, x: Tensor) -> Tensor:
    """The sources' formulas, written out."""
    match activation:
        case "relu":
            return x.clamp(min=0)
        case "relu_squared":
            return x.clamp(min=0) ** 2
        case "gelu":
            return x * 0.5 * (1 + torch.erf(x / 2**0.5))
        case _:
            gates, values = x.chunk(2, -1)
            return gates * torch.sigmoid(gates) * values


@pytest.mark.parametrize("activation", ["relu", "relu_squared", "gelu", "swiglu"])
def test_shared_experts_add_a_layer_of_their_width_without_a_gate(activation: str) -> None:
    moe = first_moe(model_of(trial({"moe.num_shared_experts": 2, "moe.activation": activation})))
    shared = moe.shared
    assert shared is not None
    assert shared.weight_out.shape[1] == 2 * moe.experts.weight_out.shape[1]
    x_RNC = torch.randn(1, 8, 16)
    with torch.no_grad():
        together, routing = moe(x_RNC, 8, None)
        hidden = activated(activation, x_RNC @ shared.weight_in + shared.bias_in)
        expected = moe.experts(x_RNC, routing, None) + hidden @ shared.weight_out + shared.bias_out
    torch.testing.assert_close(together, expected)


def test_with_every_second_layer_the_first_is_dense_and_as_wide_as_the_active_experts() -> None:
    config = trial({"moe.every": 2, "moe.top_k": 3, "moe.num_shared_experts": 1})
    model = model_of(config)
    tensors = model.lane_parameters(0)
    assert tensors["layers.0.feed_forward.weight_in"].shape == (16, (3 + 1) * 24)
    assert not any(name.startswith("layers.0.moe.") for name in tensors)
    assert "layers.1.moe.router.logits.weight" in tensors
    assert len(model(tokens_for([config], context=7)).routings) == 1


def test_lanes_with_dense_layers_of_two_widths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"these differ in top_k \(1, 2\)$"):
        model_of(trial({"moe.every": 2}), trial({"moe.every": 2, "moe.top_k": 1}))


def test_rotated_products_depend_on_the_distance_alone() -> None:
    rotation = Rotation(12, 6, device=torch.device("cpu"), dtype=torch.float64)
    query, key = torch.randn(2, 6, dtype=torch.float64)
    queries, keys = rotation(query.expand(12, 6)), rotation(key.expand(12, 6))
    scores = queries @ keys.T
    for distance in (-3, 0, 5):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert not torch.allclose(scores.diagonal(1)[:5], scores.diagonal(2)[:5])
    torch.testing.assert_close(queries.norm(dim=1), query.norm().expand(12))


def test_rotary_positions_tell_orders_apart_without_parameters() -> None:
    model = model_of(trial({"model.positions": "rotary"}))
    assert not any("position" in name for name in model.lane_parameters(0))
    there, back = (model(torch.tensor([[ids]])).logits_RBTV[0, 0, -1] for ids in ([1, 2, 3], [2, 1, 3]))
    assert not torch.allclose(there, back)


@pytest.mark.parametrize("num_lanes", [1, 2])
def test_rms_norm_divides_by_the_root_mean_square(num_lanes: int) -> None:
    model = model_of(*[trial({"model.norm": "rms_norm"}, seed=seed) for seed in range(num_lanes)])
    norm = model.get_submodule("norm")
    assert [name for name, _ in norm.named_parameters()] == ["weight"]
    norm.get_parameter("weight").data.normal_()
    x_RNC = torch.randn(num_lanes, 5, 16)
    expected = x_RNC / (x_RNC.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.get_parameter("weight")[:, None]
    torch.testing.assert_close(norm(x_RNC), expected)


def test_with_qk_norm_the_size_of_queries_and_keys_does_not_matter() -> None:
    model = model_of(trial({"model.qk_norm": True}))
    window_RBT = tokens_for(model.configs, context=7)
    before = model(window_RBT).logits_RBTV
    model.lane_parameters(0)["layers.0.attention.qkv.weight"][:, :32] *= 1000
    torch.testing.assert_close(model(window_RBT).logits_RBTV, before, rtol=1e-3, atol=1e-3)


def test_a_tied_head_reads_the_embedding_and_its_gradient_goes_there() -> None:
    model = model_of(trial({"model.tied_head": True}))
    tensors = model.lane_parameters(0)
    assert "head.weight" not in tensors
    assert tensors["head.bias"].shape == (VOCAB_SIZE,)
    x_RNC = torch.randn(1, 5, 16)
    expected = F.linear(x_RNC[0], tensors["token_embedding.weight"], tensors["head.bias"] * 4) / 4
    torch.testing.assert_close(model._logits(x_RNC)[0], expected)
    _, (gradients,) = losses_and_gradients(model)
    # The head's part reaches rows of tokens that the text does not hold.
    assert gradients["token_embedding.weight"].abs().sum(1).min() > 0


def test_a_tied_head_starts_with_logits_of_the_size_of_one() -> None:
    config = resolve(TrialConfig(), {"model.tied_head": True, "model.num_layers": 1})
    model = MoETransformer([config], 65, expert_backend="grouped")
    with torch.no_grad():
        logits_RBTV = model(torch.arange(32)[None, None]).logits_RBTV
    assert 0.5 < float(logits_RBTV.std()) < 2
