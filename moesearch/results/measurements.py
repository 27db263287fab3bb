"""What of an exported configuration was measured, and beside what: for a rerun elsewhere to be compared with."""

from __future__ import annotations

from typing import Any

from optuna.trial import FrozenTrial

from moesearch.config.trial import TrialConfig
from moesearch.results import records
from moesearch.results.frames import as_utc, last_point
from moesearch.results.study import StudyResults


def measured(results: StudyResults, trial: FrozenTrial | None) -> dict[str, Any]:
    """Speed and memory of a trial, with the device; memory is the largest of its worker, other lanes included."""
    session = results.sessions[-1] if results.sessions else None
    where = {"device": session.device, "workers": session.workers} if session is not None else {}
    if trial is None:
        return dict(where)
    point = last_point(trial)
    seconds, tokens = point.get("train_seconds"), point.get("tokens")
    started = as_utc(trial.datetime_start)
    return {
        **where,
        "trained": None if started is None else f"{started:%Y-%m-%d}",
        "tokens": tokens,
        "training_flops": None if point.get("active_flops") is None else round(point["active_flops"]),
        "train_seconds": seconds,
        "tokens_per_second": round(tokens / seconds) if tokens and seconds else None,
        "peak_memory_bytes": trial.user_attrs.get(records.PEAK_MEMORY_BYTES),
    }


def dense_control(results: StudyResults) -> dict[str, Any] | None:
    """The dense model of equal active FLOPs, where the study trained one beside its leaders."""
    verdict = results.verdict
    for candidate in verdict.ranking:
        if candidate.is_control and verdict.best is not None:
            return {
                f"mean_{results.config.objective}": candidate.mean,
                "interval": [candidate.low, candidate.high],
                "num_seeds": candidate.num_seeds,
                "behind_the_best_by": candidate.mean - verdict.best.mean,
            }
    return None


def schedule(config: TrialConfig, trial: FrozenTrial | None) -> dict[str, Any]:
    """Learning rate over the run, in fractions of its tokens, which is what carries over to a longer one."""
    optim = config.optim
    point = {} if trial is None else last_point(trial)
    # The tokens of the whole budget: of a trial that was pruned, what it would have read.
    step, milestone = point.get("tokens"), point.get("milestone")
    tokens = None if not step or not milestone else step * point["num_milestones"] / milestone
    return {
        "form": optim.schedule,
        "warmup_fraction": None if tokens is None else round(optim.warmup_tokens / tokens, 6),
        "decay_fraction": {"constant": 0.0, "cosine": 1.0, "wsd": optim.decay_fraction}[optim.schedule],
        "final_lr_fraction": 1.0 if optim.schedule == "constant" else optim.final_lr_fraction,
        "lr_and_init_chosen_at_width": optim.mup_base_width or config.model.width,
    }
