"""What a study file forbids its trials: to take too long, and to let their routers collapse."""

from __future__ import annotations

from moesearch.config.study import PrunerConfig, RunConfig
from moesearch.training.points import EvalPoint


def time_out_reason(run: RunConfig) -> str:
    """What is said of a trial that is over its time."""
    return f"it took longer than run.max_trial_seconds ({run.max_trial_seconds:g})"


def collapse_reason(pruner: PrunerConfig, point: EvalPoint) -> str | None:
    """Why the routers of a trial are taken to have collapsed at a milestone; None if they have not.

    The measure is the entropy of the load over log E, of the layer where it is least (see ``RouterHealth``).
    """
    least, health = pruner.min_load_entropy, point.router_health
    if least is None or health is None or health.load_entropy >= least:
        return None
    return f"load entropy {health.load_entropy:.3f} in a layer at step {point.step}, below {least:g}"
