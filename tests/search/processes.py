"""Processes for tests that kill: forked from a server that has imported everything, so that they start in no time."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.search.stand_ins"])


def start(function: Callable[..., None], *args: Any) -> BaseProcess:
    process = _context.Process(target=function, args=args)
    process.start()
    return process


@contextmanager
def in_processes(tasks: Sequence[tuple[Callable[..., None], tuple[Any, ...]]]) -> Iterator[list[BaseProcess]]:
    """Run each function in a process of its own; all must have ended well by the end of the context."""
    processes = [start(function, *args) for function, args in tasks]
    try:
        yield processes
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0] * len(processes)
    finally:
        for process in processes:
            process.kill()
            process.join()
