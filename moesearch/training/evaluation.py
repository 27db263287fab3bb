"""Exact evaluation of a whole split: fixed windows, dropout and router noise off, every token but the first predicted.

A lane is evaluated in a model of its own, so its result depends on its parameters alone: equal parameters give equal
bits, whoever trained beside them.

Shapes:  W windows   B windows of a batch   T context   N predicted tokens   V vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from moesearch.data.batches import evaluation_batches
from moesearch.model.losses import token_losses
from moesearch.model.transformer import MoETransformer

NUM_BLOCKS = 64
"""Consecutive equal blocks of a split whose mean losses are kept, for paired comparisons."""

_BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}
_LOGITS_BYTES = 256 * 2**20


@dataclass(frozen=True)
class SplitLoss:
    """Language-model loss of one split."""

    loss: float
    """Nats per token."""
    bits_per_byte: float
    """Of the UTF-8 text that the tokens stand for: comparable between tokenizers."""
    block_losses: tuple[float, ...] = field(repr=False)
    """Nats per token of NUM_BLOCKS consecutive blocks, equal but for rounding to whole tokens."""


def never() -> bool:
    """A ``should_stop`` that lets everything finish."""
    return False


def evaluate_split(
    model: MoETransformer, tokens: Tensor, num_bytes: int, should_stop: Callable[[], bool] = never
) -> SplitLoss | None:
    """Loss of a single-lane model on a split; None if stopped between two batches.

    ``tokens`` is the whole split, ``num_bytes`` the length of its predicted part in UTF-8.
    """
    assert model.layout.num_lanes == 1, "a lane is evaluated alone"
    context = model.configs[0].model.context
    inputs_WT, targets_WT = evaluation_batches(tokens, context)
    losses = []
    with torch.inference_mode():
        batch = batch_windows(context, model.vocab_size, model.device)
        for inputs_BT, targets_BT in zip(torch.split(inputs_WT, batch), torch.split(targets_WT, batch), strict=True):
            if should_stop():
                return None
            logits_RBTV = model(inputs_BT.to(model.device).unsqueeze(0)).logits_RBTV
            losses.append(token_losses(logits_RBTV, targets_BT.to(model.device).unsqueeze(0)).flatten())
        return summarize(torch.cat(losses)[: len(tokens) - 1].cpu(), num_bytes)


def batch_windows(context: int, vocab_size: int, device: torch.device) -> int:
    """Windows per batch: enough for full speed, few enough for the caches and for the memory of the logits."""
    num_tokens = min(_BATCH_TOKENS.get(device.type, 65536), _LOGITS_BYTES // (4 * vocab_size))
    return max(1, num_tokens // context)


def summarize(losses_N: Tensor, num_bytes: int) -> SplitLoss:
    """Means over a split and its blocks from the loss of each token, summed in float64."""
    num_tokens = len(losses_N)
    num_blocks = min(NUM_BLOCKS, num_tokens)
    edges = [block * num_tokens // num_blocks for block in range(num_blocks + 1)]
    sums = [float(losses_N[first:last].sum(dtype=torch.float64)) for first, last in pairwise(edges)]
    total = math.fsum(sums)
    return SplitLoss(
        loss=total / num_tokens,
        bits_per_byte=total / (math.log(2) * num_bytes),
        block_losses=tuple(s / (last - first) for s, (first, last) in zip(sums, pairwise(edges), strict=True)),
    )
