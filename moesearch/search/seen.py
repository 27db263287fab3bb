"""A study as a sampler or a pruner is to see it, which is not always as it stands in the store."""

from __future__ import annotations

import copy
from collections.abc import Container, Sequence

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState


class SeenStudy(optuna.Study):
    """A study with these trials in place of its own and, if given, with other directions.

    Optuna's pruners know one objective only; its samplers take every record for a trial of its own, and a trial that
    runs for a bad one.
    """

    def __init__(
        self, study: optuna.Study, trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection] | None = None
    ) -> None:
        self.__dict__.update(study.__dict__)
        self._seen = list(trials)
        if directions is not None:
            self._directions = list(directions)

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        trials = [trial for trial in self._seen if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return self.get_trials(deepcopy, states)

    def _get_best_trial(self, deepcopy: bool) -> FrozenTrial:
        complete = [trial for trial in self._seen if trial.state is TrialState.COMPLETE and trial.values]
        feasible = [trial for trial in complete if all(value <= 0 for value in trial.constraints.values())]
        if not feasible:
            raise ValueError("no trial is complete yet")
        return min(feasible, key=lambda trial: trial.values[0])
