"""Who proposes the next configuration, and how a proposal becomes parameters of a trial.

A proposal costs milliseconds and a trial seconds to hours, so a proposal that breaks a rule, or repeats a configuration
while others are untried, is turned into a better one before it becomes a trial. Left to itself, Optuna's TPE tried 37
of 72 points in 60 trials, one of them 15 times.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from moesearch.config.knobs import CategoricalKnob, FloatKnob, IntKnob, Knob
from moesearch.config.resolve import is_feasible
from moesearch.config.space import feasible_points
from moesearch.config.study import StudyConfig
from moesearch.results.records import FAMILY
from moesearch.search.claims import fixed_params
from moesearch.search.families import is_of

MAX_LISTED_POINTS = 20_000
"""Larger spaces are not listed point by point: checking a point takes some 50 microseconds."""
MAX_DRAWS = 64
"""Draws in search of a proposal that breaks no rule, where the space cannot be listed."""
TPE_DRAWS = 8
"""How many of them are TPE's, which cost milliseconds each; the rest are random."""
MIN_LEADERS = 3

Params = dict[str, Any]
PointsPD = npt.NDArray[np.float64]
"""Shape (points, dimensions): coordinates such that the L1 distance of two points counts the knobs that differ."""


def make_sampler(config: StudyConfig) -> BaseSampler:
    """The sampler that a study asks for; it holds no state, so any worker makes the same proposals after a restart."""
    points = feasible_points(config, limit=MAX_LISTED_POINTS)
    match config.sampler.type:
        case "auto":
            if points is not None and len(points) <= config.num_trials:
                return CoveringSampler(config, points)
            return FeasibleSampler(config, points, use_tpe=True)
        case "tpe":
            return FeasibleSampler(config, points, use_tpe=True)
        case "random":
            return FeasibleSampler(config, points, use_tpe=False)
        case _:
            assert_never(config.sampler.type)


def suggest(trial: optuna.Trial, knobs: Mapping[str, Knob]) -> Params:
    """Parameters of a trial: those it has (queued, or begun by an earlier worker), and proposals for the rest."""
    params: Params = {}
    for path, knob in knobs.items():
        match knob:
            case CategoricalKnob():
                params[path] = trial.suggest_categorical(path, knob.choices)
            case IntKnob():
                params[path] = trial.suggest_int(path, knob.low, knob.high, step=knob.step, log=knob.log)
            case FloatKnob():
                params[path] = trial.suggest_float(path, knob.low, knob.high, step=knob.step, log=knob.log)
            case _:
                assert_never(knob)
    return params


