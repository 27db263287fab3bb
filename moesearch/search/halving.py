"""Asynchronous successive halving with promotion (ASHA; Li et al. 2020, algorithm 2), over the trials in the store.

At a rung all but the best 1/eta stop. A stopped trial waits in the store and keeps its checkpoint; if later arrivals
turn out worse, it comes into the best 1/eta after all, and goes on. Once it never can, it is told PRUNED at its rung.
docs/decisions/0010-asha-promotion.md says why in this way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from moesearch.config.study import StudyConfig
from moesearch.results.records import OUTCOME, STOPPED_AT
from moesearch.results.standing import Key, is_stopped, key_of, latest_records


@dataclass(frozen=True)
class Halving:
    """The rungs of a study and who passes them."""

    rungs: tuple[int, ...]
    """Milestones at which trials stop, rising; the end of a trial is none of them."""
    eta: int
    num_trials: int
    finalists: int
    """Trials that pass each rung at least, once no new one will come: confirmation needs that many results."""

    def prune(self, trials: Sequence[FrozenTrial], trial: FrozenTrial) -> bool:
        """Whether the trial stops at the rung that it has reached."""
        rung = trial.last_step
        if rung not in self.rungs or rung == trial.system_attrs.get(STOPPED_AT):  # it was promoted from there
            return False
        ranked = self._ranked(trials, rung)
        return key_of(trial) not in ranked[: len(ranked) // self.eta]

    def next_promotion(
        self, trials: Sequence[FrozenTrial], *, is_growing: bool, admits: Callable[[FrozenTrial], bool]
    ) -> FrozenTrial | None:
        """The stopped trial that is to go on now: the highest rung first, and the best of a rung.

        ``is_growing`` says that new trials may still come. Once none will, and none is below a rung, at least
        ``finalists`` of those at the rung go on, so that a small search ends with results.
        """
        latest = latest_records(trials)
        for rung in reversed(self.rungs):
            ranked = self._ranked(trials, rung)
            for key in ranked[: len(ranked) // self.eta]:
                if _is_stopped_at(rung, latest[key]) and admits(latest[key]):
                    return latest[key]
        if is_growing:
            return None
        for rung in self.rungs:
            if any(_is_on_its_way(trial, rung) for trial in trials):
                return None
            finalists = [latest[key] for key in self._ranked(trials, rung)[: self.finalists]]
            stopped = [trial for trial in finalists if _is_stopped_at(rung, trial)]
            if stopped:
                return next(filter(admits, stopped), None)
        return None

    def without_hope(self, trials: Sequence[FrozenTrial], rung: int) -> list[FrozenTrial]:
        """The trials stopped at a rung that can never go on: ranks only fall, and a bounded number passes the rung."""
        num_passing = self.num_trials
        for _ in self.rungs[: self.rungs.index(rung) + 1]:
            num_passing = max(num_passing // self.eta, self.finalists)
        latest = latest_records(trials)
        lost = [latest[key] for key in self._ranked(trials, rung)[num_passing:]]
        return [trial for trial in lost if _is_stopped_at(rung, trial)]

    def _ranked(self, trials: Sequence[FrozenTrial], rung: int) -> list[Key]:
        """All trials that ever reached the rung, best first; of equals the one that began first."""
        values: dict[Key, float] = {}
        for trial in trials:
            key = key_of(trial)
            if key is not None and rung in trial.intermediate_values and not _is_refused_at(rung, trial):
                values.setdefault(key, trial.intermediate_values[rung])
        return sorted(values, key=values.__getitem__)


def halving_of(config: StudyConfig) -> Halving:
    """The rungs that a study asks for: ``first_rung`` times powers of ``eta``, below the last milestone."""
    rungs = []
    rung = config.pruner.first_rung
    while rung < config.base.budget.milestones:
        rungs.append(rung)
        rung *= config.pruner.eta
    return Halving(tuple(rungs), config.pruner.eta, config.num_trials, max(1, config.confirm.top))


def _is_stopped_at(rung: int, trial: FrozenTrial) -> bool:
    return is_stopped(trial) and trial.last_step == rung


def _is_refused_at(rung: int, trial: FrozenTrial) -> bool:
    """Whether a constraint of the study file ended the trial there, so that it competes with none."""
    return trial.last_step == rung and trial.user_attrs.get(OUTCOME) == "violated"


def _is_on_its_way(trial: FrozenTrial, rung: int) -> bool:
    """Whether the trial trains, or waits for a worker, and may still reach the rung."""
    has_begun = trial.state is TrialState.WAITING and bool(trial.params) and not is_stopped(trial)
    return (trial.state is TrialState.RUNNING or has_begun) and (trial.last_step or 0) < rung
