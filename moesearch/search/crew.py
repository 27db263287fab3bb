"""The worker processes of one command: started, restarted when they die, stopped in order, and never left behind."""

from __future__ import annotations

import logging
import os
import subprocess  # nosec B404: our own commands, no shell
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from moesearch.cli import EXIT_USER_ERROR
from moesearch.errors import InputError, MoesearchError
from moesearch.search.machine import Placement
from moesearch.search.order import ERROR_MARK, EXIT_NO_ROOM, WorkOrder
from moesearch.search.worker_names import worker_name

POLL_SECONDS = 0.1
MAX_RESTARTS = 5
"""Times in a row that a worker is started again, with growing pauses."""
NO_ROOM_SECONDS = 15.0
"""How long a worker that found a disk full stays away before it looks again."""
HEALTHY_SECONDS = 60.0
"""A worker that lived so long has not died of its start, so its count begins anew."""
_logger = logging.getLogger(__name__)

WORKER_COMMAND = (sys.executable, "-m", "moesearch.search.process")


class Workers(Protocol):
    """The workers of one command, wherever they run. As a context, it starts them, and ends them on the way out."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def num_workers(self) -> int: ...

    @property
    def device(self) -> str:
        """Of the workers, as torch names it."""

    @property
    def is_at_work(self) -> bool: ...

    @property
    def is_stopping(self) -> bool: ...

    @property
    def notes(self) -> tuple[Path, ...]:
        """Logs in which workers wrote something: a warning, an error of a trial."""

    @property
    def innocent(self) -> Collection[str]:
        """Workers that were ended, or ended, for no fault of the trials that they had, as `worker_name` calls them."""

    @property
    def lacks_room(self) -> bool:
        """Whether workers stay away until a full disk has room."""

    def end(self, worker: str) -> bool:
        """Kill one worker that does not react; it is started again. False if it is none of these."""

    def wait(self) -> None:
        """Let a moment pass; start those whose pause is over, end those that overstay a stop."""

    def stop(self, seconds: float) -> None:
        """Ask all workers to give their trials back and leave; those still there after ``seconds`` are killed."""

    def kill(self) -> None:
        """End all workers now; the store is left to `Claims.recover`."""

    def bury_the_dead(self) -> bool:
        """Note who left. True if a worker died, and so may have left a trial behind; it will be started again.

        Raises:
            InputError: a worker found a person's mistake.
            MoesearchError: a worker dies again and again.
        """


@dataclass
class _Slot:
    """One worker, through all its restarts."""

    index: int
    log: Path
    process: subprocess.Popen[bytes] | None = None
    worker: str = ""
    """The process as `worker_name` calls it."""
    started: float = 0.0
    num_restarts: int = 0
    restart_at: float | None = None
    lacks_room: bool = False
    """Whether it left since a disk is full, until it is started again."""

    @property
    def is_at_work(self) -> bool:
        return self.process is not None or self.restart_at is not None


class Crew:
    """Workers that are processes of this host, with one order."""

    def __init__(self, order: WorkOrder, placement: Placement, *, command: Sequence[str] = WORKER_COMMAND) -> None:
        self._order = order
        self._placement = placement
        self._command = command
        # The process id keeps the logs of two commands on one study apart.
        self._slots = [
            _Slot(index, order.logs / f"worker-{os.getpid()}-{index}.log") for index in range(placement.num_workers)
        ]
        self._kill_at: float | None = None
        self._innocent: set[str] = set()
        self._has_one_left = False

    def __str__(self) -> str:
        return str(self._placement)

    @property
    def num_workers(self) -> int:
        return self._placement.num_workers

    @property
    def device(self) -> str:
        return self._placement.device

    def __enter__(self) -> Self:
        self._order.logs.mkdir(parents=True, exist_ok=True)
        for slot in self._slots:
            self._start(slot)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        for slot in self._slots:
            if slot.log not in self.notes:
                slot.log.unlink(missing_ok=True)

    @property
    def is_at_work(self) -> bool:
        return any(slot.is_at_work for slot in self._slots)

    @property
    def is_stopping(self) -> bool:
        return self._kill_at is not None

    @property
    def innocent(self) -> Collection[str]:
        return self._innocent

    @property
    def lacks_room(self) -> bool:
        return any(slot.lacks_room for slot in self._slots)

    @property
    def notes(self) -> tuple[Path, ...]:
        return tuple(slot.log for slot in self._slots if slot.log.exists() and slot.log.stat().st_size > 0)

    def wait(self) -> None:
        time.sleep(POLL_SECONDS)
        now = time.monotonic()
        if self._kill_at is not None and now >= self._kill_at:
            self.kill()
        for slot in self._slots:
            if slot.restart_at is not None and now >= slot.restart_at:
                self._start(slot)

    def stop(self, seconds: float) -> None:
        self._kill_at = time.monotonic() + seconds
        for slot in self._slots:
            slot.restart_at = None
            if slot.process is not None and slot.process.stdin is not None:
                slot.process.stdin.close()

    def kill(self) -> None:
        self._kill_at = time.monotonic()
        for slot in self._slots:
            slot.restart_at = None
            if slot.process is not None:
                slot.process.kill()
                slot.process.wait()
                self._forget(slot)

    def end(self, worker: str) -> bool:
        for slot in self._slots:
            if slot.process is not None and slot.worker == worker:
                slot.process.kill()
                slot.process.wait()
                self._innocent.add(worker)
                self._forget(slot)
                slot.restart_at = None if self.is_stopping else time.monotonic()
                return True
        return False

    def bury_the_dead(self) -> bool:
        has_died = False
        for slot in self._slots:
            code = None if slot.process is None else slot.process.poll()
            if code is None:
                continue
            self._forget(slot)
            if code == 0:
                self._let_rest()
                continue
            has_died = True
            if code == EXIT_USER_ERROR:
                raise InputError(self._last_words(slot))
            slot.lacks_room = code == EXIT_NO_ROOM
            if slot.lacks_room:
                self._innocent.add(slot.worker)
                is_needed = not (self.is_stopping or self._has_one_left)
                slot.restart_at = time.monotonic() + NO_ROOM_SECONDS if is_needed else None
            elif not self.is_stopping:
                self._plan_restart(slot, code)
        return has_died

    def _let_rest(self) -> None:
        """A worker leaves when nothing is left to do for anyone, so none is started again."""
        self._has_one_left = True
        for slot in self._slots:
            slot.restart_at = None

    def _plan_restart(self, slot: _Slot, code: int) -> None:
        if self._has_one_left:
            return
        now = time.monotonic()
        if now - slot.started >= HEALTHY_SECONDS:
            slot.num_restarts = 0
        if slot.num_restarts >= MAX_RESTARTS:
            if any(other.is_at_work for other in self._slots if other is not slot):
                _logger.warning("worker %d is given up, others go on; its log is %s", slot.index, slot.log)
                return  # its card may be lost, or another's
            raise MoesearchError(
                f"worker {slot.index} died {MAX_RESTARTS + 1} times in a row, last with exit code {code}; its log is "
                f"{slot.log}:\n{self._last_words(slot)}"
            )
        slot.restart_at = now + 0.5 * 2**slot.num_restarts
        slot.num_restarts += 1

    def _start(self, slot: _Slot) -> None:
        with slot.log.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603  # nosec B603: our own command, no shell
                self._command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._placement.environment(slot.index),
                start_new_session=True,  # Ctrl-C in a terminal is for the supervisor alone
            )
        slot.process, slot.started, slot.restart_at, slot.lacks_room = process, time.monotonic(), None, False
        slot.worker = worker_name(process.pid)
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it died at once; `bury_the_dead` will see
            process.stdin.write(self._order.to_json().encode() + b"\n")
            process.stdin.flush()

    def _forget(self, slot: _Slot) -> None:
        if slot.process is not None and slot.process.stdin is not None:
            with suppress(BrokenPipeError):
                slot.process.stdin.close()
        slot.process = None

    def _last_words(self, slot: _Slot) -> str:
        text = slot.log.read_text(encoding="utf-8", errors="replace")
        _, mark, message = text.rpartition(ERROR_MARK)
        return message.strip() if mark else "\n".join(text.strip().splitlines()[-15:])
