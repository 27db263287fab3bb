"""How many workers this machine takes, and on what: cores, threads and GPUs, found without importing torch."""

from __future__ import annotations

import math
import os
import shutil
import subprocess  # nosec B404: our own commands, no shell
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moesearch.errors import InputError

_COUNT_GPUS = "import torch; print(torch.cuda.device_count())"
# Two processes whose threads together outnumber the cores slow each other about tenfold: OpenMP spins while it waits.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def counted(count: int, noun: str) -> str:
    """``1 worker``, ``2 workers``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


@dataclass(frozen=True)
class Placement:
    """Where the workers of one command run."""

    device: Literal["cpu", "cuda"]
    """Of every worker, as torch names it; a worker on CUDA sees one GPU only."""
    gpus: tuple[str, ...]
    """CUDA's names of the GPUs in use."""
    num_workers: int
    threads: int
    """Threads of each worker."""

    def environment(self, worker: int) -> Mapping[str, str]:
        """The environment of a worker; numbers of threads must be set before torch is imported."""
        environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(self.threads))}
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[worker % len(self.gpus)]
        return environment

    def __str__(self) -> str:
        where = counted(len(self.gpus), "GPU") if self.gpus else f"the CPU, {counted(self.threads, 'thread')} each"
        return f"{counted(self.num_workers, 'worker')} on {where}"


def place(device: str, workers: int | Literal["auto"], *, num_runs: int) -> Placement:
    """Place workers: by default one per GPU, or one per core with one thread each, and never more than there are runs.

    Raises:
        InputError: a GPU is asked for that is not there.
    """
    gpus = _visible_gpus() if device != "cpu" else ()
    if device.startswith("cuda"):
        gpus = _chosen(gpus, device)
    cores = available_cores()
    num_workers = min(len(gpus) or cores, num_runs) if workers == "auto" else workers
    return Placement("cuda" if gpus else "cpu", gpus, num_workers, threads=max(1, cores // num_workers))


def available_cores() -> int:
    """Cores that this process may use: those it is bound to, within the quota of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))


def _chosen(gpus: tuple[str, ...], device: str) -> tuple[str, ...]:
    if not gpus:
        raise InputError(f"device {device}: no GPU is visible here; write `--device cpu`, or see what nvidia-smi says")
    if device == "cuda":
        return gpus
    index = int(device.removeprefix("cuda:"))
    if index >= len(gpus):
        raise InputError(f"device {device}: {len(gpus)} GPU(s) are visible here, numbered from 0")
    return (gpus[index],)


def _visible_gpus() -> tuple[str, ...]:
    if shutil.which("nvidia-smi") is None and not Path("/proc/driver/nvidia/version").exists():
        return ()
    # torch is asked, since only it knows whether its build can use them; in a child, since importing it takes seconds.
    command = [sys.executable, "-c", _COUNT_GPUS]
    done = subprocess.run(  # noqa: S603  # nosec B603: our own command, no shell
        command, capture_output=True, text=True, check=False
    )
    count = int(done.stdout) if done.returncode == 0 else 0
    return gpu_names(count, os.environ.get("CUDA_VISIBLE_DEVICES"))


def gpu_names(count: int, visible: str | None) -> tuple[str, ...]:
    """CUDA's names of the GPUs that torch counts, given CUDA_VISIBLE_DEVICES: numbers, or the UUIDs that stand there.

    CUDA takes no name after the first one that it does not know, so the first ``count`` are those in use.
    """
    named = [name.strip() for name in (visible or "").split(",") if name.strip()]
    return tuple(named[:count] if named else map(str, range(count)))
