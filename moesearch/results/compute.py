"""Where the compute went: trained to the end, pruned, lost; and what pruning saved."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from moesearch.results.records import FAILURES
from moesearch.results.study import StudyResults


@dataclass(frozen=True)
class Spending:
    """What a group of trials cost. FLOPs are training FLOPs; seconds are summed over trials, not wall time."""

    group: str
    num_trials: int
    active_flops: float
    train_seconds: float
    eval_seconds: float


@dataclass(frozen=True)
class Compute:
    """A study's spending by group, and what pruning saved against training every pruned trial to its end."""

    spendings: tuple[Spending, ...]
    saved_flops: float
    saved_seconds: float

    @property
    def active_flops(self) -> float:
        return sum(spending.active_flops for spending in self.spendings)

    @property
    def seconds(self) -> float:
        return sum(spending.train_seconds + spending.eval_seconds for spending in self.spendings)

    @property
    def saved_fraction(self) -> float:
        """Of the training FLOPs that the study would have cost without pruning, 0 to 1."""
        without_pruning = self.active_flops + self.saved_flops
        return self.saved_flops / without_pruning if without_pruning else 0.0


# A lost trial's work lives on in the trial that continued it, so it is not counted twice.
_GROUPS = {
    "trained to the end": ("complete",),
    "pruned": ("pruned",),
    "diverged or failed": tuple(failure for failure in FAILURES if failure not in ("infeasible", "lost")),
    "running": ("running",),
}


def compute_spent(results: StudyResults) -> Compute:
    """The spending of a study, search and confirmation; groups without trials are left out."""
    trials, confirm = results.trials, results.confirm
    spendings = [_spending(group, trials[trials["outcome"].isin(outcomes)]) for group, outcomes in _GROUPS.items()]
    spendings.append(_spending("learning rates", results.rates[results.rates["step"].notna()]))
    spendings.append(_spending("confirmation", confirm[confirm["step"].notna()]))
    pruned = trials[(trials["outcome"] == "pruned") & (trials["milestone"] > 0)]
    # Milestones are equal fractions of a trial's budget, so what is left costs what came before, pro rata.
    unspent = pruned["num_milestones"] / pruned["milestone"] - 1
    budget = results.config.base.budget
    passes = pruned["milestone"].map(lambda milestone: budget.passes_until(int(milestone)))
    unevaluated = budget.passes_until(budget.milestones) / passes - 1
    seconds = pruned["train_seconds"].fillna(0) * unspent + pruned["eval_seconds"].fillna(0) * unevaluated
    return Compute(
        tuple(spending for spending in spendings if spending.num_trials),
        saved_flops=float((pruned["active_flops"] * unspent).sum()),
        saved_seconds=float(seconds.sum()),
    )


def _spending(group: str, trials: pd.DataFrame) -> Spending:
    return Spending(
        group,
        num_trials=len(trials),
        active_flops=float(trials["active_flops"].sum()),
        train_seconds=float(trials["train_seconds"].sum()),
        eval_seconds=float(trials["eval_seconds"].sum()),
    )
