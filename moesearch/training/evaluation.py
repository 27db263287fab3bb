"""Exact evaluation of a whole split: fixed windows, no dropout, no router noise, every token but the first predicted.

Lanes are evaluated together, in one pass over the split. A lane's numbers are those that it has alone, rounding apart,
and the same lanes give the same bits each time.

Shapes:  R lanes   B windows of a batch   T context   N predicted tokens   V vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from moesearch.data.batches import evaluation_batches
from moesearch.model.losses import token_losses
from moesearch.model.memory import evaluation_windows
from moesearch.model.transformer import MoETransformer
from moesearch.training.points import RouterHealth
from moesearch.training.router_stats import RouterStats

NUM_BLOCKS = 64
"""Consecutive equal blocks of a split whose mean losses are kept, for paired comparisons."""


@dataclass(frozen=True)
class SplitResult:
    """What an evaluation finds of one lane."""

    loss: float
    """Nats per token, of the language model alone."""
    bits_per_byte: float
    """Of the UTF-8 text that the tokens stand for: comparable between tokenizers."""
    block_losses: tuple[float, ...] = field(repr=False)
    """Nats per token of NUM_BLOCKS consecutive blocks, equal but for rounding to whole tokens."""
    router_health: RouterHealth | None = None
    """None for a model without routers."""


def never() -> bool:
    """A ``should_stop`` that lets everything finish."""
    return False


def evaluate_split(
    model: MoETransformer, tokens_N: Tensor, num_bytes: int, should_stop: Callable[[], bool] = never
) -> list[SplitResult] | None:
    """Each lane's loss and router health on a split; None if stopped between two batches.

    ``tokens_N`` is the whole split, on the model's device; ``num_bytes`` the length of its predicted part in UTF-8.
    """
    R, context = model.layout.num_lanes, model.configs[0].model.context
    losses, stats = [], RouterStats()
    num_windows = evaluation_windows(R, context, model.vocab_size, model.device.type)
    with torch.inference_mode():
        for inputs_BT, targets_BT in evaluation_batches(tokens_N, context, num_windows):
            if should_stop():
                return None
            output = model(inputs_BT.expand(R, -1, -1))
            losses.append(token_losses(output.logits_RBTV, targets_BT.expand(R, -1, -1)).flatten(1))
            stats.add(output.routings)
        losses_RN = torch.cat(losses, 1).cpu()
    health = stats.read(model.layout.num_experts)
    return [replace(summarize(row, num_bytes), router_health=own) for row, own in zip(losses_RN, health, strict=True)]


def summarize(losses_N: Tensor, num_bytes: int) -> SplitResult:
    """Means over a split and its blocks from the loss of each token, summed in float64."""
    num_tokens = len(losses_N)
    num_blocks = min(NUM_BLOCKS, num_tokens)
    edges = [block * num_tokens // num_blocks for block in range(num_blocks + 1)]
    sums = [float(losses_N[first:last].sum(dtype=torch.float64)) for first, last in pairwise(edges)]
    total = math.fsum(sums)
    return SplitResult(
        loss=total / num_tokens,
        bits_per_byte=total / (math.log(2) * num_bytes),
        block_losses=tuple(s / (last - first) for s, (first, last) in zip(sums, pairwise(edges), strict=True)),
    )
