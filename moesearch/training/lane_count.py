"""How many trials to train side by side on a device: as many as fit and still gain, found by timing a step.

A step of few lanes waits for kernel launches, so more lanes are nearly free, until arithmetic or memory is short. Where
that is depends on the card and the model, so it is measured: 1, 2, 4, ... lanes until one says stop.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from moesearch.config.resolve import resolve
from moesearch.config.trial import BUDGET_UNITS, TrialConfig
from moesearch.data.tokens import TokenData
from moesearch.training.trainer import LaneTrainer

MIN_GAIN = 1.05
"""Twice the lanes must train this much faster: each lane more begins a trial before others can teach the sampler."""
MEMORY_SHARE = 0.6
"""Part of the free memory that the base may take: proposals may be larger, and a refill may build a second model."""
_REPEATS = 3


@dataclass(frozen=True)
class LaneTiming:
    """What a step of some lanes takes."""

    num_lanes: int
    step_seconds: float
    peak_bytes: int
    """Of the device's memory; 0 where it is not known."""


def choose_num_lanes(
    measure: Callable[[int], LaneTiming | None], *, free_bytes: float, max_lanes: int, min_gain: float = MIN_GAIN
) -> int:
    """The number of lanes, a power of two, up to which doubling them gains.

    Args:
        measure: times a step of so many lanes; None if they did not fit. It is asked for 1, 2, 4, ... lanes, and not
            again after the first answer that decides.
        free_bytes: memory that may be used; ``math.inf`` if it is no limit.
        max_lanes: never more than these.
        min_gain: least ratio of lane-steps per second for a doubling to be worth it.
    """
    best = measure(1)
    if best is None:
        return 1
    # Memory grows by at most as much as it is, so what is asked for will fit.
    while 2 * best.num_lanes <= max_lanes and 2 * best.peak_bytes <= MEMORY_SHARE * free_bytes:
        doubled = measure(2 * best.num_lanes)
        if doubled is None or doubled.peak_bytes > MEMORY_SHARE * free_bytes:
            break
        if 2 * best.step_seconds < min_gain * doubled.step_seconds:
            break
        best = doubled
    return best.num_lanes


def measured_num_lanes(config: TrialConfig, tokens: TokenData, device: str, *, max_lanes: int) -> int:
    """The number of lanes for trials like this one on a CUDA device; takes seconds."""
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return choose_num_lanes(
        lambda num_lanes: time_lanes(config, tokens, device, num_lanes), free_bytes=free_bytes, max_lanes=max_lanes
    )


def free_and_total_bytes(device: str) -> tuple[int, int]:
    """Memory of a CUDA device: what a new trial of this process could take, what torch keeps for reuse included."""
    free, total = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device), total


def time_lanes(
    config: TrialConfig, tokens: TokenData, device: str, num_lanes: int, *, num_steps: int = 32
) -> LaneTiming | None:
    """Time a step of so many lanes of one configuration, by the fastest of three runs of ``num_steps`` steps.

    None if the device has too little memory.
    """
    is_cuda = torch.device(device).type == "cuda"
    if is_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        seconds = _step_seconds(config, tokens, device, num_lanes, num_steps)
        peak_bytes = torch.cuda.max_memory_reserved(device) if is_cuda else 0
    except (MemoryError, torch.OutOfMemoryError):
        return None
    finally:
        gc.collect()  # A trainer's parts refer to one another, so its memory would wait for a later collection.
        if is_cuda:
            torch.cuda.empty_cache()
    return LaneTiming(num_lanes, seconds, peak_bytes)


def _step_seconds(config: TrialConfig, tokens: TokenData, device: str, num_lanes: int, num_steps: int) -> float:
    context = config.model.context
    # One window to evaluate, since the steps between evaluations are what is timed.
    trainer = LaneTrainer(replace(tokens, val=tokens.val[: context + 1]), num_lanes=num_lanes, device=device)
    budget = {
        "budget.steps": _REPEATS * num_steps,
        **{f"budget.{unit}": None for unit in BUDGET_UNITS if unit != "steps"},
    }
    timed = resolve(config, {**budget, "budget.milestones": _REPEATS, "optim.warmup_tokens": 0})
    for lane in range(num_lanes):
        trainer.load(lane, resolve(timed, {}, seed=lane))
    seconds = [0.0]
    for _ in range(_REPEATS):
        points = trainer.advance()
        # A lane is booked its share of a step.
        seconds.append(num_lanes * points[0][1].train_seconds)
    return min(after - before for before, after in pairwise(seconds)) / num_steps
