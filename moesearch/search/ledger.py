"""What cannot change any more of a study's trials, counted once, so that a trial costs the same in a large study.

Looked at anew for every claim, 10,000 stored trials doubled what a short one takes. A trial that has ended never
changes, so the first trials, as far as all of them have ended, are counted when they are first seen so.
"""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial

from moesearch.results.continuations import is_continuation, is_finished, is_void
from moesearch.results.records import FINGERPRINT, REPLICATE


class Ledger:
    """Counts over the settled trials of one study: its first ones, as far as all have ended."""

    def __init__(self) -> None:
        self.num_settled = 0
        self.num_finished = 0
        """Settled trials that are complete or pruned."""
        self._num_taken = 0
        self._replicates: dict[str, int] = {}

    def open_trials(self, trials: Sequence[FrozenTrial]) -> Sequence[FrozenTrial]:
        """Settle what can be of all trials of the study, in the order of their numbers, and return the others."""
        while self.num_settled < len(trials) and trials[self.num_settled].state.is_finished():
            trial = trials[self.num_settled]
            self.num_finished += is_finished(trial)
            self._num_taken += takes_room(trial)
            self._note_replicate(self._replicates, trial)
            self.num_settled += 1
        return trials[self.num_settled :]

    def num_ahead(self, trials: Sequence[FrozenTrial], number: int) -> int:
        """Trials with a smaller number that take a place of the budget."""
        rest = self.open_trials(trials)
        if number < self.num_settled:
            return sum(map(takes_room, trials[:number]))
        return self._num_taken + sum(takes_room(trial) for trial in rest if trial.number < number)

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


def takes_room(trial: FrozenTrial) -> bool:
    """Whether a trial takes a place of the budget: it is not void, and not the going on of one that does."""
    return not is_void(trial) and not is_continuation(trial)
