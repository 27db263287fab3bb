"""Where a trial stands, from its record: whether it counts, and whether it has stopped at a rung.

A trial that successive halving stops waits in the store until it is promoted, or can never be. In the state WAITING
alone it looks as if it had not begun; whoever reads a study looks here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from datetime import datetime

from optuna.trial import FrozenTrial, TrialState

from moesearch.results.records import (
    CONFIG,
    FINGERPRINT,
    FINISHED_OUTCOMES,
    OUTCOME,
    REPLICATE,
    STOPPED_AT,
    STOPPED_TIME,
)

Key = tuple[str, int]
"""Fingerprint and replicate: names a trial, and the copy of it that is queued when its worker fell silent."""


def key_of(trial: FrozenTrial) -> Key | None:
    """What a trial and its copies share; None before it has a configuration."""
    if REPLICATE not in trial.user_attrs:
        return None
    return trial.user_attrs[FINGERPRINT], trial.user_attrs[REPLICATE]


def is_stopped(trial: FrozenTrial) -> bool:
    """Whether the trial was stopped at a rung, and may be promoted yet."""
    return trial.state is TrialState.WAITING and _has_stopped_where_it_is(trial)


def is_finished(trial: FrozenTrial) -> bool:
    """Whether the trial is done: trained to its end, or stopped by the pruner or a constraint of the study file."""
    if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
        return is_stopped(trial)
    return trial.user_attrs.get(OUTCOME, "complete") in FINISHED_OUTCOMES


def is_void(trial: FrozenTrial) -> bool:
    """Whether the trial has ended in a way that does not count: failed, infeasible, diverged, out of memory."""
    return trial.state.is_finished() and not is_finished(trial)


def first_value(trial: FrozenTrial) -> float | None:
    """The leading objective of a trial that is complete and violates no constraint; None for others."""
    is_candidate = trial.state is TrialState.COMPLETE and trial.user_attrs.get(OUTCOME, "complete") == "complete"
    return trial.values[0] if is_candidate and trial.values else None


def latest_records(trials: Sequence[FrozenTrial]) -> dict[Key, FrozenTrial]:
    """The last record of each trial, which says where it stands."""
    return {key: trial for trial in trials if (key := key_of(trial)) is not None}


def milestones_of(trial: FrozenTrial, usual: int) -> int:
    """At how many milestones the trial is evaluated: a confirmation run at fewer than the search's."""
    resolved = trial.system_attrs.get(CONFIG)
    return usual if resolved is None else int(resolved["budget"]["milestones"])


def as_they_stand(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials, those that stopped at a rung being pruned since then, whether they were told so yet or only later."""
    return [_as_pruned(trial) if _is_pruned_at_a_rung(trial) else trial for trial in trials]


def _has_stopped_where_it_is(trial: FrozenTrial) -> bool:
    return STOPPED_AT in trial.system_attrs and trial.system_attrs[STOPPED_AT] == trial.last_step


def _is_pruned_at_a_rung(trial: FrozenTrial) -> bool:
    was_told = trial.state is TrialState.PRUNED and trial.user_attrs.get(OUTCOME) == "pruned"
    return is_stopped(trial) or (was_told and _has_stopped_where_it_is(trial))


def _as_pruned(trial: FrozenTrial) -> FrozenTrial:
    shown = copy.copy(trial)
    shown.state = TrialState.PRUNED
    shown.user_attrs = {**trial.user_attrs, OUTCOME: "pruned"}
    shown.datetime_complete = datetime.fromtimestamp(trial.system_attrs[STOPPED_TIME])
    return shown
