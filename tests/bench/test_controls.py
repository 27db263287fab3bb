"""The dense control and the bare products: what they must equal for a ratio to be honest."""

from __future__ import annotations

import pytest
import torch

from moesearch.bench.dense import DenseTrainer, DenseTransformer
from moesearch.bench.products import BareProducts, step_products, training_flops
from moesearch.bench.settings import ARTICLE, ARTICLE_VOCAB_SIZE, with_experts
from moesearch.config.dense import dense_control
from moesearch.config.trial import TrialConfig
from moesearch.data.tokens import TokenData
from moesearch.model.cost import total_params, training_flops_per_token


def test_the_dense_control_has_the_parameters_of_equal_active_flops() -> None:
    dense = DenseTransformer(ARTICLE, ARTICLE_VOCAB_SIZE, torch.device("meta"))
    num_params = sum(parameter.numel() for parameter in dense.parameters())
    assert num_params == total_params(dense_control(ARTICLE), ARTICLE_VOCAB_SIZE) == 2_656_833


def test_the_dense_control_learns(config: TrialConfig, tokens: TokenData) -> None:
    torch.manual_seed(0)
    trainer = DenseTrainer(config, tokens.train, tokens.vocab_size, "cpu")
    losses = [trainer.step() for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])


@pytest.mark.parametrize(("num_experts", "top_k", "hidden"), [(8, 2, 512), (32, 8, 128), (64, 2, None)])
def test_the_bare_products_are_the_flops_of_a_step(num_experts: int, top_k: int, hidden: int | None) -> None:
    config = with_experts(ARTICLE, num_experts, top_k, hidden)
    flops = training_flops_per_token(config, ARTICLE_VOCAB_SIZE) * config.tokens_per_step
    assert training_flops(step_products(config, ARTICLE_VOCAB_SIZE)) == flops


def test_the_bare_products_run_at_the_shapes_of_a_step(config: TrialConfig) -> None:
    BareProducts(step_products(config, vocab_size=11), "cpu").step()
