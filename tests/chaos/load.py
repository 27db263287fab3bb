"""Load: ``python -m tests.chaos.load --trials 200`` has 4 workers work on one SQLite file while two pages are polled.

Training is a recorded table, so all the time goes into the store, MLflow and the pages: the worst that trials can be.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event

from optuna.trial import TrialState

from moesearch.config.study import StudyConfig
from moesearch.dashboard import _mlflow, _optuna_dashboard
from moesearch.results.records import FINGERPRINT, MLFLOW_RUN_ID, REPLICATE
from moesearch.search.worker import run_worker
from moesearch.servers import ServerProcess, free_port, running
from moesearch.tracking.database import open_client, prepare
from moesearch.tracking.mlflow import MLflowTracker
from tests.search.processes import start
from tests.search.stand_ins import JsonCheckpoints, TableTrainer, begin, new_job, study_config, url_of

NUM_WORKERS = 4
START_SECONDS = 120.0


@dataclass(frozen=True)
class Load:
    """What was asked of the store, and what came of it."""

    trials: int
    seconds: float
    trials_per_second: float
    page_reads: int
    failed_page_reads: int
    lost_trials: int
    repeated_trials: int
    running_trials: int
    worker_errors: int
    mlflow_differs: int
    """Runs whose state in MLflow is not their trial's."""


def hold(folder: Path, trials_per_worker: int) -> Load:
    """Run the study to its end under the eyes of both pages."""
    config = _config(trials_per_worker)
    prepare(_mlflow_uri(folder))
    study = begin(config, folder)
    pages = [
        _optuna_dashboard(url_of(folder), folder / "files", "127.0.0.1", free_port("127.0.0.1")),
        _mlflow(_mlflow_uri(folder), folder / "artifacts", "127.0.0.1", free_port("127.0.0.1")),
    ]
    with running(pages) as servers:
        _wait_until_ready(servers)
        reads: Counter[bool] = Counter()
        stop = Event()
        pollers = [threading.Thread(target=_poll, args=(server, stop, reads)) for server in servers]
        began = time.monotonic()
        workers = [start(_work, str(folder), trials_per_worker) for _ in range(NUM_WORKERS)]
        for poller in pollers:
            poller.start()
        for worker in workers:
            worker.join()
        seconds = time.monotonic() - began
        stop.set()
        for poller in pollers:
            poller.join()
    trials = study.get_trials(deepcopy=False)
    done = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    keys = Counter((trial.user_attrs[FINGERPRINT], trial.user_attrs[REPLICATE]) for trial in done)
    client = open_client(_mlflow_uri(folder))
    states = [client.get_run(trial.user_attrs[MLFLOW_RUN_ID]).info.status for trial in done]
    return Load(
        trials=len(done),
        seconds=round(seconds, 1),
        trials_per_second=round(len(done) / seconds, 1),
        page_reads=reads.total(),
        failed_page_reads=reads[False],
        lost_trials=config.num_trials - len(done),
        repeated_trials=len(done) - len(keys),
        running_trials=sum(trial.state is TrialState.RUNNING for trial in trials),
        worker_errors=sum(worker.exitcode != 0 for worker in workers),
        mlflow_differs=sum(state != "FINISHED" for state in states),
    )


def _config(trials_per_worker: int) -> StudyConfig:
    return study_config(num_trials=NUM_WORKERS * trials_per_worker)


def _mlflow_uri(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def _work(folder_name: str, trials_per_worker: int) -> None:
    folder, config = Path(folder_name), _config(trials_per_worker)
    tracker = MLflowTracker(_mlflow_uri(folder), config.name, folder / "artifacts")
    run_worker(
        new_job(config, folder, tracker=tracker), TableTrainer(), JsonCheckpoints(folder / "checkpoints"), Event()
    )


def _wait_until_ready(servers: list[ServerProcess]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not all(server.is_ready for server in servers):
        assert time.monotonic() < deadline, [server.last_lines for server in servers]
        time.sleep(0.2)


def _poll(server: ServerProcess, stop: Event, reads: Counter[bool]) -> None:
    """Read what the page itself reads while it is open."""
    paths = {
        "optuna-dashboard": ("/api/studies", "/api/studies/1"),
        "MLflow": ("/api/2.0/mlflow/experiments/search?max_results=9",),
    }
    while not stop.is_set():
        for path in (server.server.health_path, *paths[server.server.name]):
            reads[server.get(path) is not None] += 1
        stop.wait(0.2)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.load", description=__doc__)
    parser.add_argument("--trials", type=int, default=200, help="of each worker (default 200)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asdict(hold(Path(folder), args.trials))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
