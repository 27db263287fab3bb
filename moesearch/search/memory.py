"""A study in memory, for replays: what the worker loop asks of a store and of checkpoints, without a file."""

from __future__ import annotations

from typing import Generic

from optuna.storages import InMemoryStorage, RDBStorage

from moesearch.search.seams import Checkpoint


class MemoryStorage(InMemoryStorage):
    """Optuna's store in memory, with the signs of life that the loop gives; nobody reads them, since nobody dies."""

    def record_heartbeat(self, trial_id: int) -> None:
        """Do nothing."""

    def get_heartbeat_interval(self) -> int:
        """Seconds between two signs of life."""
        return 3600


Store = RDBStorage | MemoryStorage
"""Where a study may lie."""


class MemoryCheckpoints(Generic[Checkpoint]):
    """Checkpoints that end with the process."""

    def __init__(self) -> None:
        self._held: dict[str, Checkpoint] = {}

    def save(self, key: str, checkpoint: Checkpoint) -> None:
        self._held[key] = checkpoint

    def load(self, key: str) -> Checkpoint | None:
        return self._held.get(key)

    def delete(self, key: str) -> None:
        self._held.pop(key, None)
