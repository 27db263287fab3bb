"""Where a study stands, from its trials alone."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial

from moesearch.results.records import OUTCOME
from moesearch.search.claims import is_finished, is_void

MIN_FAILURES = 10
"""Failures before a study can be called hopeless."""
FAILURES_PER_SUCCESS = 3


def hopeless(trials: Sequence[FrozenTrial]) -> str | None:
    """Why going on makes no sense: nearly all trials fail. None while there is hope."""
    failures = [trial for trial in trials if is_void(trial) and trial.user_attrs.get(OUTCOME) in _FAILURES]
    if len(failures) < MIN_FAILURES or len(failures) <= FAILURES_PER_SUCCESS * sum(map(is_finished, trials)):
        return None
    last = failures[-1].user_attrs
    return f"{len(failures)} of {len(trials)} trials failed; the last one: {last[OUTCOME]}, {last.get('reason', '')}"


_FAILURES = ("diverged", "out_of_memory", "error", "lost")
