"""What cannot change any more of a study's trials, counted once, so that a trial costs the same in a large study.

Looked at anew for every claim, 10,000 stored trials doubled what a short one takes. A trial that has ended never
changes, so it is counted when it is first seen so.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

from optuna.trial import FrozenTrial

from moesearch.results.records import FINGERPRINT, REPLICATE
from moesearch.results.standing import is_finished, is_void


class Ledger:
    """Counts over the settled trials of one study: those that have ended."""

    def __init__(self) -> None:
        self.num_finished = 0
        """Settled trials that are complete or pruned."""
        self._num_seen = 0
        self._open: list[int] = []
        """Numbers of the trials that had not ended when they were seen, rising."""
        self._taking: list[int] = []
        """Numbers of the settled trials that take a place of the budget, rising."""
        self._replicates: dict[str, int] = {}

    def open_trials(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Settle what can be of all trials of the study, in the order of their numbers, and return the others."""
        rest = []
        for number in (*self._open, *range(self._num_seen, len(trials))):
            trial = trials[number]
            if not trial.state.is_finished():
                rest.append(trial)
                continue
            self.num_finished += is_finished(trial)
            if not is_void(trial):
                insort(self._taking, number)
            self._note_replicate(self._replicates, trial)
        self._open, self._num_seen = [trial.number for trial in rest], len(trials)
        return rest

    def num_ahead(self, trials: Sequence[FrozenTrial], number: int) -> int:
        """Trials with a smaller number that take a place of the budget: all but those that are void."""
        num_open = sum(trial.number < number for trial in self.open_trials(trials))
        return bisect_left(self._taking, number) + num_open

    def next_replicate(self, trials: Sequence[FrozenTrial], fingerprint: str, number: int) -> int:
        """One more than any trial but ``number`` of this configuration has had."""
        replicates: dict[str, int] = {}
        for trial in self.open_trials(trials):
            if trial.number != number:
                self._note_replicate(replicates, trial)
        return 1 + max(self._replicates.get(fingerprint, -1), replicates.get(fingerprint, -1))

    @staticmethod
    def _note_replicate(replicates: dict[str, int], trial: FrozenTrial) -> None:
        if REPLICATE in trial.user_attrs:
            fingerprint = trial.user_attrs[FINGERPRINT]
            replicates[fingerprint] = max(replicates.get(fingerprint, -1), trial.user_attrs[REPLICATE])
