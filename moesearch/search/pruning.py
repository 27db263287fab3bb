"""Who stops a trial early.

Pruners see ``val_loss`` by milestone, so trials are compared at equal parts of their budget.
"""

from __future__ import annotations

from typing import assert_never

from optuna.pruners import BasePruner, MedianPruner, NopPruner

from moesearch.config.study import PrunerConfig


def make_pruner(config: PrunerConfig) -> BasePruner:
    """The pruner that a study asks for."""
    match config.type:
        case "median":
            # Optuna lets a step be judged from n_warmup_steps on, and milestones are counted from 1: with 2 milestones
            # of warm-up, the third is the first to be judged.
            return MedianPruner(n_startup_trials=config.warmup_trials, n_warmup_steps=config.warmup_milestones + 1)
        case "none":
            return NopPruner()
        case _:
            assert_never(config.type)