class CoveringSampler(BaseSampler):
    """Every feasible point once, in an order that spreads; then further seeds of the leaders."""

    def __init__(self, config: StudyConfig, points: Sequence[Params]) -> None:
        self._space = _distributions(config.search)
        self._points = _spread(points, config.search, config.sampler.seed)
        self._random = RandomSampler(seed=config.sampler.seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Params:
        candidates = _matching(self._points, fixed_params(trial))
        others, family = _others(study, trial), _wanted_family(trial)
        tried = _tried(others, self._space)
        untried = [point for point in candidates if _key(point, self._space) not in tried]
        if untried:
            return (_matching(untried, family) or untried)[0]
        return self._leader_with_fewest_seeds(others, family) or (candidates[0] if candidates else {})

    def _leader_with_fewest_seeds(self, others: Sequence[FrozenTrial], family: Params) -> Params | None:
        """Budget that is left over goes evenly to the best sixth of the points, three at least.

        Among those with equally many seeds, the wanted family comes first.
        """
        values: dict[tuple[object, ...], list[float]] = {}
        seeds: dict[tuple[object, ...], int] = {}
        for other in others:
            key = _key(other.params, self._space)
            seeds[key] = seeds.get(key, 0) + 1
            if other.state is TrialState.COMPLETE and other.value is not None:
                values.setdefault(key, []).append(other.value)
        means = {key: sum(losses) / len(losses) for key, losses in values.items()}
        leaders = sorted(means, key=means.__getitem__)[: max(MIN_LEADERS, len(means) // 6)]
        if not leaders:
            return None

        def place(leader: tuple[object, ...]) -> tuple[int, bool, float]:
            is_wanted = is_of(dict(zip(self._space, leader, strict=True)), family)
            return seeds[leader], not is_wanted, means[leader]

        first = min(leaders, key=place)
        return dict(zip(self._space, first, strict=True))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._random.sample_independent(study, trial, param_name, param_distribution)


class FeasibleSampler(BaseSampler):
    """TPE or random search over the points that break no rule and were not tried yet, as far as these can be known.

    In a space that can be listed, TPE's first trials spread; a later proposal that is taken, or breaks a rule, gives
    way to the nearest point that is free. In others, proposals that break a rule are drawn again.
    """

    def __init__(self, config: StudyConfig, points: Sequence[Params] | None, *, use_tpe: bool) -> None:
        self._config = config
        self._space = _distributions(config.search)
        self._points = None if points is None else _spread(points, config.search, config.sampler.seed)
        self._use_tpe = use_tpe
        # A quarter of a small budget: on tables like the main job's, 24 trials came on average 0.007 nats from the best
        # with 6 trials before TPE, and 0.013 with Optuna's 10.
        self._num_startup_trials = min(10, max(4, config.num_trials // 4))

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Params:
        # A generator per trial: workers do not propose the same, and a restart proposes what it would have anyway.
        seed = _trial_seed(self._config.sampler.seed, trial.number)
        tpe = TPESampler(seed=seed, n_startup_trials=self._num_startup_trials) if self._use_tpe else None
        # With constant liar, TPE takes the running trials of all workers into account.
        draw = {} if tpe is None else tpe.sample_relative(study, trial, search_space)
        if self._points is None:
            return self._draw_until_feasible(study, trial, tpe, draw, RandomSampler(seed=seed))
        free = _matching(self._points, fixed_params(trial))
        tried = _tried(_others(study, trial), self._space)
        free = [point for point in free if _key(point, self._space) not in tried] or free
        free = _matching(free, _wanted_family(trial)) or free
        if not free:  # A queued configuration leaves no feasible rest; the trial will be told so.
            return draw
        if draw:
            return free[_nearest(free, draw, self._config.search)]
        # The list spreads, so its first points are the best first trials; random search takes any.
        return free[0] if self._use_tpe else free[np.random.default_rng(seed).integers(len(free))]

    def _draw_until_feasible(
        self, study: optuna.Study, trial: FrozenTrial, tpe: TPESampler | None, draw: Params, random: RandomSampler
    ) -> Params:
        fixed, family = fixed_params(trial), _wanted_family(trial)
        for attempt in itertools.count(1):
            draw = draw or {
                name: random.sample_independent(study, trial, name, distribution)
                for name, distribution in self._space.items()
            }
            if attempt <= MAX_DRAWS // 2:  # later draws look for a feasible point of any family
                draw = {**draw, **family}
            if attempt == MAX_DRAWS or is_feasible(self._config.base, {**draw, **fixed}):
                break
            draw = tpe.sample_relative(study, trial, self._space) if tpe and attempt < TPE_DRAWS else {}
        return draw

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        random = RandomSampler(seed=_trial_seed(self._config.sampler.seed, trial.number))
        return random.sample_independent(study, trial, param_name, param_distribution)


def _distributions(knobs: Mapping[str, Knob]) -> dict[str, BaseDistribution]:
    return {path: _distribution(knob) for path, knob in knobs.items()}


def _distribution(knob: Knob) -> BaseDistribution:
    match knob:
        case CategoricalKnob():
            return CategoricalDistribution(knob.choices)
        case IntKnob():
            return IntDistribution(knob.low, knob.high, log=knob.log, step=knob.step)
        case FloatKnob():
            return FloatDistribution(knob.low, knob.high, log=knob.log, step=knob.step)
        case _:
            assert_never(knob)


def _wanted_family(trial: FrozenTrial) -> Params:
    """The shape that the trial should have to train beside others, where a point of it is left."""
    family: Params = trial.system_attrs.get(FAMILY, {})
    return family


def _matching(points: Sequence[Params], fixed: Params) -> list[Params]:
    return [point for point in points if all(point[name] == value for name, value in fixed.items() if name in point)]


def _others(study: optuna.Study, trial: FrozenTrial) -> list[FrozenTrial]:
    return [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]


def _tried(others: Sequence[FrozenTrial], space: Mapping[str, BaseDistribution]) -> set[tuple[object, ...]]:
    """Keys of all configurations that were begun, whatever came of them, or are queued in full."""
    return {_key(fixed_params(other), space) for other in others}


def _key(params: Mapping[str, Any], space: Mapping[str, BaseDistribution]) -> tuple[object, ...]:
    return tuple(params.get(name) for name in space)


def _trial_seed(study_seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{study_seed}/{number}".encode()).digest()[:4], "big")


def _spread(points: Sequence[Params], knobs: Mapping[str, Knob], seed: int) -> list[Params]:
    """The points in an order in which each one is as far as possible from those before it (greedy maximin).

    Ties are broken by a seeded shuffle, and so is the order of a list too long for a step per point.
    """
    order = np.random.default_rng(seed).permutation(len(points))
    shuffled = [dict(points[index]) for index in order]
    if len(points) > 2_000:
        return shuffled
    at_PD = _coordinates(shuffled, knobs)
    distance_P = np.full(len(points), math.inf)
    chosen: list[int] = []
    for _ in points:
        index = int(distance_P.argmax())
        chosen.append(index)
        distance_P = np.minimum(distance_P, np.abs(at_PD - at_PD[index]).sum(1))
        distance_P[chosen] = -1
    return [shuffled[index] for index in chosen]


def _nearest(points: Sequence[Params], draw: Params, knobs: Mapping[str, Knob]) -> int:
    """Index of the point that differs least from the draw; among equals, the first."""
    at_PD = _coordinates([*points, draw], knobs)
    return int(np.abs(at_PD[:-1] - at_PD[-1]).sum(1).argmin())


def _coordinates(points: Sequence[Params], knobs: Mapping[str, Knob]) -> PointsPD:
    columns = [_knob_coordinates([point[path] for point in points], knob) for path, knob in knobs.items()]
    return np.concatenate(columns, axis=1)


def _knob_coordinates(values: Sequence[Any], knob: Knob) -> PointsPD:
    """Coordinates of the values of one knob, at most 1 apart: ordered ones on a line, names in corners of a simplex."""
    match knob:
        case CategoricalKnob():
            ranks = [knob.choices.index(value) for value in values]
            if all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in knob.choices):
                by_size = np.argsort(np.argsort(np.array(knob.choices, dtype=np.float64)))
                return (by_size[ranks] / max(1, len(knob.choices) - 1))[:, None]
            return np.eye(len(knob.choices))[ranks] / 2
        case IntKnob() | FloatKnob():
            scale = np.log if knob.log else np.asarray
            low, high, at = (scale(np.asarray(value, dtype=np.float64)) for value in (knob.low, knob.high, values))
            return np.asarray((at - low) / max(float(high - low), 1e-12))[:, None]
        case _:
            assert_never(knob)
