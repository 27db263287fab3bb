"""Run one study as several Slurm jobs, each of which is queued again when its time is up.

    python docs/slurm.py --jobs 4 --minutes 240 --gpus 1 -- STUDY.yaml --storage URL --files FOLDER

What stands behind `--` is what `python -m moesearch.run` takes. Every job runs that command on its own node, and so
joins the study in the store. `--executor local` runs the jobs on this machine, to try it. It takes submitit, which
`pip install moesearch[slurm]` brings.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import submitit

SIGNAL_SECONDS = 120
"""How long before its end a job is warned."""
LEAVE_SECONDS = 60
"""How long a study may take to put its trials back; workers have 10 seconds for it."""


class StudyJob:
    """What a job runs; submitit pickles it, and asks it for a `checkpoint` when the job is warned."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.arguments = list(arguments)
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "moesearch.run", *self.arguments],
            # Slurm warns every process of a job, and those that do not know the signal would die of it.
            preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN) and None,
        )
        while self.process.poll() is None:  # `wait` could not be interrupted by the warning
            time.sleep(0.5)
        if self.process.returncode:
            raise RuntimeError(f"the study ended with exit code {self.process.returncode}; its output is above")
        return self.process.returncode

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Put the trials back, with their checkpoints, and be queued again: the same command goes on from there."""
        if self.process is not None:
            self.process.terminate()
            deadline = time.monotonic() + LEAVE_SECONDS
            while self.process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
        return submitit.helpers.DelayedSubmission(StudyJob(self.arguments))


def submit(arguments: Sequence[str], executor: str, folder: Path, jobs: int, **limits: Any) -> list[submitit.Job[int]]:
    """Submit so many jobs of one study; `limits` are parameters of `submitit.AutoExecutor`."""
    auto = submitit.AutoExecutor(folder=folder, cluster=executor, local_max_num_timeout=100, slurm_max_num_timeout=100)
    auto.update_parameters(name="moesearch", **limits)
    return [auto.submit(StudyJob(arguments)) for _ in range(jobs)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="jobs, each with a node's share of the study")
    parser.add_argument("--minutes", type=int, default=240, help="time limit of a job, before it is queued again")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of each job; a worker for each")
    parser.add_argument("--cpus", type=int, default=8, help="cores of each job")
    parser.add_argument("--partition", help="Slurm's partition")
    parser.add_argument("--executor", choices=["slurm", "local"], default="slurm")
    parser.add_argument("--folder", type=Path, default=Path("runs/slurm"), help="logs of the jobs, on a shared disk")
    parser.add_argument("arguments", nargs="+", metavar="-- STUDY.yaml ...", help="of python -m moesearch.run")
    args = parser.parse_args()
    limits: dict[str, Any] = {"timeout_min": args.minutes, "gpus_per_node": args.gpus, "cpus_per_task": args.cpus}
    if args.executor == "slurm":
        limits |= {"slurm_signal_delay_s": SIGNAL_SECONDS}
        limits |= {"slurm_partition": args.partition} if args.partition else {}
    jobs = submit(args.arguments, args.executor, args.folder, args.jobs, **limits)
    for job in jobs:
        print(f"job {job.job_id}: {job.paths.stdout}")
    if args.executor == "slurm":
        return 0
    return max(job.result() for job in jobs)


if __name__ == "__main__":
    sys.exit(main())
