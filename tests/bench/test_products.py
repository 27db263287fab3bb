"""The bare products: what they must equal for a ratio to be honest."""

from __future__ import annotations

import pytest

from moesearch.bench.products import BareProducts, step_products, training_flops
from moesearch.bench.settings import ARTICLE, ARTICLE_VOCAB_SIZE, with_experts
from moesearch.config.trial import TrialConfig
from moesearch.model.cost import training_flops_per_token


@pytest.mark.parametrize(("num_experts", "top_k", "hidden"), [(8, 2, 512), (32, 8, 128), (64, 2, None)])
def test_the_bare_products_are_the_flops_of_a_step(num_experts: int, top_k: int, hidden: int | None) -> None:
    config = with_experts(ARTICLE, num_experts, top_k, hidden)
    flops = training_flops_per_token(config, ARTICLE_VOCAB_SIZE) * config.tokens_per_step
    assert training_flops(step_products(config, ARTICLE_VOCAB_SIZE)) == flops


def test_the_bare_products_run_at_the_shapes_of_a_step(config: TrialConfig) -> None:
    BareProducts(step_products(config, vocab_size=11), "cpu").step()
