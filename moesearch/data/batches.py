"""Which tokens a step trains on, and which windows an evaluation reads.

Shapes:  B batch   T context   S steps   W whole evaluation windows
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moesearch.data.facts import part_windows
from moesearch.errors import CorpusError

# Second half of the generator's key, so that no other use of an equal seed draws the same numbers.
_PURPOSE = 0x6261_7463_6865_7321

_DRAWS_PER_COUNTER = 4  # One counter of Philox 4x64 gives four 64-bit numbers.


@dataclass(frozen=True)
class BatchOrder:
    """The order of training batches: for each step, B window starts, uniform and independent as in makeMoE.

    The starts of a step are a pure function of (order_seed, step): nothing is consumed, so a trial that resumes, or
    is replayed alone, reads what it would have read, and trials of equal order seeds read the same. They come from
    Philox 4x64 (Salmon et al. 2011), a counter-based generator whose raw numbers NumPy keeps the same on every
    platform and in every version.
    """

    order_seed: int
    num_tokens: int
    batch_size: int
    context: int

    def __post_init__(self) -> None:
        if self.num_tokens < self.context + 1:
            raise CorpusError(
                f"data: {self.num_tokens:,} training tokens hold no window of model.context ({self.context:,}) tokens "
                "and one more to predict; give a longer text or a shorter context"
            )

    @property
    def num_starts(self) -> int:
        """Valid starts: a window takes context + 1 tokens, inputs and targets together."""
        return self.num_tokens - self.context

    def window_starts(self, step: int) -> Tensor:
        """Window starts of one step (counted from 0), int64, shape (B,)."""
        return self.window_starts_range(step, step + 1)[0]

    def window_starts_range(self, first: int, last: int) -> Tensor:
        """Window starts of steps ``first`` up to ``last``, ``last`` not included: int64, shape (S, B)."""
        if not 0 <= first <= last:
            raise ValueError(f"steps must satisfy 0 <= first <= last (given: {first}, {last})")
        num_steps = last - first
        # Whole counters per step, so that each step's numbers lie at a place of their own in the stream.
        counters_per_step = -(-self.batch_size // _DRAWS_PER_COUNTER)
        draws_per_step = counters_per_step * _DRAWS_PER_COUNTER
        generator = np.random.Philox(key=np.array([self.order_seed, _PURPOSE], dtype=np.uint64))
        generator.advance(first * counters_per_step)
        draws = generator.random_raw(num_steps * draws_per_step).reshape(num_steps, draws_per_step)
        # The remainder of 64 random bits favours small starts by less than one part in 2**32.
        starts_SB = draws[:, : self.batch_size] % np.uint64(self.num_starts)
        return torch.from_numpy(starts_SB.astype(np.int64))


def evaluation_batches(
    tokens: Tensor, context: int, num_windows: int, share: float = 1.0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets, each of shape (B, T), that predict each token of a split but the first once, and in order.

    The windows lie side by side, so many to a batch. What remains at the end of the split is a shorter window, and a
    batch of its own: no window holds filling, which routers would route and their statistics count. A ``share`` below 1
    is that part of the whole windows, ``part_windows``.
    """
    num_whole = (len(tokens) - 1) // context
    first, rest = num_whole * context, slice(num_whole * context, len(tokens) - 1)
    inputs_WT, targets_WT = tokens[:first].view(-1, context), tokens[1 : first + 1].view(-1, context)
    if share < 1 and num_whole:
        read = torch.tensor(part_windows(len(tokens), context, share), device=tokens.device)
        inputs_WT, targets_WT, rest = inputs_WT[read], targets_WT[read], slice(0, 0)
    yield from zip(torch.split(inputs_WT, num_windows), torch.split(targets_WT, num_windows), strict=True)
    if rest.start < rest.stop:
        yield tokens[rest].unsqueeze(0), tokens[rest.start + 1 :].unsqueeze(0)
