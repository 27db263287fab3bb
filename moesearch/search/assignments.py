"""What a claimed trial becomes before it trains, and what it is told when it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

import optuna
from optuna.trial import FrozenTrial, TrialState

from moesearch.config.resolve import derive_seed, resolve
from moesearch.config.secrets import hide_secrets
from moesearch.config.study import StudyConfig
from moesearch.config.trial import TrialConfig
from moesearch.errors import InfeasibleError, InputError, LostTrialError
from moesearch.results.records import (
    CONFIG,
    COST,
    FINGERPRINT,
    MILESTONE_PREFIX,
    OUTCOME,
    REASON,
    REPLICATE,
    SEED,
    Outcome,
)
from moesearch.search.claims import Claims, fenced, set_constraints
from moesearch.search.deaths import was_killed_for_memory
from moesearch.search.families import Family
from moesearch.search.suggest import suggest
from moesearch.training.points import EvalPoint

MAX_INFEASIBLE = 20
"""Proposals in a row that may break a rule, each one after many draws, before the space is taken to be empty."""


@dataclass(frozen=True)
class Assignment:
    """A trial that this worker has, and all it takes to train it, or to go on where another worker stopped."""

    trial: optuna.Trial
    config: TrialConfig
    fingerprint: str
    replicate: int
    last_point: EvalPoint | None
    """The last milestone that was reported by an earlier worker."""
    must_be_alone: bool = False
    """Whether an earlier worker was killed for memory, so that the trial may have no company in its next one."""

    @property
    def checkpoint_key(self) -> str:
        return checkpoint_key(self.fingerprint, self.replicate)

    @property
    def last_milestone(self) -> int:
        return 0 if self.last_point is None else self.last_point.milestone


def checkpoint_key(fingerprint: str, replicate: int) -> str:
    """Names the checkpoints of a trial through all its records."""
    return f"{fingerprint}-{replicate}"


def next_assignment(claims: Claims, config: StudyConfig, family: Family | None = None) -> Assignment | None:
    """Claim a trial and settle its configuration; None if there is nothing to claim now.

    Both happen under the store's lock, so that no two workers of a host are given one point, or one seed of it.
    A family is asked for, and can be missed: by the sampler, if nothing of it is left to try.

    Raises:
        InputError: the sampler finds no configuration that breaks no rule.
    """
    reasons: tuple[str, ...] = ()
    for _ in range(MAX_INFEASIBLE):
        with claims.lock:
            trial = claims.claim(family)
            if trial is None:
                return None
            try:
                return _assign(claims, trial, config)
            except InfeasibleError as error:
                reasons = error.reasons
                finish(claims.study, trial, "infeasible", reason=str(error))
    raise InputError(
        f"study {config.name}: {MAX_INFEASIBLE} proposals in a row broke a rule; the last one: {'; '.join(reasons)}. "
        "Narrow `search` to values that go together"
    )


def _assign(claims: Claims, trial: optuna.Trial, config: StudyConfig) -> Assignment:
    frozen = claims.storage.get_trial(trial._trial_id)
    flops = claims.limits.flops
    if CONFIG in frozen.system_attrs:  # planned for confirmation, or begun by an earlier worker
        begun = TrialConfig.model_validate(frozen.system_attrs[CONFIG])
        if flops is not None and COST not in frozen.system_attrs:
            with fenced(trial):
                claims.storage.set_trial_system_attr(trial._trial_id, COST, flops.flops_of(begun))
        return Assignment(
            trial,
            begun,
            frozen.user_attrs[FINGERPRINT],
            frozen.user_attrs[REPLICATE],
            last_point(frozen),
            must_be_alone=was_killed_for_memory(frozen),
        )
    with fenced(trial):
        params = suggest(trial, config.search)
        fingerprint = resolve(config.base, params).fingerprint()
        # Never shared with another trial, so that seeds and checkpoints are not.
        replicate = claims.ledger.next_replicate(claims.study.get_trials(deepcopy=False), fingerprint, trial.number)
        seed = derive_seed(config.sampler.seed, fingerprint, replicate)
        resolved = resolve(config.base, params, seed=seed)
        trial.set_user_attr(FINGERPRINT, fingerprint)
        trial.set_user_attr(REPLICATE, replicate)
        trial.set_user_attr(SEED, seed)
        if flops is not None:
            claims.storage.set_trial_system_attr(trial._trial_id, COST, flops.flops_of(resolved))
        # Last, since its presence says that the rest is there.
        claims.storage.set_trial_system_attr(trial._trial_id, CONFIG, resolved.model_dump(mode="json"))
    return Assignment(trial, resolved, fingerprint, replicate, None)


def last_point(trial: FrozenTrial) -> EvalPoint | None:
    """The last milestone that the trial reported, from its record."""
    return None if trial.last_step is None else reported_point(trial, trial.last_step)


def reported_point(trial: FrozenTrial, milestone: int) -> EvalPoint:
    """A milestone that the trial reported, from its record."""
    return EvalPoint.from_record(trial.system_attrs[f"{MILESTONE_PREFIX}{milestone:04d}"])


def finish(
    study: optuna.Study,
    trial: optuna.Trial,
    outcome: Outcome,
    *,
    values: Sequence[float] | None = None,
    violations: Mapping[str, float] | None = None,
    reason: str | None = None,
) -> TrialState:
    """Tell Optuna the truth about a trial that ended, and under which name; returns its state.

    Raises:
        LostTrialError: another worker has it now.
    """
    with fenced(trial):
        trial.set_user_attr(OUTCOME, outcome)
        if reason is not None:
            trial.set_user_attr(REASON, hide_secrets(reason)[:500])
        match outcome:
            case "complete":
                state = TrialState.COMPLETE
            case "pruned":
                state = TrialState.PRUNED
            case "violated":  # its constraints are told apart, as the study file names them
                state = TrialState.PRUNED if values is None else TrialState.COMPLETE
            case "infeasible" | "diverged" | "collapsed" | "out_of_memory" | "timed_out":
                # A violated constraint keeps samplers away from the region; a FAIL would be invisible to them.
                state = TrialState.PRUNED
                violations = {"feasible": 1.0}
            case "error" | "lost":
                state = TrialState.FAIL
            case _:
                assert_never(outcome)
        try:
            set_constraints(trial, violations or {})
            study.tell(trial, values, state)
        except ValueError as error:
            raise LostTrialError(f"trial {trial.number} was ended by another worker: {error}") from None
    return state
