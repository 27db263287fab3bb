"""Where a study stands, from its trials alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from optuna.trial import FrozenTrial, TrialState

from moesearch.config.study import StudyConfig
from moesearch.results.records import FAILURES, OUTCOME, REASON
from moesearch.results.standing import first_value, is_finished, is_void

MIN_FAILURES = 10
"""Failures before a study can be called hopeless."""
FAILURES_PER_SUCCESS = 3

_FAILURES = tuple(failure for failure in FAILURES if failure != "infeasible")


@dataclass(frozen=True)
class Progress:
    """What a person wants to know while a study runs. Surplus trials, which may wait for ever, are in no count."""

    config: StudyConfig
    search: tuple[FrozenTrial, ...]
    confirm: tuple[FrozenTrial, ...]
    seconds: float
    """Since this command began."""
    lacks_room: bool = False
    """Whether training waits for a full disk to have room."""

    @property
    def phase(self) -> Literal["search", "confirm", "report"]:
        # The confirmation is planned once the search is over, by whatever limit or rule.
        if self.num_finished < self.config.num_trials and not self.confirm:
            return "search"
        is_confirmed = bool(self.confirm) and self.num_confirmed == len(self.confirm)
        return "report" if is_confirmed or self.config.confirm.top == 0 else "confirm"

    @cached_property
    def complete(self) -> list[FrozenTrial]:
        """The complete trials of the search that violate no constraint, best first by the leading objective."""
        trials = [trial for trial in self.search if first_value(trial) is not None]
        return sorted(trials, key=lambda trial: first_value(trial) or 0.0)

    @property
    def num_pruned(self) -> int:
        """Those that may be promoted yet included."""
        return self.num_finished - sum(trial.state is TrialState.COMPLETE for trial in self.search)

    @property
    def num_finished(self) -> int:
        """Trials that count against the budget."""
        return sum(map(is_finished, self.search))

    @property
    def num_infeasible(self) -> int:
        return sum(trial.user_attrs.get(OUTCOME) == "infeasible" for trial in self.search)

    @property
    def num_failed(self) -> int:
        return sum(is_void(trial) for trial in self.search) - self.num_infeasible

    @property
    def num_confirmed(self) -> int:
        return sum(trial.state.is_finished() for trial in self.confirm)

    @property
    def running(self) -> list[FrozenTrial]:
        return [trial for trial in (*self.search, *self.confirm) if trial.state is TrialState.RUNNING]


def hopeless(trials: Sequence[FrozenTrial]) -> str | None:
    """Why going on makes no sense: nearly all trials fail. None while there is hope."""
    failures = [trial for trial in trials if trial.user_attrs.get(OUTCOME) in _FAILURES and is_void(trial)]
    if len(failures) < MIN_FAILURES or len(failures) <= FAILURES_PER_SUCCESS * sum(map(is_finished, trials)):
        return None
    last = failures[-1].user_attrs
    return f"{len(failures)} of {len(trials)} trials failed; the last one: {last[OUTCOME]}, {last.get(REASON, '?')}"
