"""The formulas under the verdict: noise of a design, Student's t, and what a number of seeds can show.

``losses`` is a table of configurations (rows) x seeds (columns), complete.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit  # Student's t: distribution and quantile. scipy.stats imports for a second.

Table = npt.NDArray[np.float64]

POWER = 0.8
"""Chance of showing a difference that is meant by "could be shown"."""
MAX_SEEDS = 200
"""More seeds than this are no advice."""


def seed_deviation(losses: Table) -> float:
    """Standard deviation of one configuration over its seeds, pooled over the configurations."""
    return float(np.sqrt(losses.var(1, ddof=1).mean()))


def paired_deviation(losses: Table) -> float:
    """Root of the residual mean square once configuration and seed are taken out (two-way layout, no interaction)."""
    num_configs, num_seeds = losses.shape
    residual = losses - losses.mean(1, keepdims=True) - losses.mean(0, keepdims=True) + losses.mean()
    return math.sqrt(float((residual**2).sum()) / ((num_configs - 1) * (num_seeds - 1)))


def pooled_deviation(groups: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation within groups of any size, pooled; None unless a group has two values."""
    filled = [group for group in groups if len(group) > 1]
    degrees = sum(len(group) - 1 for group in filled)
    if degrees == 0:
        return None
    return math.sqrt(sum(float(np.var(group)) * len(group) for group in filled) / degrees)


def t_quantile(degrees: int, probability: float) -> float:
    return float(stdtrit(degrees, probability))


def two_sided_p(difference: float, standard_error: float, degrees: int) -> float:
    """Chance of a difference of at least this size where there is none."""
    if standard_error == 0:
        return 1.0 if difference == 0 else 0.0
    return float(2 * stdtr(degrees, -abs(difference) / standard_error))


def detectable_difference(noise: float, num_configs: int, num_seeds: npt.ArrayLike, confidence: float) -> Table:
    """Real difference of two configurations that is shown with chance ``POWER``, for each of the numbers of seeds.

    The usual approximation: the quantiles of test and power, in standard errors of a paired difference.
    """
    seeds = np.asarray(num_seeds)
    degrees = (num_configs - 1) * (seeds - 1)
    standard_errors = stdtrit(degrees, 1 - (1 - confidence) / 2) + stdtrit(degrees, POWER)
    return np.asarray(standard_errors * noise * np.sqrt(2 / seeds), dtype=np.float64)


def seeds_to_show(difference: float, noise: float, num_configs: int, more_than: int, confidence: float) -> int | None:
    """Fewest seeds per configuration that would show ``difference``; None beyond ``MAX_SEEDS``."""
    seeds = np.arange(more_than + 1, MAX_SEEDS + 1)
    shows = (difference > 0) & (detectable_difference(noise, num_configs, seeds, confidence) <= difference)
    return int(seeds[shows.argmax()]) if shows.any() else None
