"""What each named sampler would propose next, of a study as it sees it.

A draw is a function of the study, the trial and a seed, and holds no state: any worker draws the same, and so does a
restart. Values that it leaves out are for others to fill.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar, assert_never

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from moesearch.config.knobs import Knob
from moesearch.config.study import StudyConfig
from moesearch.results.standing import as_they_stand
from moesearch.search.coordinates import Params, unit_of, value_at_unit
from moesearch.search.priors import rank_key
from moesearch.search.seen import SeenStudy

Space = Mapping[str, BaseDistribution]
Sampler = TypeVar("Sampler", bound=BaseSampler)


class Draw(Protocol):
    """Proposes values for a trial; ``attempt`` counts from 0 where proposals are turned down."""

    def __call__(self, study: optuna.Study, trial: FrozenTrial, seed: int, attempt: int) -> Params: ...


def make_draw(config: StudyConfig, space: Space) -> Draw:
    """The draws of the sampler that a study names; ``auto`` is TPE here, and ``grid`` leaves all to its list."""
    # A quarter of a small budget: on tables like the main job's, 24 trials came on average 0.007 nats from the best
    # with 6 trials before TPE, and 0.013 with Optuna's 10.
    num_first = min(10, max(4, config.num_trials // 4))
    has_conditions = any(knob.when for knob in config.search.values())
    varied = {name: distribution for name, distribution in space.items() if not distribution.single()}

    def tpe(study: optuna.Study, trial: FrozenTrial, seed: int, attempt: int) -> Params:
        # With constant liar, TPE takes the running trials of all workers into account.
        sampler = _quiet(TPESampler, seed=seed + attempt, n_startup_trials=num_first, group=has_conditions)
        own = sampler.infer_relative_search_space(study, trial) if has_conditions else dict(space)
        return sampler.sample_relative(study, trial, own)

    def gp(study: optuna.Study, trial: FrozenTrial, seed: int, attempt: int) -> Params:
        sampler = _quiet(GPSampler, seed=seed + attempt, n_startup_trials=num_first)
        return sampler.sample_relative(study, trial, varied)

    def nsga2(study: optuna.Study, trial: FrozenTrial, seed: int, attempt: int) -> Params:
        population = min(50, max(4, config.num_trials // 5))
        return _quiet(NSGAIISampler, seed=seed + attempt, population_size=population).sample_relative(
            study, trial, varied
        )

    def cmaes(study: optuna.Study, trial: FrozenTrial, seed: int, attempt: int) -> Params:
        return _cmaes_draw(study, config.search, seed + attempt)

    def qmc(study: optuna.Study, trial: FrozenTrial, seed: int, attempt: int) -> Params:
        return _sobol_point(config.search, config.sampler.seed, trial.number + 4096 * attempt)

    def nothing(study: optuna.Study, trial: FrozenTrial, seed: int, attempt: int) -> Params:
        return {}

    match config.sampler.type:
        case "auto" | "tpe":
            return tpe
        case "random" | "grid":
            return nothing
        case "gp":
            return gp
        case "cmaes":
            return cmaes
        case "qmc":
            return qmc
        case "nsga2":
            return nsga2
        case _:
            assert_never(config.sampler.type)


def as_seen(study: optuna.Study, trial: FrozenTrial, config: StudyConfig, earlier: Sequence[FrozenTrial]) -> SeenStudy:
    """The study as its sampler sees it: with ``earlier`` results, and what is stopped at a rung pruned.

    TPE takes what runs for bad, so that it does not propose it twice; a trial with a curve is shown by that instead,
    like one that was stopped there. Of several objectives, samplers know only trials that are complete.
    """
    own = as_they_stand([other for other in study.get_trials(deepcopy=False) if other.number != trial.number])
    if len(study.directions) > 1:
        own = [other for other in own if other.state is not TrialState.PRUNED or _is_refused(other)]
    elif config.sampler.type in ("auto", "tpe"):
        own = [_by_its_curve(other) for other in own]
    seen = [*earlier, *own]
    has_conditions = any(knob.when for knob in config.search.values())
    if has_conditions and config.sampler.type in ("gp", "nsga2"):
        seen = [_filled(other, config.search) for other in seen]
    return SeenStudy(study, seen)


def _by_its_curve(trial: FrozenTrial) -> FrozenTrial:
    if trial.state is not TrialState.RUNNING or not trial.intermediate_values:
        return trial
    shown = copy.copy(trial)
    shown.state = TrialState.PRUNED
    return shown


def _filled(trial: FrozenTrial, search: Mapping[str, Knob]) -> FrozenTrial:
    """A trial with a middle value for each knob that was not searched in it, for samplers that need all of them."""
    missing = {path: value_at_unit(knob, 0.5) for path, knob in search.items() if path not in trial.params}
    if not trial.params or not missing:
        return trial
    shown = copy.copy(trial)
    shown.params = {**trial.params, **missing}
    return shown


def _is_refused(trial: FrozenTrial) -> bool:
    return any(violation > 0 for violation in trial.constraints.values())


def _quiet(sampler: Callable[..., Sampler], **arguments: object) -> Sampler:
    """A sampler of Optuna without its warning that an argument may change in a later version."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return sampler(**arguments)


def _cmaes_draw(study: optuna.Study, search: Mapping[str, Knob], seed: int) -> Params:
    """CMA-ES (Hansen and Ostermeier 2001) in the unit cube, its generations being finished trials in their order.

    Only ranks count in it, so a stopped trial takes part. Optuna's own keeps its state in the store, pickled, and what
    is unpickled is run.
    """
    from cmaes import CMA

    lowest, highest = np.zeros(len(search)), np.ones(len(search))
    optimizer = CMA(mean=(lowest + highest) / 2, sigma=0.25, bounds=np.stack([lowest, highest], axis=1), seed=seed)
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    size = optimizer.population_size
    for first in range(0, len(finished) - size + 1, size):
        generation = sorted(finished[first : first + size], key=rank_key)
        optimizer.tell([(_in_unit_cube(search, trial), float(rank)) for rank, trial in enumerate(generation)])
    at_D = optimizer.ask()
    return {path: value_at_unit(knob, float(unit)) for (path, knob), unit in zip(search.items(), at_D, strict=True)}


def _in_unit_cube(search: Mapping[str, Knob], trial: FrozenTrial) -> np.ndarray:
    return np.array([unit_of(k, trial.params[path]) if path in trial.params else 0.5 for path, k in search.items()])


def _sobol_point(search: Mapping[str, Knob], seed: int, number: int) -> Params:
    """A point of a scrambled Sobol sequence (Sobol 1967; Owen 1998), which fills the space more evenly than chance."""
    from scipy.stats.qmc import Sobol

    sequence = Sobol(len(search), scramble=True, rng=np.random.default_rng(seed))
    if number:
        sequence.fast_forward(number)
    (at_D,) = sequence.random(1)
    return {path: value_at_unit(knob, float(unit)) for (path, knob), unit in zip(search.items(), at_D, strict=True)}
