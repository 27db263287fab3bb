"""Maximal-update rules: what a step changes keeps its size as the width grows (a coordinate check)."""

from __future__ import annotations

import math

import pytest
import torch

from moesearch.config.resolve import resolve
from moesearch.config.trial import BudgetConfig, DataConfig, ModelConfig, MoEConfig, TrialConfig
from moesearch.data.corpora import Corpus
from moesearch.data.tokens import tokenize
from moesearch.model.parametrization import init_factor, lr_factor, role
from moesearch.model.transformer import MoETransformer
from moesearch.training.trainer import LaneTrainer
from tests.training.tiny import text

BASE = TrialConfig(
    model=ModelConfig(width=16, num_layers=2, num_heads=2, context=8, dropout=0.0),
    moe=MoEConfig(num_experts=4, top_k=2, init="normal", init_std=0.1, noise=False),
    data=DataConfig(batch_size=8),
    budget=BudgetConfig(steps=6, milestones=1),
)
TOKENS = tokenize(Corpus("words", text(3000, 0), text(200, 1), text(200, 2), "words"))


def at_width(width: int, **optim: object) -> TrialConfig:
    params = {f"optim.{name}": value for name, value in {"lr": 1e-2, **optim}.items()}
    return resolve(BASE, {"model.width": width, "model.num_heads": width // 8, **params})


def logit_change(config: TrialConfig) -> float:
    """Root mean square of what six steps change in the logits."""
    inputs = TOKENS.val[None, None, :8]
    before = MoETransformer([config], TOKENS.vocab_size)(inputs).logits_RBTV.detach()
    trainer = LaneTrainer(TOKENS)
    trainer.load(0, config)
    trainer.advance()
    change = trainer.model(0)(inputs).logits_RBTV.detach() - before
    return float(change.square().mean().sqrt())


@pytest.mark.parametrize("expert_optimizer", ["adamw", "muon"])
def test_the_change_of_the_logits_keeps_its_size_as_the_width_grows(expert_optimizer: str) -> None:
    changes = [
        logit_change(at_width(width, mup_base_width=16, expert_optimizer=expert_optimizer)) for width in (16, 64, 256)
    ]
    assert max(changes) < 2 * min(changes)


def test_without_the_rules_it_grows() -> None:
    changes = [logit_change(at_width(width)) for width in (16, 64, 256)]
    assert changes[2] > 4 * changes[0]


# Of deviations at 16 times the base width to those at the base width.
EXPECTED = {"input": 1.0, "hidden": 1 / math.sqrt(16), "output": 1 / 16}


@pytest.mark.parametrize("init", ["normal", "xavier_normal", "kaiming_normal"])
def test_initial_deviations_are_those_of_the_base_width_by_role(init: str) -> None:
    def deviations(width: int) -> dict[str, float]:
        config = resolve(at_width(width, mup_base_width=16), {"moe.init": init})
        parameters = MoETransformer([config], TOKENS.vocab_size).lane_parameters(0)
        return {name: float(tensor.std()) for name, tensor in parameters.items() if role(name) in EXPECTED}

    small, large = deviations(16), deviations(256)
    for name, deviation in small.items():
        assert large[name] / deviation == pytest.approx(EXPECTED[role(name)], rel=0.35), name


def test_at_the_base_width_nothing_changes() -> None:
    plain, based = at_width(16), at_width(16, mup_base_width=16)
    pairs = [MoETransformer([config], TOKENS.vocab_size).lane_parameters(0) for config in (plain, based)]
    assert all(torch.equal(tensor, pairs[1][name]) for name, tensor in pairs[0].items())
    assert logit_change(plain) == logit_change(based)


def test_experts_are_hidden_and_routers_are_outputs() -> None:
    config = at_width(64, mup_base_width=16)
    parameters = MoETransformer([config], TOKENS.vocab_size).lane_parameters(0)
    factors = {name: lr_factor(config, name, tensor) for name, tensor in parameters.items()}
    assert factors["layers.0.moe.experts.weight_in"] == factors["layers.0.moe.router.logits.weight"] == 0.25
    assert factors["token_embedding.weight"] == factors["layers.0.moe.experts.bias_in"] == factors["norm.weight"] == 1
    assert init_factor(config, "layers.0.moe.router.logits.weight", (64, 4), "normal") == 0.25
    muon = at_width(64, mup_base_width=16, expert_optimizer="muon")
    assert lr_factor(muon, "layers.0.moe.experts.weight_in", parameters["layers.0.moe.experts.weight_in"]) == 0.5
