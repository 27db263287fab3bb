"""A worker process with a trainer of recorded curves: ``python -m tests.search.fake_process MISHAP``."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moesearch.config.trial import TrialConfig
from moesearch.errors import CorpusError
from moesearch.search.order import WorkOrder
from moesearch.search.process import leave, main
from moesearch.search.worker import run_worker
from tests.search.stand_ins import JsonCheckpoints, TableTrainer, curve, new_job


class UnluckyTrainer(TableTrainer):
    """Its process is killed at the third milestone, unless that has happened once before."""

    def __init__(self, mark: os.PathLike[str]) -> None:
        super().__init__(seconds=0.02)
        self._mark = mark

    def advance(self, should_stop: Callable[[], bool]) -> list[Any]:
        if len(self.trained) == 2 and not os.path.exists(self._mark):
            open(self._mark, "x").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().advance(should_stop)


class HangingTrainer(UnluckyTrainer):
    """It never comes back from the third milestone, unless that has happened once before."""

    def advance(self, should_stop: Callable[[], bool]) -> list[Any]:
        while len(self.trained) == 2 and (not os.path.exists(self._mark) or self._is_hung):
            open(self._mark, "a").close()
            self._is_hung = True
            time.sleep(0.05)
        return TableTrainer.advance(self, should_stop)

    _is_hung = False


def work(order: WorkOrder, stop: threading.Event) -> None:
    match sys.argv[1]:
        case "none":
            trainer = TableTrainer(seconds=0.02)
        case "killed-once":
            trainer = UnluckyTrainer(order.runs / "killed")
        case "gpu-1-is-lost":
            if os.environ["CUDA_VISIBLE_DEVICES"] == "1":
                raise RuntimeError("CUDA error: device is lost")
            trainer = TableTrainer(seconds=0.1)
        case "slow":
            trainer = TableTrainer(seconds=0.4)
        case "diverges":
            trainer = TableTrainer(losses=_diverging)
        case "dies-at-once":
            raise RuntimeError("no luck today")
        case "hangs-once":
            trainer = HangingTrainer(order.runs / "hung")
        case "no-room-once":
            if not (order.runs / "full").exists():
                (order.runs / "full").touch()
                raise OSError(errno.ENOSPC, "No space left on device")
            trainer = TableTrainer(seconds=0.02)
        case "no-corpus":
            raise CorpusError("tiny_shakespeare: cannot be downloaded")
        case mishap:
            raise ValueError(mishap)
    run_worker(new_job(order.config, order.runs), trainer, JsonCheckpoints(Path(order.search_checkpoints)), stop)


def _diverging(config: TrialConfig) -> list[float]:
    return [float("nan")] * len(curve(config))


if __name__ == "__main__":
    leave(main(work))
