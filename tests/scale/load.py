"""What the search around a trial costs: statements of SQL, the lock, and trials per second by many workers."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from moesearch.config.study import StudyConfig
from moesearch.search.worker import run_worker
from tests.postgres import PostgresServer
from tests.scale.studies import Store, job_of, scale_config
from tests.search.processes import start
from tests.search.stand_ins import MILESTONES, JsonCheckpoints, TableTrainer, begin, storage_in


@dataclass
class Counter:
    """SQL statements that one store's engine sent."""

    count: int = 0

    def watch(self, storage: RDBStorage) -> Self:
        sqlalchemy.event.listen(storage.engine, "before_cursor_execute", self._note)
        return self

    def _note(self, *_: object) -> None:
        self.count += 1

    def of(self, task: Callable[[], object]) -> int:
        before = self.count
        task()
        return self.count - before


def print_statements(server: PostgresServer) -> None:
    with Store(server) as folder:
        config = scale_config(num_trials=6)
        begin(config, folder)
        counter = Counter().watch(storage_in(folder))
        trainer = NotingTrainer(counter)
        run_worker(job_of(config, folder), trainer, JsonCheckpoints(folder / "checkpoints"), threading.Event())
        per_milestone = trainer.statements[1]
        whole = counter.count / config.num_trials
        claims = job_of(config, folder).claims
        idle = counter.of(claims.recover) + counter.of(claims.is_over)
    print(
        "statements a trial:"
        f" {whole:.0f} in all, {per_milestone} a milestone, {whole - MILESTONES * per_milestone:.0f} for the rest;"
        f" {idle} each time a worker without work looks for some\n"
    )


class NotingTrainer(TableTrainer):
    """Notes how many statements were sent between two milestones."""

    def __init__(self, counter: Counter) -> None:
        super().__init__()
        self._counter = counter
        self._last = 0
        self.statements: list[int] = []

    def advance(self, should_stop: Callable[[], bool]) -> list[Any]:
        self.statements.append(self._counter.count - self._last)
        self._last = self._counter.count
        return super().advance(should_stop)


@dataclass
class TimedLock:
    """The store's lock; adds up how long it was waited for, and held."""

    lock: Any
    waited: float = 0.0
    held: float = 0.0
    times: int = 0
    _depth: int = field(default=0, init=False)
    _since: float = field(default=0.0, init=False)

    def __enter__(self) -> Self:
        before = time.perf_counter()
        self.lock.__enter__()
        if self._depth == 0:
            self._since = time.perf_counter()
            self.waited += self._since - before
            self.times += 1
        self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lock.__exit__(kind, error, trace)
        self._depth -= 1
        if self._depth == 0:
            self.held += time.perf_counter() - self._since


def _work(folder: str, config_json: str, ready: Any, go: Any, results: Any) -> None:
    config = StudyConfig.model_validate_json(config_json)
    job = job_of(config, Path(folder))
    lock = TimedLock(job.claims.lock)
    job.claims.lock = lock
    counter = Counter().watch(storage_in(Path(folder)))
    ready.release()
    go.wait()
    before = time.process_time()
    run_worker(job, TableTrainer(), JsonCheckpoints(Path(folder) / "checkpoints"), threading.Event())
    results.put((counter.count, lock.times, lock.waited, lock.held, time.process_time() - before))


def print_loads(server: PostgresServer, numbers: Sequence[int], num_trials: int) -> None:
    print(
        "| workers | trials/s | statements/s | commits/s | lock held | waited for it | CPU a trial: workers | server |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for number in numbers:
        print(_load(server, number, num_trials), flush=True)
    print()


def _load(server: PostgresServer, number: int, num_trials: int) -> str:
    """A row of the table: workers that start together, on a study without any training."""
    context = multiprocessing.get_context("forkserver")
    ready, go, results = context.Semaphore(0), context.Event(), context.Queue()
    with Store(server) as folder:
        config = scale_config(num_trials=num_trials)
        begin(config, folder)
        workers = [start(_work, str(folder), config.model_dump_json(), ready, go, results) for _ in range(number)]
        try:
            for _ in workers:
                ready.acquire()
            commits, server_cpu, before = _commits(folder), _cpu_seconds(server), time.perf_counter()
            go.set()
            counts = [results.get(timeout=300) for _ in workers]
            seconds = time.perf_counter() - before
            commits, server_cpu = _commits(folder) - commits, _cpu_seconds(server) - server_cpu
        finally:
            for worker in workers:
                worker.kill()
                worker.join()
        finished = sum(trial.state is TrialState.COMPLETE for trial in begin(config, folder).trials)
    assert finished == num_trials, finished
    statements, times, waited, held, cpu = (sum(column) for column in zip(*counts, strict=True))
    return (
        f"| {number} | {num_trials / seconds:.1f} | {statements / seconds:.0f} | {commits / seconds:.0f}"
        f" | {1e3 * held / times:.1f} ms | {1e3 * waited / times:.0f} ms"
        f" | {1e3 * cpu / num_trials:.0f} ms | {1e3 * server_cpu / num_trials:.0f} ms |"
    )


def _commits(folder: Path) -> int:
    with storage_in(folder).engine.connect() as connection:
        query = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
        return int(connection.execute(sqlalchemy.text(query)).scalar_one())


def _cpu_seconds(server: PostgresServer) -> float:
    """Of the server's processes that live; each worker's session is one of them until the worker ends."""
    total = 0.0
    for process in psutil.Process(server.process.pid).children():
        with suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:2])
    return total + sum(psutil.Process(server.process.pid).cpu_times()[:4])
