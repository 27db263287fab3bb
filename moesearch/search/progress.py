"""Where a study stands, from its trials alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from optuna.trial import FrozenTrial, TrialState

from moesearch.config.study import StudyConfig
from moesearch.results.records import OUTCOME, REASON
from moesearch.search.claims import is_finished, is_void

MIN_FAILURES = 10
"""Failures before a study can be called hopeless."""
FAILURES_PER_SUCCESS = 3


@dataclass(frozen=True)
class Snapshot:
    """What a person wants to know while a study runs. Surplus trials that wait for nothing are in no count."""

    phase: Literal["search", "confirm", "done"]
    num_trials: int
    """Trials that the search is to finish."""
    num_complete: int
    num_pruned: int
    num_failed: int
    """Ended, and counting for nothing: infeasible, diverged, out of memory, error, lost."""
    num_confirm_runs: int
    num_confirmed: int
    running: tuple[FrozenTrial, ...]
    best: FrozenTrial | None
    """The complete trial of the search with the lowest value."""
    seconds: float
    """Since this command began."""

    @property
    def num_finished(self) -> int:
        return self.num_complete + self.num_pruned


def snapshot(
    config: StudyConfig, search: Sequence[FrozenTrial], confirm: Sequence[FrozenTrial], seconds: float
) -> Snapshot:
    """The state of a study from the trials of its search and of its confirmation."""
    complete = [trial for trial in search if is_finished(trial) and trial.state is TrialState.COMPLETE]
    num_pruned = sum(is_finished(trial) and trial.state is TrialState.PRUNED for trial in search)
    is_searching = len(complete) + num_pruned < config.num_trials
    is_confirming = config.confirm.top > 0 and (not confirm or not all(trial.state.is_finished() for trial in confirm))
    return Snapshot(
        phase="search" if is_searching else "confirm" if is_confirming else "done",
        num_trials=config.num_trials,
        num_complete=len(complete),
        num_pruned=num_pruned,
        num_failed=sum(map(is_void, search)),
        num_confirm_runs=len(confirm),
        num_confirmed=sum(trial.state.is_finished() for trial in confirm),
        running=tuple(trial for trial in (*search, *confirm) if trial.state is TrialState.RUNNING),
        best=min(complete, key=lambda trial: trial.value or 0.0, default=None),
        seconds=seconds,
    )


def hopeless(trials: Sequence[FrozenTrial]) -> str | None:
    """Why going on makes no sense: nearly all trials fail. None while there is hope."""
    failures = [trial for trial in trials if is_void(trial) and trial.user_attrs.get(OUTCOME) in _FAILURES]
    if len(failures) < MIN_FAILURES or len(failures) <= FAILURES_PER_SUCCESS * sum(map(is_finished, trials)):
        return None
    last = failures[-1].user_attrs
    return f"{len(failures)} of {len(trials)} trials failed; the last one: {last[OUTCOME]}, {last.get(REASON, '?')}"


_FAILURES = ("diverged", "out_of_memory", "error", "lost")
