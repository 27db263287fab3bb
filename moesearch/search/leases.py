"""Hours of a study: workers lease time ahead in slices, so that nobody who is killed has taken more than was there.

docs/decisions/0012-study-budgets.md weighs it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from optuna.storages import RDBStorage

from moesearch.config.study import StudyConfig
from moesearch.results.records import LEASE_PREFIX

CONFIRM_SHARE = 0.3
"""Part of the hours that the search leaves to the confirmation, whose time nobody knows beforehand."""
MIN_SLICE_SECONDS = 2.0
MAX_SLICE_SECONDS = 60.0
MAX_STOP_SECONDS = 10.0


@dataclass(frozen=True)
class TimeAccount:
    """Hours of a study: of wall time while anyone works on it, and of all workers' time on their devices.

    Each worker leases time ahead, in slices, and writes down until when. Who is killed cannot give the rest back, which
    is a slice at most.
    """

    storage: RDBStorage
    study_name: str
    wall_seconds: float | None
    gpu_seconds: float | None

    @property
    def slice_seconds(self) -> float:
        limits = [limit for limit in (self.wall_seconds, self.gpu_seconds) if limit is not None]
        return min(MAX_SLICE_SECONDS, max(MIN_SLICE_SECONDS, min(limits) / 50))

    @property
    def stop_seconds(self) -> float:
        """A worker is asked to stop so long before its lease ends, to write its checkpoints."""
        return min(MAX_STOP_SECONDS, self.slice_seconds / 4)

    def seconds_left(self) -> float:
        """What one more worker could lease from now on."""
        return -self._excess([*self._leases().values(), (time.time(), time.time())])

    def is_spent(self) -> bool:
        """Whether what is left is too little to begin anything."""
        return self.seconds_left() < 2 * self.stop_seconds

    def lease(self, worker: str, start: float, end: float) -> float:
        """Write down that a worker works from ``start`` until ``end``, or shorter; returns until when it may."""
        self._write(worker, start, end)
        # Only now, since another host may have written at the same moment; then both take less.
        excess = self._excess(self._leases().values())
        if excess > 0:
            end = max(start, end - excess)
            self._write(worker, start, end)
        return end

    def _write(self, worker: str, start: float, end: float) -> None:
        study_id = self.storage.get_study_id_from_name(self.study_name)
        self.storage.set_study_system_attr(study_id, f"{LEASE_PREFIX}{worker}", [start, end])

    def _leases(self) -> dict[str, tuple[float, float]]:
        attrs = self.storage.get_study_system_attrs(self.storage.get_study_id_from_name(self.study_name))
        return {name: (lease[0], lease[1]) for name, lease in attrs.items() if name.startswith(LEASE_PREFIX)}

    def _excess(self, leases: Iterable[tuple[float, float]]) -> float:
        """Seconds by which the leases go beyond a limit; negative where time is left."""
        intervals = sorted(leases)
        over = []
        if self.gpu_seconds is not None:
            over.append(sum(end - start for start, end in intervals) - self.gpu_seconds)
        if self.wall_seconds is not None:
            over.append(_union_seconds(intervals) - self.wall_seconds)
        return max(over)


def _union_seconds(intervals: Sequence[tuple[float, float]]) -> float:
    """Length of the union of intervals that are sorted by their starts."""
    total, reached = 0.0, 0.0
    for start, end in intervals:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


class Lease:
    """A worker's time, leased ahead by a thread of its own; at its end the worker has stopped, or is ended."""

    def __init__(
        self, account: TimeAccount, worker: str, lock: AbstractContextManager[object], *, expire: Callable[[], None]
    ) -> None:
        """``expire`` ends the process: it is called where a worker has not left when its time is over."""
        self.account = account
        self._worker = worker
        self._lock = lock
        self._expire = expire
        self._start = time.time()
        self._end = self._start
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._renew()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join()
        with self._lock:
            self.account.lease(self._worker, self._start, min(self._end, time.time()))

    def open_what_was_kept(self, config: StudyConfig) -> None:
        """Go on with the hours that the search left to the confirmation."""
        account = time_account(config, self.account.storage, is_search=False)
        assert account is not None, "a lease is of a study with hours"
        self.account = account
        self._renew()

    def is_up(self) -> bool:
        """Whether the worker has to stop now."""
        return time.time() >= self._end - self.account.stop_seconds

    def _run(self) -> None:
        while not self._closed.wait(self.account.stop_seconds / 4):
            if time.time() >= self._end - 2 * self.account.stop_seconds:
                self._renew()
            if time.time() >= self._end:
                self._expire()
        self.account.storage.remove_session()

    def _renew(self) -> None:
        with self._lock:
            self._end = self.account.lease(self._worker, self._start, time.time() + self.account.slice_seconds)


def time_account(config: StudyConfig, storage: RDBStorage, *, is_search: bool) -> TimeAccount | None:
    """The hours that the search, or the whole study, may take; None if the study file names none."""
    limits = config.limits
    if limits.wall_hours is None and limits.gpu_hours is None:
        return None
    share = 1 - CONFIRM_SHARE if is_search and config.confirm.top else 1.0
    wall, gpu = (None if hours is None else 3600 * hours * share for hours in (limits.wall_hours, limits.gpu_hours))
    return TimeAccount(storage, config.name, wall, gpu)
