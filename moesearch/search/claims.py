"""Who works on what: trials are claimed from the store, and given back, so that a budget is held exactly.

docs/decisions/0003-budget-reservation.md says why the counting below is exact over workers, hosts and kills. In short:
a trial counts unless it is void, no void trial ever counts again, and nobody works on a trial with as many non-void
trials before it as the budget has.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from moesearch.config.trial import TrialConfig
from moesearch.errors import LostTrialError
from moesearch.results.records import (
    ATTEMPT,
    CONFIG,
    DEATHS,
    FAMILY,
    LOST_MILESTONES,
    OUTCOME,
    REASON,
    STOPPED_AT,
    STOPPED_TIME,
    WORKER,
    Outcome,
)
from moesearch.results.standing import is_finished, is_stopped
from moesearch.search.deaths import MAX_DEATHS, MAX_MEMORY_DEATHS, deaths_with_this_one, new_attempt
from moesearch.search.families import Family, family_of, is_of
from moesearch.search.ledger import Ledger
from moesearch.search.memory import Store
from moesearch.search.pruning import halving_in
from moesearch.search.reserves import Limits, lost_milestones
from moesearch.search.storage import locks_all_workers
from moesearch.search.worker_names import is_dead_here

_COPIED_NOT = (WORKER, OUTCOME, REASON)


def fixed_params(trial: FrozenTrial) -> dict[str, Any]:
    """What the trial must keep: queued values, and those that an earlier worker was given."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def _is_waiting_in(family: Family | None, trial: FrozenTrial) -> bool:
    is_waiting = trial.state is TrialState.WAITING and not is_stopped(trial)
    if not is_waiting or family is None:
        return is_waiting
    # A trial that was planned, or begun, is known in every field.
    config = trial.system_attrs.get(CONFIG)
    known = fixed_params(trial) if config is None else family_of(TrialConfig.model_validate(config), tuple(family))
    return is_of(known, family)


@contextmanager
def fenced(trial: optuna.Trial) -> Iterator[None]:
    """Turn Optuna's refusal to write to a trial that was taken over into LostTrialError."""
    try:
        yield
    except UpdateFinishedTrialError:
        raise LostTrialError(f"trial {trial.number} was given to another worker while this one was silent") from None


def _never_ends(_trials: Sequence[FrozenTrial]) -> str:
    return ""


