"""How long a trial trains, and when and on how much of the validation split it is evaluated on the way."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, model_validator

from moesearch.config.section import LANE, WHOLE, Section

BUDGET_UNITS = ("steps", "tokens", "active_flops", "seconds")


class BudgetConfig(Section):
    """How long a trial trains: exactly one of steps, tokens, active_flops, seconds; milestones are equal fractions of
    it.
    """

    steps: Annotated[Annotated[int, Field(ge=1, le=10**9), WHOLE] | None, LANE] = None
    """Optimiser steps; 5000 where no budget is given."""
    tokens: Annotated[Annotated[int, Field(ge=1, le=10**15), WHOLE] | None, LANE] = None
    """Training tokens, rounded up to whole steps."""
    active_flops: Annotated[Annotated[float, Field(gt=0, le=1e30)] | None, LANE] = None
    """Training FLOPs of the active parameters (forward and backward), rounded up to whole steps."""
    seconds: Annotated[Annotated[float, Field(gt=0, le=1e8)] | None, LANE] = None
    """Seconds of training, evaluation apart; lanes that train side by side share the time. At equal seconds a slower
    model trains on fewer tokens, and no two runs have the same number of steps."""
    milestones: Annotated[int, Field(ge=1, le=10_000), WHOLE, LANE] = 10
    """Number of evaluations on the validation split, at equal fractions of the budget, the last one at the end. At most
    one a step."""
    milestone_share: Annotated[float, Field(gt=0, le=1), LANE] = 1.0
    """Share of the validation split on which the milestones before the last are evaluated: the same windows each time,
    evenly spread, one at least. They serve pruning and curves. The last milestone, which is the objective, is evaluated
    on the whole split, and so is every milestone of ``train --patience``, since any of them may be the result."""

    @model_validator(mode="before")
    @classmethod
    def _default_is_the_article_run(cls, values: object) -> object:
        if isinstance(values, dict) and all(values.get(unit) is None for unit in BUDGET_UNITS):
            return {**values, "steps": 5000}
        return values

    @property
    def unit(self) -> str:
        """The unit that the budget is given in, one of BUDGET_UNITS."""
        return next(unit for unit in BUDGET_UNITS if getattr(self, unit) is not None)

    def share_at(self, milestone: int) -> float:
        """Share of the validation split on which a milestone (1 .. milestones) is evaluated."""
        return 1.0 if milestone == self.milestones else self.milestone_share

    def passes_until(self, milestone: int) -> float:
        """Evaluations of the whole split that those up to a milestone amount to."""
        return math.fsum(self.share_at(done) for done in range(1, milestone + 1))

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        given = [unit for unit in BUDGET_UNITS if getattr(self, unit) is not None]
        if len(given) != 1:
            yield "", f"give exactly one of {', '.join(BUDGET_UNITS)} (given: {', '.join(given)})"
        if self.steps is not None and self.steps < self.milestones:
            yield "", f"milestones ({self.milestones}) must be at most steps ({self.steps})"
