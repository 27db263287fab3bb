"""Whether a trial will fit in memory, asked before it starts: the host's for trials on a CPU, else the device's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from moesearch.config.trial import TrialConfig

CONTROL_GROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Room:
    """Memory in bytes: what is free now, and what would be if nothing else ran."""

    free: int
    total: int


@dataclass(frozen=True)
class Shortage:
    """A trial that needs more memory than is free."""

    needed: int
    room: Room

    @property
    def may_end(self) -> bool:
        """Whether it is worth to wait for others to end."""
        return self.needed <= self.room.total

    def __str__(self) -> str:
        return (
            f"it needs about {self.needed / 1e9:.3g} GB of memory; {self.room.free / 1e9:.3g} GB of "
            f"{self.room.total / 1e9:.3g} GB are free"
        )


@dataclass(frozen=True)
class MemoryCheck:
    """Compares what trials need, by estimate, with what is free."""

    needed_bytes: Callable[[TrialConfig], int]
    room: Callable[[], Room]

    def shortage(self, config: TrialConfig) -> Shortage | None:
        """Why a trial should not start now; None if it may."""
        needed, room = self.needed_bytes(config), self.room()
        return Shortage(needed, room) if needed > room.free else None


def host_room() -> Room:
    """The host's memory, within the limit of this process's control group (version 2), whose caches count as free."""
    host = psutil.virtual_memory()
    limit, used = _number(CONTROL_GROUP / "memory.max"), _number(CONTROL_GROUP / "memory.current")
    if limit is None or used is None:
        return Room(host.available, host.total)
    free = limit - used + _inactive_files(CONTROL_GROUP / "memory.stat")
    return Room(max(0, min(host.available, free)), min(host.total, limit))


def resident_bytes() -> int:
    """Memory that this process holds of the host's."""
    return int(psutil.Process().memory_info().rss)


def _number(path: Path) -> int | None:
    """The number in a file; None where there is none: ``max`` is no limit."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _inactive_files(path: Path) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