@dataclass
class Claims:
    """A worker's view of the queue of one study.

    ``num_trials`` is the budget, in finished trials; None works off what is queued and creates nothing.
    ``lock`` is the store's (see ``store_lock``). Under it, claims and recoveries come one after another.
    """

    study: optuna.Study
    storage: Store
    lock: AbstractContextManager[object]
    worker: str
    num_trials: int | None
    limits: Limits = field(default_factory=Limits)
    ends: Callable[[Sequence[FrozenTrial]], str] = _never_ends
    """Why nothing new is begun although there is room: a stopping rule that holds, as a sentence; else empty."""

    def __post_init__(self) -> None:
        self._has_seen: set[int] = set()
        self.ledger = Ledger()

    def claim(self, family: Family | None = None) -> optuna.Trial | None:
        """Take the first trial that waits, or make one if the budget has room. To be called under the lock.

        A stopped trial that is to be promoted comes before a new one. With a family, only trials of it are taken, and
        one that is made asks the sampler to propose of it.
        """
        trials = self.study.get_trials(deepcopy=False)
        waiting = next(self._claimable(trials, family), None) or self._next_promotion(trials, family)
        if waiting is not None:
            trial = self._take(waiting)
        elif self._may_make(trials):
            trial = self._make(family)
            # Another host may have made one at the same moment; the trial's number says who came first.
            if trial.number != len(trials) and not self._has_room(self.study.get_trials(deepcopy=False), trial.number):
                self.give_back(trial)
                return None
        else:
            return None
        if trial is not None and not self.limits.is_kept():  # likewise: it may have reserved at the same moment
            self.give_back(trial)
            return None
        return trial

    def _claimable(self, trials: Sequence[FrozenTrial], family: Family | None = None) -> Iterator[FrozenTrial]:
        """The trials that wait and may be taken, first to last."""
        waiting = [trial for trial in self.ledger.open_trials(trials) if _is_waiting_in(family, trial)]
        if not waiting or self.ends(trials):
            return
        for trial in waiting:
            if self._has_room(trials, trial.number) and self.limits.has_room(trial):
                yield trial

    def _may_make(self, trials: Sequence[FrozenTrial]) -> bool:
        if self.num_trials is None or not self._has_room(trials, len(trials)):
            return False
        return self.limits.has_room() and not self.ends(trials)

    # The next two are what `Study.ask` does, which takes any trial that waits, and knows of no families.

    def _take(self, waiting: FrozenTrial) -> optuna.Trial | None:
        """The waiting trial, running; None if a worker of another host was faster."""
        # It may have run before. The sign of life from then is old, so it would be taken for stale at once.
        self.storage.record_heartbeat(waiting._trial_id)
        try:
            self.storage.set_trial_system_attr(waiting._trial_id, ATTEMPT, new_attempt())
            if not self.storage.set_trial_state_values(waiting._trial_id, TrialState.RUNNING):
                return None
        except UpdateFinishedTrialError:
            return None
        trial = self._open(waiting._trial_id)
        with fenced(trial):
            trial.set_user_attr(WORKER, self.worker)
        return trial

    def _make(self, family: Family | None) -> optuna.Trial:
        template = optuna.create_trial(
            state=TrialState.RUNNING,
            user_attrs={WORKER: self.worker},
            system_attrs={ATTEMPT: new_attempt(), **({FAMILY: dict(family)} if family else {})},
        )
        # By the study's own access to the store, whose cache must know a trial before a parameter of it is set.
        trial_id = self.study._storage.create_new_trial(self.study._study_id, template)
        self.storage.record_heartbeat(trial_id)
        return self._open(trial_id)

    def _next_promotion(self, trials: Sequence[FrozenTrial], family: Family | None = None) -> FrozenTrial | None:
        halving = halving_in(self.study)
        if halving is None or self.ends(trials):
            return None
        stopped = halving.next_promotion(
            trials,
            is_growing=self._has_room(trials, len(trials)) and self.limits.has_room(),
            admits=lambda trial: family is None or is_of(trial.params, family),
        )
        return stopped if stopped is None or self.limits.has_room(stopped) else None

    def _open(self, trial_id: int) -> optuna.Trial:
        self.study._thread_local.cached_all_trials = None  # samplers and pruners read the store once per trial
        return optuna.Trial(self.study, trial_id)

    def _has_room(self, trials: Sequence[FrozenTrial], number: int) -> bool:
        if self.num_trials is None:
            return True
        return self.ledger.num_ahead(trials, number) < self.num_trials

    def is_over(self) -> bool:
        """Whether nothing is left to do for anyone: the budget is spent, or the queue worked off."""
        trials = self.study.get_trials(deepcopy=False)
        if self.num_trials is None and all(trial.state.is_finished() for trial in trials):
            return True
        if any(trial.state is TrialState.RUNNING for trial in trials):
            return False
        return not (self._may_make(trials) or self._next_promotion(trials) or next(self._claimable(trials), None))

    def why_over(self) -> str:
        """What ended the search before its number of trials, as a sentence; empty where nothing did."""
        trials = self.study.get_trials(deepcopy=False)
        is_complete = self.num_trials is None or sum(map(is_finished, trials)) >= self.num_trials
        if is_complete or not self.is_over():
            return ""
        return self.ends(trials) or self.limits.what_is_spent()

    def give_back(self, trial: optuna.Trial, *, has_lost_work: bool = False) -> None:
        """Let another worker, or a later run, continue the trial: same number, parameters and curve.

        ``has_lost_work`` says that it goes on from an earlier checkpoint, so that some of its work was in vain.
        """
        # Under the lock, since between its two steps the trial looks like an orphan to `recover`.
        with self.lock, fenced(trial):
            if has_lost_work:
                lost = lost_milestones(self.storage.get_trial(trial._trial_id))
                self.storage.set_trial_system_attr(trial._trial_id, LOST_MILESTONES, lost)
            self._return(trial._trial_id)

    def stop_at_rung(self, trial: optuna.Trial) -> None:
        """Let the trial wait until it is promoted, or never can be; it counts as one that was pruned there."""
        with self.lock, fenced(trial):
            rung = self.storage.get_trial(trial._trial_id).last_step
            self.storage.set_trial_system_attr(trial._trial_id, STOPPED_TIME, time.time())
            self.storage.set_trial_system_attr(trial._trial_id, STOPPED_AT, rung)
            # Who is killed here leaves a trial that, once it was recovered, is stopped.
            self._return(trial._trial_id)

    def is_mine(self, trial: optuna.Trial) -> bool:
        """Whether this worker still has the trial: it loses it by being silent for longer than the grace period."""
        frozen = self.storage.get_trial(trial._trial_id)
        return frozen.state is TrialState.RUNNING and frozen.user_attrs.get(WORKER) == self.worker

    def overdue(self, seconds: float) -> list[FrozenTrial]:
        """Trials that their workers began more than so many seconds ago."""
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        before = time.time() - seconds
        return [trial for trial in running if trial.system_attrs.get(ATTEMPT, {"began": before})["began"] < before]

    def recover(self, *, innocent: Collection[str] = ()) -> None:
        """Put trials back into the queue whose workers died, so that others continue them.

        Of workers on this host it is known whether they live. Others are given up after the grace period of the store.
        The deaths of ``innocent`` workers are not counted: their trials had no part in them.
        """
        fail_stale_trials_quietly(self.study)
        if not self._orphans():  # a look without the lock, for which all workers would otherwise queue at each trial
            return
        with self.lock:
            for trial in self._orphans():
                if trial.user_attrs.get(WORKER) in innocent:
                    self._return(trial._trial_id)
                else:
                    self._return_or_give_up(trial)

    def _orphans(self) -> list[FrozenTrial]:
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [trial for trial in running if self._is_orphan(trial)]

    def _is_orphan(self, trial: FrozenTrial) -> bool:
        """Whether the trial's worker is no more. Of one that is just claiming, only a look under the lock can tell."""
        worker = trial.user_attrs.get(WORKER)
        if worker:
            return is_dead_here(worker)
        if not locks_all_workers(self.storage):
            self._start_its_clock(trial)
            return False
        return True

    def _start_its_clock(self, trial: FrozenTrial) -> None:
        """A worker of another host may have died before its first sign of life, without which nothing goes stale."""
        if trial._trial_id not in self._has_seen:
            self._has_seen.add(trial._trial_id)
            self.storage.record_heartbeat(trial._trial_id)

    def _return_or_give_up(self, trial: FrozenTrial) -> None:
        deaths = deaths_with_this_one(trial)
        try:
            self.storage.set_trial_system_attr(trial._trial_id, LOST_MILESTONES, lost_milestones(trial))
            self.storage.set_trial_system_attr(trial._trial_id, DEATHS, deaths)
            if deaths["memory"] >= MAX_MEMORY_DEATHS:
                reason = f"the kernel killed its worker for memory {MAX_MEMORY_DEATHS} times, the last time alone"
                self._give_up(trial, "out_of_memory", reason)
            elif deaths["count"] >= MAX_DEATHS:
                self._give_up(trial, "lost", f"its worker died {MAX_DEATHS} times")
            else:
                self._return(trial._trial_id)
        except UpdateFinishedTrialError:
            pass  # it went stale meanwhile, and a copy is in the queue

    def _give_up(self, trial: FrozenTrial, outcome: Outcome, reason: str) -> None:
        self.storage.set_trial_user_attr(trial._trial_id, OUTCOME, outcome)
        self.storage.set_trial_user_attr(trial._trial_id, REASON, reason)
        if outcome == "lost":
            self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        else:
            set_constraints(self._open(trial._trial_id), {"feasible": 1.0})
            self.storage.set_trial_state_values(trial._trial_id, TrialState.PRUNED)

    def _return(self, trial_id: int) -> None:
        # In this order: a waiting trial with a dead worker's name could be taken for an orphan once it runs again.
        self.storage.set_trial_user_attr(trial_id, WORKER, "")
        self.storage.set_trial_state_values(trial_id, TrialState.WAITING)


