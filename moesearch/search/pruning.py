"""Who stops a trial early.

Pruners see the first objective's curve by milestone, so trials are compared at equal parts of their budget.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import assert_never

import optuna
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    PercentilePruner,
    ThresholdPruner,
    WilcoxonPruner,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from moesearch.config.study import StudyConfig
from moesearch.search.halving import Halving, halving_of
from moesearch.search.seen import SeenStudy


def make_pruner(config: StudyConfig) -> BasePruner:
    """The pruner that a study asks for."""
    pruner = config.pruner
    # Optuna lets a step be judged from n_warmup_steps on, and milestones are counted from 1: with 2 milestones of
    # warm-up, the third is the first to be judged.
    first_judged = pruner.warmup_milestones + 1
    match pruner.type:
        case "median":
            return CurvePruner(MedianPruner(pruner.warmup_trials, first_judged))
        case "percentile":
            return CurvePruner(PercentilePruner(pruner.keep_percent, pruner.warmup_trials, first_judged))
        case "patient":
            return CurvePruner(_quiet(lambda: PatientPruner(None, pruner.patience, pruner.min_delta)))
        case "threshold":
            return CurvePruner(ThresholdPruner(upper=pruner.upper, n_warmup_steps=first_judged))
        case "hyperband":
            return CurvePruner(_Hyperband(pruner.first_rung, config.base.budget.milestones, pruner.eta))
        case "wilcoxon":
            return CurvePruner(_quiet(lambda: WilcoxonPruner(p_threshold=pruner.p, n_startup_steps=first_judged)))
        case "asha":
            return AshaPruner(halving_of(config))
        case "none":
            return NopPruner()
        case _:
            assert_never(pruner.type)


def _quiet(make: Callable[[], BasePruner]) -> BasePruner:
    """A pruner of Optuna without its warning that an argument may change in a later version."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return make()


def should_prune(trial: optuna.Trial) -> bool:
    """Whether the trial stops at the milestone that it reported last; ``Trial.should_prune`` for any objectives."""
    return trial.study.pruner.prune(trial.study, trial.storage.get_trial(trial._trial_id))


def halving_in(study: optuna.Study) -> Halving | None:
    """The rungs of a study whose stopped trials can be promoted; None where what stops is over."""
    return study.pruner.halving if isinstance(study.pruner, AshaPruner) else None


class CurvePruner(BasePruner):
    """One of Optuna's pruners, which sees a study of one objective: the one whose curve is reported."""

    def __init__(self, pruner: BasePruner) -> None:
        self._pruner = pruner

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        return self._pruner.prune(SeenStudy(study, study.get_trials(deepcopy=False), [StudyDirection.MINIMIZE]), trial)


class AshaPruner(BasePruner):
    """Stops trials at rungs; one that is stopped may be promoted later, by whoever claims a trial then."""

    def __init__(self, halving: Halving) -> None:
        self.halving = halving

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        return self.halving.prune(study.get_trials(deepcopy=False), trial)


class _Hyperband(HyperbandPruner):
    def _create_bracket_study(self, study: optuna.Study, bracket_id: int) -> optuna.Study:
        """The trials of one bracket. Optuna's own opens the stored study again, with all its objectives."""
        trials = [
            trial for trial in study.get_trials(deepcopy=False) if self._get_bracket_id(study, trial) == bracket_id
        ]
        return SeenStudy(study, trials)
