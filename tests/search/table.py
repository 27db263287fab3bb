"""A recorded table of which the truth is known."""

from __future__ import annotations

from typing import Any

from moesearch.config.resolve import derive_seed, resolve
from moesearch.config.space import feasible_points
from moesearch.config.study import StudyConfig
from moesearch.results.table import Curve, CurveTable
from tests.search.stand_ins import MILESTONES, study_config

SEED_NOISE = 0.002


def true_loss(params: dict[str, Any]) -> float:
    """E8 k1 without noise is the best, by far more than the seeds' noise."""
    return float(2 + 0.1 * params["moe.top_k"] - 0.02 * params["moe.num_experts"] + 0.05 * params["moe.noise"])


def toy_table(num_seeds: int = 3, **changes: Any) -> CurveTable:
    """The toy study's ten feasible points; seeds lie symmetrically around the truth."""
    config: StudyConfig = study_config(**changes)
    curves = []
    for params in feasible_points(config) or ():
        fingerprint = resolve(config.base, params).fingerprint()
        for replicate in range(num_seeds):
            final = true_loss(params) + SEED_NOISE * (replicate - (num_seeds - 1) / 2)
            losses = [round(final + MILESTONES - milestone, 6) for milestone in range(1, MILESTONES + 1)]
            points = tuple(_point(milestone, loss) for milestone, loss in enumerate(losses, start=1))
            seed = derive_seed(0, fingerprint, replicate)
            curves.append(Curve(params, fingerprint, replicate, seed, points))
    return CurveTable(config, tuple(curves), {"command": "made up"})


def _point(milestone: int, loss: float) -> dict[str, float]:
    return {
        "milestone": milestone,
        "step": 10 * milestone,
        "tokens": 100 * milestone,
        "active_flops": 1e6 * milestone,
        "train_loss": loss,
        "val_loss": loss,
        "val_bpb": round(loss / 2, 6),
        "train_seconds": float(milestone),
        "eval_seconds": milestone / 8,
    }
