"""Which configurations no other one beats in all objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from optuna.trial import FrozenTrial

from moesearch.config.quantities import RAISED, Quantity
from moesearch.results.records import FINGERPRINT
from moesearch.results.standing import first_value

Means = Mapping[str, tuple[float, ...]]
"""Fingerprint of a configuration -> the mean of each objective over its complete seeds."""


def objective_means(trials: Sequence[FrozenTrial]) -> Means:
    """The means of all configurations with a complete trial that violates no constraint."""
    values: dict[str, list[list[float]]] = {}
    for trial in trials:
        if first_value(trial) is not None:
            values.setdefault(trial.user_attrs[FINGERPRINT], []).append(trial.values)
    return {name: tuple(fmean(column) for column in zip(*rows, strict=True)) for name, rows in values.items()}


def front(means: Means, objectives: Sequence[Quantity]) -> list[str]:
    """The configurations of the Pareto front, best first by the leading objective.

    One is on it if no other is at least as good in every objective and better in one.
    """
    signs = [-1.0 if objective in RAISED else 1.0 for objective in objectives]
    costs = {name: tuple(s * mean for s, mean in zip(signs, row, strict=True)) for name, row in means.items()}
    on_it = [name for name, own in costs.items() if not any(_dominates(other, own) for other in costs.values())]
    return sorted(on_it, key=costs.__getitem__)


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return tuple(one) != tuple(other) and all(a <= b for a, b in zip(one, other, strict=True))
