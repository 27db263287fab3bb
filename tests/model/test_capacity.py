"""Who gets a place of an expert, and what becomes of the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from moesearch.config.trial import MoEConfig
from moesearch.model.cost import flops_per_token
from moesearch.model.generation import generate
from moesearch.model.products import lay_out
from moesearch.model.routers import Routing
from tests.model.tiny import VOCAB_SIZE, first_moe, model_of, routing_of, tokens_for, trial


def moe(num_experts: int = 2, top_k: int = 1, **settings: Any) -> MoEConfig:
    return MoEConfig(num_experts=num_experts, top_k=top_k, noise=False, **settings)


def asking(*scores: float) -> Tensor:
    """Logits of one lane, in which each token asks for expert 0 of two, more strongly the larger its score."""
    return torch.tensor([[[score, -score] for score in scores]])


def kept(routing: Routing) -> list[bool]:
    assert routing.kept_S is not None
    is_kept: list[bool] = routing.kept_S.tolist()
    return is_kept


def test_an_expert_has_its_fair_share_of_places_times_the_factor() -> None:
    # Eight tokens, two experts: a fair share is 4, and 1.25 * 4 = 5.
    for factor, places in ((1.0, 4), (1.25, 5), (1.1, 5), (0.1, 1), (2.0, 8), (9.0, 8)):
        routing = routing_of(asking(*[1.0] * 8), moe(capacity_factor=factor))
        assert kept(routing) == [True] * places + [False] * (8 - places), factor


def test_top_k_raises_the_fair_share() -> None:
    logits = torch.tensor([[[3.0, 2.0, 1.0, 0.0]] * 8])
    routing = routing_of(logits, moe(4, 2, capacity_factor=1.0))
    assert kept(routing) == [True, True] * 4 + [False, False] * 4


def test_by_position_the_first_tokens_of_a_sequence_get_the_places() -> None:
    routing = routing_of(asking(1, 2, 3, 4, 5, 6), moe(capacity_factor=0.7))
    assert kept(routing) == [True, True, True, False, False, False]


def test_by_score_a_token_must_be_among_the_best_so_far() -> None:
    # Places so far at factor 1: 1, 1, 2, 2, 3, 3. The second token is beaten by the first, the third by one only.
    routing = routing_of(asking(5, 1, 4, 2, 3, 6), moe(capacity_factor=1.0, drop_policy="score"))
    assert kept(routing) == [True, False, True, False, True, False]


def test_by_score_the_places_still_run_out() -> None:
    routing = routing_of(asking(1, 2, 3, 4, 5, 6), moe(capacity_factor=1.0, drop_policy="score"))
    assert kept(routing) == [True, True, True, False, False, False]


def test_where_scores_are_equal_position_decides() -> None:
    routing = routing_of(asking(1, 1, 1, 1), moe(capacity_factor=1.0, drop_policy="score"))
    assert kept(routing) == [True, True, False, False]


def test_every_sequence_has_places_of_its_own() -> None:
    routing = routing_of(asking(*[1.0] * 6), moe(capacity_factor=1.0), context=2)
    assert kept(routing) == [True, False] * 3


def test_evaluation_has_a_factor_of_its_own() -> None:
    config = trial({"moe.capacity_factor": 0.5, "moe.eval_capacity_factor": None})
    always_dropless = trial({"moe.eval_capacity_factor": 0.5})
    assert config.moe.capacity_factors == (0.5, None)
    assert always_dropless.moe.capacity_factors == (None, 0.5)
    assert trial({"moe.capacity_factor": 0.5}).moe.capacity_factors == (0.5, 0.5)
    assert model_of(config)(tokens_for([config], context=7)).routings[0].kept_S is None
    assert model_of(always_dropless)(tokens_for([config], context=7)).routings[0].kept_S is not None


def test_a_dropped_token_passes_by_the_residual_stream_alone() -> None:
    config = trial({"moe.capacity_factor": 0.1, "moe.top_k": 1, "moe.num_experts": 2, "model.num_layers": 1})
    layer = first_moe(model_of(config))
    x_RNC = torch.randn(1, 24, 16, generator=torch.Generator().manual_seed(0))
    out_RNC, routing = layer(x_RNC, 8, None)
    assert 0 < sum(kept(routing)) < 24
    assert (out_RNC[0] == 0).all(1).tolist() == [not is_kept for is_kept in kept(routing)]


def test_dropped_slots_are_counted_as_load_and_named_as_dropped() -> None:
    logits = torch.cat([asking(*[1.0] * 6), torch.tensor([[[1.0, 2.0]] * 6])])
    routing = routing_of(logits, moe(capacity_factor=1.0), moe(2, 2))
    assert routing.counts_RE().tolist() == [[6, 0], [6, 6]]
    assert routing.dropped_fraction_R().tolist() == [0.5, 0.0]
    assert routing_of(logits, moe(), moe(2, 2)).dropped_fraction_R().tolist() == [0.0, 0.0]


def test_gates_of_a_token_that_lost_one_expert_stay_as_they_were() -> None:
    logits = torch.tensor([[[2.0, 1.0, 0.0], [2.0, 0.0, 1.0], [2.0, 0.0, 1.0]]])
    full, dropped = (routing_of(logits, moe(3, 2, capacity_factor=factor)) for factor in (9.0, 0.5))
    assert kept(dropped) == [True, True, False, True, False, False]
    torch.testing.assert_close(dropped.gates_S(), full.gates_S() * torch.tensor(kept(dropped)))


@pytest.mark.parametrize("factor", [1e-12, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("policy", ["position", "score"])
def test_generation_starts_from_one_token_at_any_factor(factor: float, policy: str) -> None:
    config = trial({"moe.capacity_factor": factor, "moe.drop_policy": policy})
    model = model_of(config)
    routing = model(torch.tensor([[[3]]])).routings[0]
    assert kept(routing) == [True, True]
    ids = generate(model, 0, [3], 10, seed=0)
    assert len(ids) == 11
    assert all(0 <= token < VOCAB_SIZE for token in ids)


@pytest.mark.parametrize("backend", ["split", "padded", "blocks", "grouped"])
def test_dropped_slots_have_no_rows(backend: str) -> None:
    logits = torch.zeros(1, 400, 2)
    logits[..., 0] = 1
    full, dropped = (routing_of(logits, moe(capacity_factor=factor), context=10) for factor in (9.0, 0.4))
    rows = [len(lay_out(backend, routing).slot_P) for routing in (full, dropped)]  # type: ignore[arg-type]
    whole_blocks = 2 * 32 if backend == "blocks" else 0
    assert rows[1] <= 0.4 * rows[0] + whole_blocks


def test_costs_from_the_configuration_are_those_of_a_dropless_trial() -> None:
    dropping = trial({"moe.capacity_factor": 0.5})
    assert flops_per_token(dropping, VOCAB_SIZE) == flops_per_token(trial(), VOCAB_SIZE)
