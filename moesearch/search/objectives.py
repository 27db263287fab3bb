"""What a trial is told when it ends well: its objectives, and whether it keeps the study's constraints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moesearch.config.quantities import ROUTER_QUANTITIES, SIZES, Constraint, Quantity
from moesearch.training.points import EvalPoint

Facts = Mapping[str, int | float]
"""Sizes of a trial, by name."""


def measured(quantity: Quantity, point: EvalPoint, facts: Facts) -> float | None:
    """A quantity at a milestone; None where the trial has none: a dense model has no router."""
    if quantity in SIZES:
        return float(facts[quantity])
    if quantity == "tokens_per_second":
        return point.tokens / point.train_seconds if point.train_seconds else None
    if quantity in ROUTER_QUANTITIES:
        return None if point.router_health is None else float(getattr(point.router_health, quantity))
    return float(getattr(point, quantity))


def objective_values(objectives: Sequence[Quantity], point: EvalPoint, facts: Facts) -> list[float] | None:
    """The study's objectives at a trial's last milestone; None if it does not have one of them."""
    values = [measured(objective, point, facts) for objective in objectives]
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else None


def size_violations(constraints: Sequence[Constraint], facts: Facts) -> dict[str, float]:
    """Violations, by the constraints' texts, that are known before any training."""
    return {c.text: c.violation(float(facts[c.quantity])) for c in constraints if c.quantity in SIZES}


def health_violations(constraints: Sequence[Constraint], point: EvalPoint) -> dict[str, float]:
    """Violations of router health at a milestone; a trial without a router violates none."""
    health = [constraint for constraint in constraints if constraint.quantity in ROUTER_QUANTITIES]
    return violations(health, point, {})


def broken_constraints(found: Mapping[str, float]) -> str:
    """The constraints that are violated and by how much, in words; empty if none is."""
    return "; ".join(f"{text} is violated by {beyond:.4g}" for text, beyond in found.items() if beyond > 0)


def violations(constraints: Sequence[Constraint], point: EvalPoint, facts: Facts) -> dict[str, float]:
    """By how much each constraint is violated, by its text; 0 or less where it is kept."""
    values = {constraint: measured(constraint.quantity, point, facts) for constraint in constraints}
    return {c.text: 0.0 if value is None else c.violation(value) for c, value in values.items()}
