"""What an error means for a trial and its worker: no memory, a full disk, a lost device, or none of these."""

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


def is_device_lost(error: BaseException) -> bool:
    """Whether CUDA refuses whatever this process asks next: a failed kernel, a card that is gone, or another's alone.

    Then the process has to end. Its trials go back as those of any worker that died, and another process, on a fresh
    context or another card, goes on with them; a trial on which that happens again and again is given up.
    """
    is_cudas = type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)
    return is_cudas and "out of memory" not in str(error)
