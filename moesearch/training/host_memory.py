"""How a process that trains on a CPU treats memory that it frees."""

from __future__ import annotations

import ctypes
import sys


def keep_freed_memory() -> None:
    """Let this process keep what it frees, for its own next use; without effect where the C library is not glibc.

    Otherwise the large arrays of each step go back to the system and are faulted in again, page by page, in the next:
    5 to 9 % of a step of the article's model, a quarter of one with 64 experts (docs/benchmarks.md). The process then
    stays as large as it has been at its largest.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
        mallopt(trim_threshold, -1)
        mallopt(mmap_max, 0)
