"""What memory a process that trains takes, and whether it gives it back."""

from __future__ import annotations

import ctypes
import sys

import torch


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


def measured_peak_bytes(device: str) -> int | None:
    """The largest memory so far: torch's on a CUDA device, else that of this process; None where nobody counts it."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB.
