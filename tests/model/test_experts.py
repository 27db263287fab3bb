"""All ways to compute the experts agree with the loop over experts."""

from __future__ import annotations

import pytest
import torch

from moesearch.config.trial import MoEConfig, TrialConfig
from moesearch.model.experts import PackedExperts
from moesearch.model.lanes import LaneLayout
from moesearch.model.randomness import DropoutRates
from moesearch.model.routers import Routing, TopKRouter
from tests.model.tiny import losses_and_gradients, mixed_trials, model_of, randomness_for, trial

DOUBLE_BACKENDS = ("split", "padded", "blocks")


def routing_to(experts: list[list[int]], num_experts: int) -> Routing:
    """A routing of one lane in which token n goes to ``experts[n]``, its first choice most of all."""
    top_k = len(experts[0])
    router = TopKRouter(
        LaneLayout((num_experts,), (top_k,)),
        num_experts,
        [MoEConfig(noise=False)],
        len(experts),
        device=torch.device("cpu"),
        dtype=torch.float64,
    )
    router.logits.weight.data.copy_(torch.eye(num_experts)[None])
    wishes_NE = torch.zeros(1, len(experts), num_experts, dtype=torch.float64)
    for token, chosen in enumerate(experts):
        for rank, expert in enumerate(chosen):
            wishes_NE[0, token, expert] = top_k - rank
    routing: Routing = router(wishes_NE, len(experts), None)
    return routing


@pytest.mark.parametrize("backend", DOUBLE_BACKENDS)
@pytest.mark.parametrize("is_training", [False, True])
def test_a_backend_agrees_with_the_oracle_in_float64(backend: str, is_training: bool) -> None:
    configs = mixed_trials() if is_training else [trial(seed=1), trial({"moe.num_experts": 6, "moe.top_k": 3}, seed=2)]
    results = []
    for name in ("loop", backend):
        randomness = randomness_for(configs) if is_training else None
        results.append(losses_and_gradients(model_of(*configs, backend=name, dtype=torch.float64), randomness))
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)


def test_grouped_mm_agrees_with_the_oracle_as_far_as_float32_goes() -> None:
    configs = mixed_trials()
    results = [
        losses_and_gradients(model_of(*configs, backend=name, dtype=dtype), randomness_for(configs))
        for name, dtype in (("loop", torch.float64), ("grouped", torch.float32))
    ]
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=2e-6, check_dtype=False)


@pytest.mark.parametrize("backend", ["loop", *DOUBLE_BACKENDS])
@pytest.mark.parametrize(
    "experts",
    [
        [[2], [2], [2], [2], [2]],
        [[0], [3], [0], [3], [0]],
        [[1, 0], [0, 1], [1, 0]],
        [[expert] for expert in range(4) for _ in range(40)],
    ],
    ids=["all to one", "some get none", "two of two", "more than a block each"],
)
def test_each_token_gets_the_gated_sum_of_its_experts(backend: str, experts: list[list[int]]) -> None:
    num_experts, width, hidden = 2 if len(experts[0]) == 2 else 4, 6, 5
    torch.manual_seed(0)
    packed = PackedExperts(
        num_experts,
        width,
        hidden,
        DropoutRates([0.0], torch.device("cpu")),
        backend,  # type: ignore[arg-type]
        device=torch.device("cpu"),
        dtype=torch.float64,
    )
    for parameter in packed.parameters():
        parameter.data.normal_()
    x_NC = torch.randn(len(experts), width, dtype=torch.float64)
    routing = routing_to(experts, num_experts)
    y_NC = packed(x_NC[None], routing, None)[0]
    for token, chosen in enumerate(experts):
        expected = torch.zeros(width, dtype=torch.float64)
        for rank, expert in enumerate(chosen):
            inner = torch.relu(x_NC[token] @ packed.weight_in[expert] + packed.bias_in[expert])
            outer = inner @ packed.weight_out[expert] + packed.bias_out[expert]
            expected = expected + routing.gates_RNK[0, token, rank] * outer
        torch.testing.assert_close(y_NC[token], expected)


@pytest.mark.parametrize("backend", ["grouped", *DOUBLE_BACKENDS])
def test_an_expert_without_tokens_gets_a_gradient_of_zero(backend: str) -> None:
    config = trial({"moe.num_experts": 3, "moe.top_k": 1})
    model = model_of(config, backend=backend)
    for layer in range(2):
        model.lane_parameters(0)[f"layers.{layer}.moe.router.logits.bias"].copy_(torch.tensor([1e4, 0.0, 0.0]))
    _, (gradients,) = losses_and_gradients(model)
    for name in ("weight_in", "bias_in", "weight_out", "bias_out"):
        used, *unused = gradients[f"layers.0.moe.experts.{name}"]
        assert used.abs().max() > 0
        assert all((gradient == 0).all() for gradient in unused)


@pytest.mark.parametrize("backend", ["grouped", *DOUBLE_BACKENDS])
def test_two_passes_give_the_same_bits(backend: str) -> None:
    configs: list[TrialConfig] = mixed_trials()
    first, second = (losses_and_gradients(model_of(*configs, backend=backend), randomness_for(configs)) for _ in "ab")
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("activation", ["relu_squared", "gelu", "swiglu"])
@pytest.mark.parametrize("backend", DOUBLE_BACKENDS)
def test_every_activation_agrees_with_the_oracle_in_float64(backend: str, activation: str) -> None:
    configs = [
        config.model_copy(update={"moe": config.moe.model_copy(update={"activation": activation})})
        for config in mixed_trials()
    ]
    results = [
        losses_and_gradients(model_of(*configs, backend=name, dtype=torch.float64), randomness_for(configs))
        for name in ("loop", backend)
    ]
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)
