"""Exact evaluation of a split, or of a fixed share of it: fixed windows, no dropout, no router noise. Of a whole split,
every token but the first is predicted.

Lanes are evaluated together, in one pass over the split. A lane's numbers are those that it has alone, rounding apart,
and the same lanes give the same bits each time.

Shapes:  R lanes   B windows of a batch   T context   N predicted tokens   V vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from moesearch.data.batches import evaluation_batches
from moesearch.model.losses import token_losses
from moesearch.model.memory import evaluation_windows
from moesearch.model.transformer import MoETransformer
from moesearch.training.points import RouterHealth
from moesearch.training.router_stats import RouterStats

NUM_BLOCKS = 64
"""Consecutive equal parts of a split's text whose mean losses are kept, for paired comparisons."""


@dataclass(frozen=True)
class SplitResult:
    """What an evaluation finds of one lane."""

    loss: float
    """Nats per token, of the language model alone."""
    bits_per_byte: float
    """Of the UTF-8 text that the tokens stand for: comparable between tokenizers."""
    block_losses: tuple[float, ...] = field(default=(), repr=False)
    """Nats per byte of NUM_BLOCKS equal parts of the text, the same for every tokenizer; empty for a share of it."""
    router_health: RouterHealth | None = None
    """None for a model without routers."""


def never() -> bool:
    """A ``should_stop`` that lets everything finish."""
    return False


def evaluate_split(
    model: MoETransformer,
    tokens_N: Tensor,
    bytes_per_id_V: Tensor,
    should_stop: Callable[[], bool] = never,
    *,
    share: float = 1.0,
) -> list[SplitResult] | None:
    """Each lane's loss and router health on a split; None if stopped between two batches.

    ``tokens_N`` is the whole split, on the model's device; ``bytes_per_id_V`` says how many
    bytes of UTF-8 each id stands for. A ``share`` below 1 evaluates on that part of the split's windows alone.
    """
    R, context = model.layout.num_lanes, model.configs[0].model.context
    losses, predicted, stats = [], [], RouterStats()
    num_windows = evaluation_windows(R, context, model.vocab_size, model.device.type)
    with torch.inference_mode():
        for inputs_BT, targets_BT in evaluation_batches(tokens_N, context, num_windows, share):
            if should_stop():
                return None
            output = model(inputs_BT.expand(R, -1, -1))
            losses.append(token_losses(output.logits_RBTV, targets_BT.expand(R, -1, -1)).flatten(1))
            predicted.append(targets_BT.flatten())
            stats.add(output.routings)
        losses_RN = torch.cat(losses, 1).cpu()
    if share < 1:
        num_bytes = int(bytes_per_id_V[torch.cat(predicted).cpu()].sum())
        results = [means(row, num_bytes) for row in losses_RN]
    else:
        bytes_N1 = bytes_per_id_V[tokens_N.cpu()]
        results = [summarize(row, bytes_N1) for row in losses_RN]
    health = stats.read(model.layout.num_experts)
    return [replace(result, router_health=own) for result, own in zip(results, health, strict=True)]


def means(losses_N: Tensor, num_bytes: int) -> SplitResult:
    """Means over predicted tokens, which stand for so many bytes; no blocks."""
    total = math.fsum(losses_N.tolist())
    return SplitResult(loss=total / len(losses_N), bits_per_byte=total / (math.log(2) * num_bytes))


def summarize(losses_N: Tensor, bytes_N1: Tensor) -> SplitResult:
    """Means over a split and its blocks, from the loss of each predicted token and the bytes of all tokens.

    Blocks are cut by bytes of the text, so that a block holds the same text under every tokenizer; a token's loss is
    spread evenly over its bytes. The first token is predicted by nothing: it has bytes and no loss.
    """
    ends = bytes_N1.cumsum(0).numpy()
    first_bytes, last_byte = int(ends[0]), int(ends[-1])
    cumulative_N1 = np.concatenate([[0.0], np.cumsum(losses_N.numpy().astype(np.float64))])
    # The first byte, which no tokenizer predicts, is in no block.
    num_blocks = min(NUM_BLOCKS, len(losses_N))
    edges = [1 + block * (last_byte - 1) // num_blocks for block in range(num_blocks + 1)]
    sums = np.diff(np.interp(edges, ends, cumulative_N1)).tolist()
    lengths = [last - max(first, first_bytes) for first, last in pairwise(edges)]
    return replace(
        means(losses_N, last_byte - first_bytes),
        # A block that the first token fills has nothing to predict.
        block_losses=tuple(s / length if length > 0 else 0.0 for s, length in zip(sums, lengths, strict=True)),
    )
