"""What a trial costs in a store of many: ``python -m tests.chaos.growth`` compares 10,000 stored trials with 100.

Training is a recorded table, so what is measured is the claim, the proposal, the reports, the pruner and the end, in
processor time of the worker, which others on the machine do not change.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sqlite3
import tempfile
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from statistics import median
from threading import Event

from moesearch.config.study import StudyConfig
from moesearch.config.trial import TrialConfig
from moesearch.search.worker import run_worker
from tests.search.stand_ins import JsonCheckpoints, TableCheckpoint, TableTrainer, begin, new_job, study_config

FEW = 100
NUM_MEASURED = 30
_COPIED = {
    "trials": "number, study_id, state, datetime_start, datetime_complete",
    "trial_params": "param_name, param_value, distribution_json",
    "trial_values": "objective, value, value_type",
    "trial_user_attributes": "key, value_json",
    "trial_system_attributes": "key, value_json",
    "trial_intermediate_values": "step, intermediate_value, intermediate_value_type",
}


class ClockTrainer(TableTrainer):
    """Notes when each trial begins."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[float] = []

    def load(self, lane: int, config: TrialConfig, checkpoint: TableCheckpoint | None = None) -> None:
        self.begun.append(time.process_time())
        super().load(lane, config, checkpoint)


def seconds_per_trial(sizes: tuple[int, ...], folder: Path) -> dict[int, float]:
    """Number of stored trials -> processor seconds that one more takes."""
    few = folder / str(FEW)
    few.mkdir()
    begin(_config(FEW), few)
    _work(_config(FEW), few)
    for size in sizes:
        if size != FEW:
            shutil.copytree(few, folder / str(size))
    return {size: _seconds_per_trial(size, folder / str(size)) for size in sizes}


def _seconds_per_trial(num_stored: int, folder: Path) -> float:
    """Median over NUM_MEASURED trials of one worker, the first ones apart: with them it reads the whole store."""
    _multiply(folder / "optuna.db", num_stored // FEW)
    begun = _work(_config(num_stored + 3 + NUM_MEASURED), folder)[2:]
    return median(after - before for before, after in pairwise(begun))


def _config(num_trials: int) -> StudyConfig:
    space = {
        "optim.lr": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
        "moe.num_experts": {"type": "categorical", "choices": [2, 4, 8]},
        "moe.noise": {"type": "categorical", "choices": [True, False]},
    }
    base = {"moe": {"top_k": 2}, "budget": {"steps": 40, "milestones": 4}}
    pruner = {"type": "median", "warmup_milestones": 0}
    return study_config(num_trials=num_trials, pruner=pruner, search=space, base=base, sampler={"type": "random"})


def _work(config: StudyConfig, folder: Path) -> list[float]:
    trainer = ClockTrainer()
    run_worker(new_job(config, folder), trainer, JsonCheckpoints(folder / "checkpoints"), Event())
    return trainer.begun


def _multiply(path: Path, times: int) -> None:
    """Store every trial so many times in all, row by row, which takes seconds where Optuna would take minutes."""
    with closing(sqlite3.connect(path)) as database, database:
        (count,) = database.execute("SELECT COUNT(*) FROM trials").fetchone()
        for shift in range(count, times * count, count):
            for table, columns in _COPIED.items():
                values = columns.replace("number", f"number + {shift}", 1) if table == "trials" else columns
                database.execute(
                    f"INSERT INTO {table} (trial_id, {columns}) SELECT trial_id + {shift}, {values} FROM {table} "
                    f"WHERE trial_id <= {count}"
                )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.growth", description=__doc__)
    parser.add_argument("--stored", type=int, default=10_000, help="trials in the larger store (default 10000)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = seconds_per_trial((FEW, args.stored), Path(folder))
    milliseconds = {size: round(1000 * value, 1) for size, value in seconds.items()}
    print(json.dumps({"milliseconds_per_trial": milliseconds, "ratio": round(seconds[args.stored] / seconds[FEW], 2)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
