"""Studies on Ray in which training is a table; Ray, its nodes and its actors are real."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moesearch.config.study import StudyConfig
from moesearch.errors import CorpusError
from moesearch.search.cluster import RayCrew, Work, cluster_share, joined_cluster
from moesearch.search.order import WorkOrder
from moesearch.search.progress import Progress
from moesearch.search.supervisor import Outcome, run_study
from moesearch.search.worker import run_worker
from tests.search.stand_ins import MILESTONES, JsonCheckpoints, TableTrainer, new_job, study_config, url_of

TEXT = "To be, or not to be, that is the question.\n" * 300
NUM_LANES = 2


class NotingTrainer(TableTrainer):
    """Leaves a line in a file for every milestone that it trains, before anything else comes of it."""

    def __init__(self, file: Path, seconds: float) -> None:
        super().__init__(seconds=seconds, num_lanes=NUM_LANES)
        self._file = file

    def advance(self, should_stop: Callable[[], bool]) -> list[Any]:
        results = super().advance(should_stop)
        with self._file.open("a") as file:
            file.writelines(f"{self.trained[-1 - index]}\n" for index in range(len(results)))
        return results


def work(order: WorkOrder, stop: threading.Event, seconds: float = 0.03) -> None:
    trainer = NotingTrainer(order.runs / "trained", seconds)
    run_worker(new_job(order.config, order.runs), trainer, JsonCheckpoints(Path(order.search_checkpoints)), stop)


def work_slowly(order: WorkOrder, stop: threading.Event) -> None:
    work(order, stop, seconds=0.5)


def find_a_mistake(order: WorkOrder, stop: threading.Event) -> None:
    raise CorpusError("tiny_shakespeare: cannot be downloaded")


def fail(order: WorkOrder, stop: threading.Event) -> None:
    raise RuntimeError("no luck today")


def config_in(folder: Path, num_trials: int) -> StudyConfig:
    (folder / "text.txt").write_text(TEXT)
    base = {"data": {"text": str(folder / "text.txt")}, "budget": {"steps": 40, "milestones": MILESTONES}}
    search = {
        "moe.num_experts": {"type": "categorical", "choices": [2, 4, 8]},
        "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
    }
    return study_config(base=base, num_trials=num_trials, search=search, sampler={"type": "random"})


def run_on_ray(
    folder: Path, num_trials: int, work: Work = work, show: Callable[[Progress], None] = lambda _: None
) -> Outcome:
    order = WorkOrder(config_in(folder, num_trials), url_of(folder), folder, None, "cpu")
    with joined_cluster():
        crew = RayCrew(order, cluster_share(order.config), work=work)
        command = "python -m moesearch.run toy.yaml --cluster ray"
        return run_study(order, crew, fresh=False, command=command, show=show, note=print)


if __name__ == "__main__":
    try:
        run_on_ray(Path(sys.argv[1]), num_trials=6, work=work_slowly)
    except KeyboardInterrupt:
        sys.exit(130)
