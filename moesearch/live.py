"""What a study shows of itself while it runs: its report, built again and again, and the load of this machine."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from moesearch.errors import MoesearchError, TrackingError

if TYPE_CHECKING:
    from moesearch.search.order import WorkOrder

FIRST_SECONDS = 20.0
PAUSE_PER_BUILD = 40.0
"""Seconds of pause for each second that the last report took: at most 2.5 % of one core go into reports."""
LEAVE_SECONDS = 30.0

_logger = logging.getLogger(__name__)


class LiveViews:
    """A thread that keeps them; whatever goes wrong with one costs that view, never the study."""

    def __init__(self, order: WorkOrder, reports: Path) -> None:
        self._order = order
        self._reports = reports
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live views", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(LEAVE_SECONDS)

    def _run(self) -> None:
        # A study that ends before anyone could look needs neither.
        if self._stop.wait(FIRST_SECONDS):
            return
        with ExitStack() as stack:
            try:
                self._watch_machine(stack)
            except TrackingError as error:
                _logger.warning("%s; the machine's load is not recorded", error)
            self._rebuild_until_stopped()

    def _watch_machine(self, stack: ExitStack) -> None:
        from moesearch.tracking.mlflow import MLflowTracker, prepare

        if self._order.tracking_uri is not None:
            prepare(self._order.tracking_uri)  # a worker may just be creating it
            tracker = MLflowTracker(self._order.tracking_uri, self._order.config.name, self._order.artifacts)
            stack.enter_context(tracker.machine_metrics())

    def _rebuild_until_stopped(self) -> None:
        from sqlalchemy import make_url

        from moesearch.report.build import build_report
        from moesearch.results.overview import opened_to_read

        pause = 0.0
        while not self._stop.wait(pause):
            started = time.monotonic()
            try:
                with opened_to_read(make_url(self._order.storage_url)) as storage:
                    build_report(storage, self._order.config.name, self._reports)
            except (OSError, MoesearchError) as error:
                _logger.warning("the report is not rebuilt while the study runs: %s", error)
                return
            pause = PAUSE_PER_BUILD * (time.monotonic() - started)
