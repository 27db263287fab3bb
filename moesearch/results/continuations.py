"""A trial that was stopped and promoted has several records in the store; here they become one again."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from moesearch.results.records import CONFIG, CONTINUES, FINGERPRINT, FINISHED_OUTCOMES, OUTCOME, REPLICATE

Key = tuple[str, int]
"""Fingerprint and replicate: names a trial through all its records."""


def key_of(trial: FrozenTrial) -> Key | None:
    """What all records of one trial share; None before it has a configuration."""
    if REPLICATE not in trial.user_attrs:
        return None
    return trial.user_attrs[FINGERPRINT], trial.user_attrs[REPLICATE]


def is_finished(trial: FrozenTrial) -> bool:
    """Whether the trial is done: trained to its end, or stopped by the pruner or a constraint of the study file."""
    if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
        return False
    return trial.user_attrs.get(OUTCOME, "complete") in FINISHED_OUTCOMES


def is_void(trial: FrozenTrial) -> bool:
    """Whether the trial has ended in a way that does not count: failed, infeasible, diverged, out of memory."""
    return trial.state.is_finished() and not is_finished(trial)


def is_continuation(trial: FrozenTrial) -> bool:
    """Whether the record goes on with a trial that was stopped before, which counts already."""
    return CONTINUES in trial.system_attrs


def counts(trial: FrozenTrial) -> bool:
    """Whether the record counts against the budget as a finished trial; a continued one counts by its first record."""
    return is_finished(trial) and not is_continuation(trial)


def first_value(trial: FrozenTrial) -> float | None:
    """The leading objective of a trial that is complete and violates no constraint; None for others."""
    is_candidate = trial.state is TrialState.COMPLETE and trial.user_attrs.get(OUTCOME, "complete") == "complete"
    return trial.values[0] if is_candidate and trial.values else None


def promoted_at(trial: FrozenTrial) -> int:
    """The rung that a continued trial was promoted from, as a milestone; 0 if it was never stopped."""
    return int(trial.system_attrs[CONTINUES]["milestone"]) if is_continuation(trial) else 0


def latest_records(trials: Sequence[FrozenTrial]) -> dict[Key, FrozenTrial]:
    """The last record of each trial, which says where it stands."""
    return {key: trial for trial in trials if (key := key_of(trial)) is not None}


def one_record_each(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials without the records that another one goes on with.

    Where the continuation failed, what came before it stands: the trial was stopped at its rung.
    """
    continued = {
        trial.system_attrs[CONTINUES]["number"] for trial in trials if is_continuation(trial) and not is_void(trial)
    }
    return [trial for trial in trials if trial.number not in continued] if continued else list(trials)


def milestones_of(trial: FrozenTrial, usual: int) -> int:
    """At how many milestones the trial is evaluated: a confirmation run at fewer than the search's."""
    resolved = trial.system_attrs.get(CONFIG)
    return usual if resolved is None else int(resolved["budget"]["milestones"])