def fail_stale_trials_quietly(study: optuna.Study) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        fail_stale_trials(study)


def requeue_stale(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue a copy of a trial that its silent worker has lost; for ``open_storage(on_stale=...)``.

    The original stays failed, so Optuna refuses what the old worker still writes to it.
    """
    deaths = deaths_with_this_one(trial)
    if deaths["count"] >= MAX_DEATHS:
        return
    study.add_trial(copy_of(trial, TrialState.WAITING, {}, {DEATHS: deaths}))


def copy_of(
    trial: FrozenTrial, state: TrialState, user_attrs: Mapping[str, Any], system_attrs: Mapping[str, Any]
) -> FrozenTrial:
    """A record that goes on where another one of the same trial ends: its parameters, seed, configuration and curve."""
    inherited = {name: value for name, value in trial.user_attrs.items() if name not in _COPIED_NOT}
    return optuna.create_trial(
        state=state,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs={**inherited, **user_attrs},
        system_attrs={**trial.system_attrs, **system_attrs},
        intermediate_values=trial.intermediate_values,
    )


def set_constraints(trial: optuna.Trial, violations: Mapping[str, float]) -> None:
    """Tell samplers by how much a trial violates constraints, by name; 0 or less where it keeps one."""
    for name, violation in violations.items():
        if name not in trial.constraints:  # a worker that was killed here may have set it
            trial.set_constraint(name, violation)
    if violations:
        # Samplers of Optuna 5 read those above, optuna-dashboard 0.21 only the attribute of earlier versions.
        trial.storage.set_trial_system_attr(trial._trial_id, "constraints", list(violations.values()))
