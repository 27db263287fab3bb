"""What an error means for a trial and its worker: memory ran out, a disk is full, or neither."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from pathlib import Path

OOM_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))
"""Files with a line ``oom_kill N``: processes that the kernel killed for memory, of this control group and of all."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, the host's or the device's. torch, which is not imported here, is known by its words."""
    is_torchs = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
    return isinstance(error, MemoryError) or is_torchs


def is_disk_full(error: BaseException) -> bool:
    """Whether the error, or one that it came from, says that a disk has no room, or the user no quota left."""
    return any(_says_so(link) for link in _chain(error))


def _says_so(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return False


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = getattr(error, "orig", None) or error.__cause__ or error.__context__


def num_oom_kills() -> int:
    """Processes that the kernel has killed for want of memory since it started; 0 where it does not say."""
    return max((_counted(path) for path in OOM_COUNTERS), default=0)


def _counted(path: Path) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(count) for name, _, count in (line.partition(" ") for line in lines) if name == "oom_kill"), 0)
