"""Who proposes the next configuration, and how a proposal becomes parameters of a trial.

A proposal costs milliseconds and a trial seconds to hours, so a proposal that breaks a rule, or repeats a configuration
while others are untried, is turned into a better one before it becomes a trial. Left to itself, Optuna's TPE tried 37
of 72 points in 60 trials, one of them 15 times.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, assert_never

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial

from moesearch.config.knobs import CategoricalKnob, FloatKnob, IntKnob, Knob, is_active
from moesearch.config.resolve import is_feasible
from moesearch.config.space import feasible_points, in_order, without_inactive
from moesearch.config.study import StudyConfig
from moesearch.results.records import FAMILY
from moesearch.results.standing import as_they_stand, first_value
from moesearch.search.claims import fixed_params
from moesearch.search.coordinates import Params, nearest, spread
from moesearch.search.draws import as_seen, make_draw
from moesearch.search.families import is_of
from moesearch.search.priors import guesses
from moesearch.search.trial_cost import MAX_LISTED_POINTS

MAX_DRAWS = 64
"""Draws in search of a proposal that breaks no rule, where the space cannot be listed."""
NAMED_DRAWS = 8
"""How many of them are the named sampler's, which cost milliseconds each; the rest are random."""
MIN_LEADERS = 3


def make_sampler(config: StudyConfig, earlier: Sequence[FrozenTrial] = ()) -> BaseSampler:
    """The sampler that a study asks for; it holds no state, so any worker makes the same proposals after a restart.

    ``earlier`` are results of other studies, which it knows beside those of its own.
    """
    points = feasible_points(config, limit=MAX_LISTED_POINTS)
    match config.sampler.type:
        case "auto" if points is not None and len(points) <= config.num_trials:
            return CoveringSampler(config, points)
        case "grid" if points is not None:
            return CoveringSampler(config, points, covers_again=True)
        case _:
            return FeasibleSampler(config, points, earlier)


def suggest(trial: optuna.Trial, knobs: Mapping[str, Knob]) -> Params:
    """Parameters of a trial: those it has (queued, or begun by an earlier worker), and proposals for the rest."""
    params: Params = {}
    for path in in_order(knobs):
        knob = knobs[path]
        if not is_active(knob, params):
            continue
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
    """Every feasible point once, in an order that spreads; then further seeds, of the leaders or of all points."""

    def __init__(self, config: StudyConfig, points: Sequence[Params], *, covers_again: bool = False) -> None:
        self._config = config
        self._space = distributions(config.search)
        self._points = spread(points, config.search, config.sampler.seed)
        self._covers_again = covers_again
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
            free = _matching(untried, family) or untried
            wished = guesses(self._config.search, others, _generator(self._config, trial))
            return free[nearest(free, {**free[0], **wished}, self._config.search)] if wished else free[0]
        if self._covers_again:
            return self._point_with_fewest_seeds(candidates, others, family)
        return self._leader_with_fewest_seeds(others, family) or (candidates[0] if candidates else {})

    def _point_with_fewest_seeds(
        self, candidates: Sequence[Params], others: Sequence[FrozenTrial], family: Params
    ) -> Params:
        """The list from its start once more, when all of it was begun equally often."""
        begun = Counter(_key(fixed_params(other), self._space) for other in others)
        free = _matching(candidates, family) or candidates
        return min(free, key=lambda point: begun[_key(point, self._space)], default={})

    def _leader_with_fewest_seeds(self, others: Sequence[FrozenTrial], family: Params) -> Params | None:
        """Budget that is left over goes evenly to the best sixth of the points, three at least.

        Among those with equally many seeds, the wanted family comes first.
        """
        values: dict[tuple[object, ...], list[float]] = {}
        seeds: dict[tuple[object, ...], int] = {}
        for other in others:
            key = _key(other.params, self._space)
            seeds[key] = seeds.get(key, 0) + 1
            if (value := first_value(other)) is not None:
                values.setdefault(key, []).append(value)
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
    """A named sampler over the points that break no rule and were not tried yet, as far as these can be known.

    In a space that can be listed, the first trials spread; a later proposal that is taken, or breaks a rule, gives way
    to the nearest point that is free. In others, proposals that break a rule are drawn again.
    """

    def __init__(
        self, config: StudyConfig, points: Sequence[Params] | None, earlier: Sequence[FrozenTrial] = ()
    ) -> None:
        self._config = config
        self._space = distributions(config.search)
        self._points = None if points is None else spread(points, config.search, config.sampler.seed)
        self._draw = make_draw(config, self._space)
        self._earlier = earlier

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Params:
        # A generator per trial: workers do not propose the same, and a restart proposes what it would have anyway.
        seed = _trial_seed(self._config.sampler.seed, trial.number)
        seen = as_seen(study, trial, self._config, self._earlier)
        wished = guesses(self._config.search, seen.get_trials(deepcopy=False), _generator(self._config, trial))
        if self._points is None:
            return self._draw_until_feasible(seen, trial, seed, wished)
        draw = self._draw(seen, trial, seed, 0)
        free = _matching(self._points, fixed_params(trial))
        tried = _tried(_others(study, trial), self._space)
        free = [point for point in free if _key(point, self._space) not in tried] or free
        free = _matching(free, _wanted_family(trial)) or free
        if not free:  # A queued configuration leaves no feasible rest; the trial will be told so.
            return draw
        # The list spreads, so its first points are the best first trials; random search takes any.
        is_random = self._config.sampler.type == "random"
        first = free[np.random.default_rng(seed).integers(len(free))] if is_random else free[0]
        if not draw and not wished:
            return first
        return free[nearest(free, {**first, **draw, **wished}, self._config.search)]

    def _draw_until_feasible(self, seen: optuna.Study, trial: FrozenTrial, seed: int, wished: Params) -> Params:
        fixed, family, random = fixed_params(trial), _wanted_family(trial), RandomSampler(seed=seed)
        for attempt in range(MAX_DRAWS):
            filled = {name: random.sample_independent(seen, trial, name, self._space[name]) for name in self._space}
            drawn = self._draw(seen, trial, seed, attempt) if attempt < NAMED_DRAWS else {}
            draw = {**filled, **drawn}
            if attempt < NAMED_DRAWS:
                draw = {**draw, **wished}
            if attempt < MAX_DRAWS // 2:  # later draws look for a feasible point of any family
                draw = {**draw, **family}
            draw = without_inactive(self._config.search, {**draw, **fixed})
            if is_feasible(self._config.base, draw):
                break
        return draw

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        random = RandomSampler(seed=_trial_seed(self._config.sampler.seed, trial.number))
        return random.sample_independent(study, trial, param_name, param_distribution)


def distributions(knobs: Mapping[str, Knob]) -> dict[str, BaseDistribution]:
    """A space in Optuna's terms."""
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
    return as_they_stand([other for other in study.get_trials(deepcopy=False) if other.number != trial.number])


def _tried(others: Sequence[FrozenTrial], space: Mapping[str, BaseDistribution]) -> set[tuple[object, ...]]:
    """Keys of all configurations that were begun, whatever came of them, or are queued in full."""
    return {_key(fixed_params(other), space) for other in others}


def _key(params: Mapping[str, Any], space: Mapping[str, BaseDistribution]) -> tuple[object, ...]:
    return tuple(params.get(name) for name in space)


def _generator(config: StudyConfig, trial: FrozenTrial) -> np.random.Generator:
    """For what is drawn beside a sampler's own proposal."""
    return np.random.default_rng([_trial_seed(config.sampler.seed, trial.number), 1])


def _trial_seed(study_seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{study_seed}/{number}".encode()).digest()[:4], "big")
