"""Workers that die on a trial: how often that may happen, and how it is known that memory was why."""

from __future__ import annotations

import time
from typing import Any

from optuna.trial import FrozenTrial

from moesearch.results.records import ATTEMPT, DEATHS
from moesearch.search.faults import num_oom_kills

MAX_DEATHS = 5
"""Workers that may die on a trial, without a new milestone in between, before it is given up."""
MAX_MEMORY_DEATHS = 2
"""Those of them that the kernel may kill for memory: the second one trained the trial alone."""


def new_attempt() -> dict[str, float]:
    """When a worker takes a trial up, and what a look at its end will be compared with."""
    return {"began": time.time(), "oom_kills": num_oom_kills()}


def deaths_with_this_one(trial: FrozenTrial) -> dict[str, Any]:
    """How often a worker died on this trial since its last milestone, and how often of that for memory."""
    before = trial.system_attrs.get(DEATHS, {})
    if before.get("milestone") != trial.last_step:
        before = {}
    # The kernel does not say whom it killed. One that it killed since this trial began, and a dead worker: that one.
    attempt = trial.system_attrs.get(ATTEMPT)
    is_for_memory = attempt is not None and num_oom_kills() > attempt["oom_kills"]
    return {
        "milestone": trial.last_step,
        "count": before.get("count", 0) + 1,
        "memory": before.get("memory", 0) + is_for_memory,
    }


def was_killed_for_memory(trial: FrozenTrial) -> bool:
    """Whether the kernel killed a worker of this trial for memory since its last milestone."""
    deaths = trial.system_attrs.get(DEATHS, {})
    return bool(deaths.get("memory")) and deaths["milestone"] == trial.last_step
