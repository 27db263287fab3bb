"""How a trial ends at a milestone: by whichever of the study's rules applies first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moesearch.results.records import Outcome
from moesearch.search.assignments import Assignment, reported_point
from moesearch.search.job import Job
from moesearch.search.limits import collapse_reason
from moesearch.search.objectives import Facts, broken_constraints, health_violations, objective_values, violations
from moesearch.search.pruning import should_prune
from moesearch.training.points import EvalPoint


@dataclass(frozen=True)
class Ending:
    """What a trial is told at its end."""

    outcome: Outcome
    reason: str | None = None
    values: Sequence[float] | None = None
    """Of the study's objectives; for a trial that came to its last milestone."""
    violations: Mapping[str, float] | None = None
    """By how much it violates constraints, by their texts."""


def ending_at(job: Job, assignment: Assignment, facts: Facts, point: EvalPoint) -> Ending | None:
    """How a trial ends at a milestone that was reported; None if it trains on."""
    constraints = job.config.parsed_constraints
    if point.is_last:
        return _last_ending(job, facts, point)
    # Runs that are planned, not proposed, are there to be compared, whatever their routers do.
    if job.claims.num_trials is not None and (collapse := collapse_reason(job.config.pruner, point)):
        return Ending("collapsed", collapse)
    if _is_sick_for_long(job, assignment, point):
        found = health_violations(constraints, point)
        return Ending("violated", broken_constraints(found), violations=found)
    return Ending("pruned") if should_prune(assignment.trial) else None


def _last_ending(job: Job, facts: Facts, point: EvalPoint) -> Ending:
    found = violations(job.config.parsed_constraints, point, facts)
    values = objective_values(job.config.all_objectives, point, facts)
    reason = broken_constraints(found) if values else "an objective cannot be measured: the trial has no router"
    return Ending("violated" if reason else "complete", reason or None, values, found)


def _is_sick_for_long(job: Job, assignment: Assignment, point: EvalPoint) -> bool:
    """Whether router health violates a constraint now and did so a milestone before."""
    constraints = job.config.parsed_constraints
    if not broken_constraints(health_violations(constraints, point)) or point.milestone == 1:
        return False
    before = reported_point(job.claims.storage.get_trial(assignment.trial._trial_id), point.milestone - 1)
    return bool(broken_constraints(health_violations(constraints, before)))
