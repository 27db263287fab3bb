"""The learning rates that each finalist tries before it is confirmed, so that none wins by the rate it was compared at.

Half its rate, once and twice; then on by factors of two towards the best one until both its neighbours are worse.
docs/decisions/0013-learning-rates.md weighs the design.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from moesearch.config.resolve import is_feasible
from moesearch.config.trial import TrialConfig
from moesearch.results.records import RATE_PARAM

FIRST = (-1, 0, 1)
"""Doublings of the rate that are tried at once; -1 is half of it."""
FURTHEST = 5
"""Doublings and halvings at most: a 32nd to 32 times."""

Losses = Mapping[int, float]
"""Doublings -> final validation loss of the runs that ended; infinite where a run diverged or could not be."""


def rate_at(config: TrialConfig, doublings: int) -> float:
    """The learning rate so many doublings from the configuration's own."""
    return config.optim.lr * 2.0**doublings


def impossible(config: TrialConfig) -> dict[int, float]:
    """The doublings that leave the range of a learning rate, each with an infinite loss."""
    reach = range(-FURTHEST, FURTHEST + 1)
    return {step: math.inf for step in reach if not is_feasible(config, {RATE_PARAM: rate_at(config, step)})}


def next_doublings(losses: Losses) -> list[int]:
    """What is still to be tried; nothing once the best rate is bracketed, or an end of the reach is the best."""
    first = [step for step in FIRST if step not in losses]
    if first:
        return first
    best = best_doublings(losses)
    return [step for step in (best - 1, best + 1) if step not in losses and abs(step) <= FURTHEST]


def best_doublings(losses: Losses) -> int:
    """The best rate that was tried; of equal ones the nearest to the first, and the lowest if all diverged."""
    if all(math.isinf(loss) for loss in losses.values()):
        return min(losses)
    return min(losses, key=lambda step: (losses[step], abs(step), step))
