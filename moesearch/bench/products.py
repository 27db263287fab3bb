"""The floor of a training step: its matrix products alone, at the shapes of the step, with nothing around them.

Every product is a batched one, (S, M, I) times (S, I, O); forward it is one product, backward two more of equal FLOPs.
Experts get equal shares of the tokens, which is the cheapest case.

Shapes:  S products side by side   M rows   I columns summed over   O columns of the result
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from moesearch.config.trial import TrialConfig


@dataclass(frozen=True)
class Product:
    """One batched product of the forward pass, and how many of it there are in a step."""

    name: str
    count: int
    slices: int
    rows: int
    inner: int
    columns: int


def training_flops(products: Sequence[Product]) -> int:
    """Forward and backward FLOPs of all of them."""
    return sum(6 * p.count * p.slices * p.rows * p.inner * p.columns for p in products)


def step_products(config: TrialConfig, vocab_size: int) -> tuple[Product, ...]:
    """The forward products of one step: queries, keys and values of all heads as one, experts as one batch."""
    model, moe = config.model, config.moe
    tokens, layers, width, context = config.tokens_per_step, model.num_layers, model.width, model.context
    heads, head_width = config.data.batch_size * model.num_heads, width // model.num_heads
    rows = -(-tokens * moe.top_k // moe.num_experts)
    hidden = config.expert_hidden_dim
    router_columns = moe.num_experts * (2 if moe.noise else 1)
    return (
        Product("queries, keys, values", layers, 1, tokens, width, 3 * width),
        Product("attention scores", layers, heads, context, head_width, context),
        Product("attention values", layers, heads, context, context, head_width),
        Product("attention projection", layers, 1, tokens, width, width),
        Product("router", layers, 1, tokens, width, router_columns),
        Product("experts, up", layers, moe.num_experts, rows, width, hidden),
        Product("experts, down", layers, moe.num_experts, rows, hidden, width),
        Product("head", 1, 1, tokens, width, vocab_size),
    )


class BareProducts:
    """The products of one step on tensors of their own: as in a step, each layer's lie elsewhere in memory."""

    def __init__(self, products: Sequence[Product], device: str) -> None:
        self._tensors = [
            (
                torch.randn(product.slices, product.rows, product.inner, device=device),
                torch.randn(product.slices, product.inner, product.columns, device=device),
                torch.randn(product.slices, product.rows, product.columns, device=device),
            )
            for product in products
            for _ in range(product.count)
        ]
        self._weight_gradients = [torch.empty_like(weight_SIO) for _, weight_SIO, _ in self._tensors]

    def step(self) -> None:
        """All products of one forward and backward pass."""
        for input_SMI, weight_SIO, _ in self._tensors:
            torch.bmm(input_SMI, weight_SIO)
        for (input_SMI, weight_SIO, output_SMO), gradient_SIO in zip(
            self._tensors, self._weight_gradients, strict=True
        ):
            torch.bmm(output_SMO, weight_SIO.mT)
            torch.bmm(input_SMI.mT, output_SMO, out=gradient_SIO)
