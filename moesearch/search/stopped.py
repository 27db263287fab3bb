"""The end of trials that were stopped at a rung and wait to be promoted: they are told so once they never can be.

Whoever notices does it, under the store's lock. A trial's checkpoint goes first: whoever is killed in between leaves a
trial that is still stopped, so that the next one to look does both.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from moesearch.results.records import OUTCOME
from moesearch.results.standing import is_stopped, key_of
from moesearch.search.assignments import checkpoint_key
from moesearch.search.claims import Claims
from moesearch.search.pruning import halving_in


class Deletable(Protocol):
    """Checkpoints, as far as they are looked into here."""

    def delete(self, key: str) -> None: ...


def end_hopeless(claims: Claims, checkpoints: Deletable, rung: int) -> None:
    """End the trials that were stopped at a rung, and that too many better ones have passed there since."""
    halving = halving_in(claims.study)
    if halving is None or rung not in halving.rungs or not halving.without_hope(_trials(claims), rung):
        return
    with claims.lock:
        _end(claims, checkpoints, halving.without_hope(_trials(claims), rung))


def end_all_stopped(claims: Claims, checkpoints: Deletable) -> None:
    """End all trials that are stopped; to be called once the search is over, by whatever limit or rule."""
    if any(map(is_stopped, _trials(claims))):
        with claims.lock:
            _end(claims, checkpoints, _trials(claims))


def _trials(claims: Claims) -> Sequence[FrozenTrial]:
    return claims.study.get_trials(deepcopy=False)


def _end(claims: Claims, checkpoints: Deletable, trials: Sequence[FrozenTrial]) -> None:
    for trial in filter(is_stopped, trials):
        key = key_of(trial)
        assert key is not None, "a trial that was trained has a configuration"
        checkpoints.delete(checkpoint_key(*key))
        # What `Study.tell` does, which refuses a trial that does not run.
        values = [trial.intermediate_values[trial.last_step or 0]] if len(claims.study.directions) == 1 else None
        with suppress(UpdateFinishedTrialError):  # a worker of another host was faster
            claims.storage.set_trial_user_attr(trial._trial_id, OUTCOME, "pruned")
            claims.storage.set_trial_state_values(trial._trial_id, TrialState.PRUNED, values)
