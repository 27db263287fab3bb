"""Rules by which a search ends before its number of trials: nothing new, target reached, little left to gain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
from optuna.trial import FrozenTrial

from moesearch.config.space import feasible_points
from moesearch.config.study import StudyConfig
from moesearch.results.records import FINGERPRINT
from moesearch.results.standing import as_they_stand, first_value, is_finished
from moesearch.results.statistics import pooled_deviation
from moesearch.search.coordinates import Params, PointsPD, coordinates
from moesearch.search.trial_cost import MAX_LISTED_POINTS

MIN_DEGREES = 3
"""Configurations beyond the number of fitted effects that a bound on the regret takes."""


def why_ended(config: StudyConfig, trials: Sequence[FrozenTrial]) -> str:
    """The rule of the study file that holds, as a sentence; empty where none does."""
    rules = config.stop
    complete = [trial for trial in trials if first_value(trial) is not None]
    if not complete or (rules.target is None and rules.patience is None and rules.regret is None):
        return ""
    best = min(complete, key=lambda trial: first_value(trial) or 0.0)
    value = first_value(best) or 0.0
    if rules.target is not None and value <= rules.target:
        return f"the target {rules.target:g} is reached: trial {best.number} has {value:.4f}"
    if rules.patience is not None and _is_stale(trials, rules.patience):
        noise = seed_noise(complete)
        beyond = "" if noise is None else f" by more than the seed noise of {noise:.4f}"
        return f"the last {rules.patience} trials improved on nothing{beyond}"
    if rules.regret is not None:
        bound = regret_bound(config, complete)
        if bound is not None and bound <= rules.regret:
            return f"no untried configuration is expected to be better by more than {max(bound, 0.0):.4f}"
    return ""


def seed_noise(complete: Sequence[FrozenTrial]) -> float | None:
    """Deviation between seeds of one configuration, pooled; None where no configuration has two."""
    return pooled_deviation(list(_values(complete).values()))


def regret_bound(config: StudyConfig, complete: Sequence[FrozenTrial]) -> float | None:
    """By how much an untried configuration may be better than the best one, at two deviations of prediction.

    Least squares of an additive model of the knobs over the configurations' means. None where the points cannot be
    listed, or those tried are too few; minus infinity where none is left untried.
    """
    points = feasible_points(config, limit=MAX_LISTED_POINTS)
    if points is None:
        return None
    by_name = _values(complete)
    params = {trial.user_attrs[FINGERPRINT]: trial.params for trial in complete}
    untried = [point for point in points if point not in list(params.values())]
    if not untried:
        return -math.inf
    design_PD = _design(config, [*params.values(), *untried])
    known_PD, left_PD = design_PD[: len(params)], design_PD[len(params) :]
    if np.linalg.matrix_rank(design_PD) > np.linalg.matrix_rank(known_PD):
        return None  # a value of some knob was never tried
    means_P = np.array([fmean(by_name[name]) for name in params])
    rank = int(np.linalg.matrix_rank(known_PD))
    if len(params) - rank < MIN_DEGREES:
        return None
    inverse_DD = np.linalg.pinv(known_PD.T @ known_PD)
    effects_D = inverse_DD @ known_PD.T @ means_P
    deviation = math.sqrt(float(((means_P - known_PD @ effects_D) ** 2).sum()) / (len(params) - rank))
    leverage_P = np.einsum("pd,de,pe->p", left_PD, inverse_DD, left_PD)
    lowest = float((left_PD @ effects_D - 2 * deviation * np.sqrt(1 + leverage_P)).min())
    return float(means_P.min()) - lowest


def _design(config: StudyConfig, points: Sequence[Params]) -> PointsPD:
    return np.concatenate([np.ones((len(points), 1)), coordinates(points, config.search)], axis=1)


def _is_stale(trials: Sequence[FrozenTrial], patience: int) -> bool:
    """Whether the last trials that ended brought no value below all earlier ones by more than the seed noise."""
    ended = [trial for trial in as_they_stand(trials) if is_finished(trial)]
    ended.sort(key=lambda trial: (trial.datetime_complete is None, trial.datetime_complete or 0, trial.number))
    before = [value for trial in ended[:-patience] if (value := first_value(trial)) is not None]
    if not before:
        return False
    noise = seed_noise([trial for trial in ended if first_value(trial) is not None]) or 0.0
    since = [value for trial in ended[-patience:] if (value := first_value(trial)) is not None]
    return min(since, default=math.inf) > min(before) - noise


def _values(complete: Sequence[FrozenTrial]) -> Mapping[str, list[float]]:
    values: dict[str, list[float]] = {}
    for trial in complete:
        values.setdefault(trial.user_attrs[FINGERPRINT], []).append(trial.values[0])
    return values
