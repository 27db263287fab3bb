"""The live display of a run: tables that update on a terminal, a few plain lines anywhere else.

It writes to standard error, so that standard output is left to results.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from moesearch.snapshots import (
    Leader,
    RunningTrial,
    Snapshot,
    counts,
    estimate_seconds_left,
    plain_line,
    progress,
    progress_text,
    times_text,
)

__all__ = ["Leader", "LiveDisplay", "RunningTrial", "Snapshot", "estimate_seconds_left", "frame"]

WIDE_COLUMNS = 110
"""From this width on, leaders and running trials stand side by side."""
MAX_LEADERS = 5
MAX_RUNNING = 8
# How soon one plain line may follow another: when trials have ended in between, and when they have only come further.
NEWS_SECONDS = 10.0
STILL_SECONDS = 60.0


class LiveDisplay:
    """Shows snapshots of a study while the block runs: ``with LiveDisplay() as display: display.update(…)``.

    A terminal gets tables that update, with colours unless NO_COLOR is set; anything else gets a line now and then.
    ``quiet`` leaves only warnings.
    """

    def __init__(
        self, *, quiet: bool = False, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        stream = sys.stderr if stream is None else stream
        is_terminal = stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")
        self._quiet = quiet
        self._clock = clock
        self._console = Console(file=stream, force_terminal=is_terminal, highlight=False, soft_wrap=not is_terminal)
        self._snapshot: Snapshot | None = None
        self._received = 0.0
        self._ended: float | None = None
        self._live: Live | None = None
        self._plain: _PlainLines | None = None
        if is_terminal and not quiet:
            self._live = Live(get_renderable=self._frame, console=self._console, refresh_per_second=2)
        elif not quiet:
            self._plain = _PlainLines(self._print)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended = self._clock()
        if self._plain is not None:
            self._plain.end()
        if self._live is not None:
            self._live.stop()

    def update(self, snapshot: Snapshot) -> None:
        """Show a new state; the clock runs on by itself between updates."""
        self._snapshot, self._received = snapshot, self._clock()
        if self._plain is not None:
            self._plain.update(snapshot, self._received)

    def note(self, text: str) -> None:
        """A line that stays, above the tables."""
        if not self._quiet:
            self._print(text)

    def warn(self, text: str) -> None:
        """A line that stays, however quiet."""
        self._print(f"warning: {text}")

    def _print(self, text: str) -> None:
        for line in text.splitlines():
            self._console.print(_words(line))

    def _frame(self) -> RenderableType:
        if self._snapshot is None:
            return Text("starting")
        is_over = self._ended is not None
        waited = (self._clock() if self._ended is None else self._ended) - self._received
        return frame(self._snapshot, waited, self._console.width, self._console.height, is_over=is_over)


class _PlainLines:
    """One line whenever trials have ended, at most one in ten seconds; fewer while they only come further."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._written: Snapshot | None = None
        self._written_at = 0.0
        self._latest: Snapshot | None = None

    def update(self, snapshot: Snapshot, now: float) -> None:
        self._latest = snapshot
        waited = now - self._written_at
        if (
            self._written is None
            or snapshot.phase != self._written.phase
            or (_news(snapshot) != _news(self._written) and waited >= NEWS_SECONDS)
            or (snapshot.running != self._written.running and waited >= STILL_SECONDS)
        ):
            self._write_line(snapshot)
            self._written_at = now

    def end(self) -> None:
        if self._latest is not None and (self._written is None or _news(self._latest) != _news(self._written)):
            self._write_line(self._latest)

    def _write_line(self, snapshot: Snapshot) -> None:
        self._written = snapshot
        self._write(plain_line(snapshot))


def _news(snapshot: Snapshot) -> tuple[object, ...]:
    return (*counts(snapshot), snapshot.confirmed, snapshot.best)


