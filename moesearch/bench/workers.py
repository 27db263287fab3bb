"""Worker processes that train at the same time, to see what one process per core gains over threads in one."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

from moesearch.config.trial import TrialConfig
from moesearch.data.tokens import TokenData


class Worker:
    """A process with a trainer of one lane and so many threads; it trains when told to, and sleeps in between."""

    def __init__(self, config: TrialConfig, tokens: TokenData, *, threads: int, device: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, config, tokens, threads, device), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._process.join()

    def start(self, num_milestones: int) -> None:
        """Begin to train over so many milestones."""
        self._connection.send(num_milestones)

    def wait(self) -> None:
        """Wait until it has; EOFError if the process ended instead."""
        self._connection.recv()


def train_at_once(workers: list[Worker], num_milestones: int) -> None:
    """Let all of these train over so many milestones each, and wait for the last."""
    for worker in workers:
        worker.start(num_milestones)
    for worker in workers:
        worker.wait()


def _serve(connection: Connection, config: TrialConfig, tokens: TokenData, threads: int, device: str) -> None:
    import torch

    from moesearch.bench.subjects import TrainerSteps
    from moesearch.training.host_memory import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(threads)
    subject = TrainerSteps(config, tokens, device=device)
    try:
        while True:
            for _ in range(connection.recv()):
                subject.milestone()
            connection.send(None)
    except (EOFError, BrokenPipeError):
        return  # The bench is done, or is gone.
