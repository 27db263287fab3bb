"""What a worker is given to work off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from moesearch.config.study import StudyConfig
from moesearch.config.trial import TrialConfig
from moesearch.search.claims import Claims
from moesearch.search.headroom import MemoryCheck
from moesearch.search.view import RunView


@dataclass(frozen=True)
class Job:
    """What a worker works off: the trials of a search, or those of its confirmation."""

    config: StudyConfig
    claims: Claims
    view: RunView
    facts: Callable[[TrialConfig], Mapping[str, int | float]]
    """User attributes of a trial that follow from its configuration: parameters, FLOPs."""
    keeps_checkpoints: bool = False
    """Whether the trained models outlive their trials, for the test split."""
    queue_more: Callable[[], bool] | None = None
    """Queues the runs that have become due, and says whether there were any; None where the sampler proposes."""
    peak_memory_bytes: Callable[[], int | None] | None = None
    """The largest memory of this worker so far; None where nothing is measured."""
    checkpoint_share: float = 0.02
    """Part of the time that may go to writing checkpoints; those at the end of a trial come on top."""
    memory: MemoryCheck | None = None
    """Looks whether a trial will fit; None lets each one try."""