def frame(
    snapshot: Snapshot, waited_seconds: float, columns: int, rows: int, *, is_over: bool = False
) -> RenderableType:
    """One picture of the live display for a terminal of this size.

    ``waited_seconds`` is the snapshot's age. What stays on the terminal once all is over makes no forecast.
    """
    is_wide = columns >= WIDE_COLUMNS
    num_leaders, num_running = _shares(snapshot, rows, is_wide)
    tables: list[RenderableType] = []
    if num_leaders:
        tables.append(_leaders(snapshot, num_leaders))
    if num_running:
        tables.append(_running(snapshot, num_running))
    if is_wide and len(tables) == 2:
        both = Table.grid(expand=True, padding=(0, 2))
        both.add_column(ratio=1)
        both.add_column(ratio=1)
        both.add_row(*tables)
        tables = [both]
    spaced = [part for table in tables for part in (Text(), table)]
    times = times_text(snapshot, waited_seconds, is_over=is_over)
    return Group(_headline(snapshot, times), _progress_bar(snapshot), *spaced)


def _shares(snapshot: Snapshot, rows: int, is_wide: bool) -> tuple[int, int]:
    """Lines for leaders and for running trials that fit, since what is too high for a terminal cannot update."""
    leaders, running = min(len(snapshot.leaders), MAX_LEADERS), min(len(snapshot.running), MAX_RUNNING)
    # Two lines of progress, the cursor's line, and a blank line and a heading above each table.
    room = rows - (5 if is_wide else 7)
    if is_wide:
        return min(leaders, max(room, 1)), min(running, max(room, 1))
    leaders = min(leaders, max(room - min(running, room // 2), 1))
    return leaders, min(running, max(room - leaders, 0))


def _headline(snapshot: Snapshot, times: str) -> Table:
    line = Table.grid(expand=True)
    line.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    line.add_column(justify="right", no_wrap=True)
    line.add_row(_words(snapshot.study_name, "bold"), Text(times, "dim"))
    return line


def _progress_bar(snapshot: Snapshot) -> Table:
    done, of = progress(snapshot)
    line = Table.grid(expand=True, padding=(0, 2, 0, 0))
    line.add_column(ratio=1)
    line.add_column(no_wrap=True)
    numbers = Text("  ".join(counts(snapshot)), style="dim")
    line.add_row(_bar(done, of), Text.assemble(progress_text(snapshot), "  ", numbers))
    return line


def _bar(done: int, of: int) -> ProgressBar:
    return ProgressBar(total=max(of, 1), completed=done, complete_style="cyan", finished_style="green")


def _leaders(snapshot: Snapshot, num: int) -> Table:
    table = _table()
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("best so far", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column(snapshot.objective, justify="right", no_wrap=True)
    table.add_column("behind", justify="right", no_wrap=True, min_width=7)
    for rank, leader in enumerate(snapshot.leaders[:num]):
        behind = "" if rank == 0 else f"+{leader.value - snapshot.leaders[0].value:.4f}"
        style = "bold green" if rank == 0 else ""
        number, value = Text(f"#{leader.number}", style), Text(f"{leader.value:.4f}", style)
        table.add_row(number, _words(leader.label, style), value, behind)
    return table


def _running(snapshot: Snapshot, num: int) -> Table:
    table = _table()
    hidden = len(snapshot.running) - num
    table.add_column("", justify="right", no_wrap=True)
    table.add_column(f"running ({hidden} more)" if hidden else "running", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("", width=12)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column(snapshot.objective, justify="right", no_wrap=True, min_width=8)
    # The nearest to their ends first: those are the next news.
    nearest = sorted(snapshot.running, key=lambda trial: (-trial.milestone / trial.num_milestones, trial.number))
    for trial in nearest[:num]:
        loss = "" if trial.value is None else f"{trial.value:.4f}"
        bar = _bar(trial.milestone, trial.num_milestones)
        progress = f"{trial.milestone}/{trial.num_milestones}"
        table.add_row(f"#{trial.number}", _words(trial.label), bar, progress, loss)
    return table


def _table() -> Table:
    return Table(box=None, expand=True, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")


def _words(text: str, style: str = "") -> Text:
    """Text as it is: no markup in a name is obeyed, and no control character reaches the terminal."""
    return Text("".join(character if character.isprintable() else "�" for character in text), style=style)
