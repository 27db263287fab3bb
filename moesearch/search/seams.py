"""What the worker loop needs of others, so that a recorded table can stand in for training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from moesearch.config.trial import TrialConfig
from moesearch.training.points import EvalPoint


class HasPoints(Protocol):
    """A checkpoint, as far as the loop looks into it."""

    @property
    def points(self) -> tuple[EvalPoint, ...]:
        """All evaluations so far; the last one with its losses per block."""


Checkpoint = TypeVar("Checkpoint", bound=HasPoints)


class Trainer(Protocol[Checkpoint]):
    """What the loop needs of training: LaneTrainer, or a stand-in with recorded curves."""

    @property
    def free_lanes(self) -> tuple[int, ...]: ...
    def load(self, lane: int, config: TrialConfig, checkpoint: Checkpoint | None = None) -> None: ...
    def free(self, lane: int) -> None: ...
    def advance(self, should_stop: Callable[[], bool]) -> list[tuple[int, EvalPoint]]: ...
    def checkpoint(self, lane: int) -> Checkpoint: ...


class Checkpoints(Protocol[Checkpoint]):
    """Where unfinished trials wait; ``key`` names a configuration and a seed of it."""

    def save(self, key: str, checkpoint: Checkpoint) -> None: ...
    def load(self, key: str) -> Checkpoint | None: ...
    def delete(self, key: str) -> None: ...
