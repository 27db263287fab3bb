"""A person's guesses at the best values of knobs: followed while they pay."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from moesearch.config.knobs import CategoricalKnob, Knob, PriorConfig
from moesearch.search.coordinates import Params, unit_of, value_at_unit

NEAR = 0.1
"""Distance from a guess, as a part of a knob's range, within which a trial is near it; of a list, the value itself."""


def guesses(search: Mapping[str, Knob], trials: Sequence[FrozenTrial], draw: np.random.Generator) -> Params:
    """Values that the next proposal shall have for knobs with a prior; a knob that is left out is the sampler's.

    A knob follows its guess with probability strength / (strength + 1). Where more than half of the trials near the
    guess are in the worse half of all, that falls in proportion to those in the better half (by the rule of
    succession), so a guess that misleads is soon left, and one that pays costs the sampler nothing: it learns from the
    same trials.
    """
    better = _better_half(trials)
    return {
        path: _near(knob, knob.prior, draw)
        for path, knob in search.items()
        if knob.prior is not None and draw.random() < probability(knob, knob.prior, path, trials, better)
    }


def probability(
    knob: Knob, prior: PriorConfig, path: str, trials: Sequence[FrozenTrial], better: frozenset[int]
) -> float:
    """How likely the next proposal follows the guess. The first one does."""
    near = [trial.number for trial in trials if path in trial.params and _is_near(knob, prior, trial.params[path])]
    if not near:
        return 1.0
    share = (sum(number in better for number in near) + 1) / (len(near) + 2)
    return prior.strength / (prior.strength + 1) * min(1.0, 2 * share)


def rank_key(trial: FrozenTrial) -> tuple[float, float]:
    """Orders finished trials: complete ones by value, then stopped ones by how far they came and their loss there.

    Where a study has several objectives, the first one decides.
    """
    if trial.state is TrialState.COMPLETE and trial.values:
        return -math.inf, trial.values[0]
    step = trial.last_step
    return (math.inf, 0.0) if step is None else (-float(step), trial.intermediate_values[step])


def _better_half(trials: Sequence[FrozenTrial]) -> frozenset[int]:
    finished = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    ranked = sorted(finished, key=rank_key)
    return frozenset(trial.number for trial in ranked[: math.ceil(len(ranked) / 2)])


def _is_near(knob: Knob, prior: PriorConfig, value: object) -> bool:
    if isinstance(knob, CategoricalKnob):
        return value == prior.value
    return abs(unit_of(knob, value) - unit_of(knob, prior.value)) <= NEAR


def _near(knob: Knob, prior: PriorConfig, draw: np.random.Generator) -> object:
    if isinstance(knob, CategoricalKnob):
        return prior.value
    return value_at_unit(knob, unit_of(knob, prior.value) + NEAR / 2 * draw.standard_normal())
