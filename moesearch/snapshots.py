"""What a person sees of a study while it runs, and how it is put into words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, assert_never

Phase = Literal["search", "confirm", "report"]


@dataclass(frozen=True)
class RunningTrial:
    """A trial at work; ``value``, the objective, is None before its first milestone."""

    number: int
    label: str
    milestone: int
    num_milestones: int
    value: float | None


@dataclass(frozen=True)
class Leader:
    """A complete trial; ``value`` is the objective, lower is better."""

    number: int
    label: str
    value: float


@dataclass(frozen=True)
class Snapshot:
    """All that the display shows of a study."""

    study_name: str
    objective: str
    phase: Phase
    num_trials: int
    """Finished trials that the search is to reach."""
    complete: int
    pruned: int
    infeasible: int
    failed: int
    running: tuple[RunningTrial, ...]
    leaders: tuple[Leader, ...]
    """Best first."""
    elapsed_seconds: float
    seconds_left: float | None
    """See ``estimate_seconds_left``; None while there is nothing to go by."""
    confirmed: int = 0
    num_confirm_runs: int = 0

    @property
    def finished(self) -> int:
        return self.complete + self.pruned

    @property
    def best(self) -> Leader | None:
        return self.leaders[0] if self.leaders else None


def estimate_seconds_left(
    ended_seconds: Sequence[float], num_to_start: int, running_fractions: Sequence[float], num_workers: int
) -> float | None:
    """How long a study still takes, going by the trials that have ended.

    The mean includes pruned trials in the proportion in which they come, since trials to come will be pruned as well.
    No worker can be faster than the trial that it has, so the end is no nearer than the longest of those.

    Args:
        ended_seconds: durations of the trials that have ended, complete or pruned.
        num_to_start: trials that nobody has begun.
        running_fractions: how far each running trial is, 0 to 1.
        num_workers: trials that run at once.
    """
    if not ended_seconds:
        return None
    mean = fmean(ended_seconds)
    rests = [mean * (1 - fraction) for fraction in running_fractions]
    return max((mean * num_to_start + sum(rests)) / num_workers, max(rests, default=0.0))


def clock_text(seconds: float) -> str:
    """A duration as ``4:12`` or ``1:04:12``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def left_text(seconds: float | None) -> str:
    """An estimate, no finer than it deserves: ``about 40 s left``, ``about 7 min left``, ``about 2 h 10 min left``."""
    if seconds is None:
        return "time left unknown yet"
    if seconds < 5:
        return "a few seconds left"
    if seconds < 55:
        return f"about {max(10, round(seconds, -1)):.0f} s left"
    if seconds < 3570:
        return f"about {seconds / 60:.0f} min left"
    hours, tens = divmod(round(seconds / 600), 6)
    return f"about {hours} h {tens}0 min left" if tens else f"about {hours} h left"


def plain_line(snapshot: Snapshot) -> str:
    """A snapshot in one line."""
    parts = [progress_text(snapshot), ", ".join(counts(snapshot))]
    if (best := snapshot.best) is not None:
        parts.append(f"best {snapshot.objective} {best.value:.4f} ({best.label} #{best.number})")
    if snapshot.running:
        parts.append(f"{len(snapshot.running)} running")
    parts.append(times_text(snapshot))
    return f"{snapshot.study_name}: {'; '.join(part for part in parts if part)}"


def times_text(snapshot: Snapshot, waited_seconds: float = 0.0, *, is_over: bool = False) -> str:
    """Time since the start and time left, so long after the snapshot. The last steps have no forecast."""
    text = f"{clock_text(snapshot.elapsed_seconds + waited_seconds)} elapsed"
    if is_over or snapshot.phase == "report":
        return text
    left = None if snapshot.seconds_left is None else max(snapshot.seconds_left - waited_seconds, 0.0)
    return f"{text}, {left_text(left)}"


def progress_text(snapshot: Snapshot) -> str:
    """What the study is at, in a few words."""
    done, of = progress(snapshot)
    match snapshot.phase:
        case "search":
            return f"{done}/{of} trials"
        case "confirm":
            return f"confirming, {done}/{of} runs"
        case "report":
            return "testing the winner, writing the report"
        case _:
            assert_never(snapshot.phase)


def progress(snapshot: Snapshot) -> tuple[int, int]:
    """Done, and to be done in all, in the present phase."""
    if snapshot.phase == "confirm":
        return snapshot.confirmed, snapshot.num_confirm_runs
    return snapshot.finished, snapshot.num_trials


def counts(snapshot: Snapshot) -> list[str]:
    """How many trials ended how: ``["9 complete", "3 pruned"]``, without what is zero."""
    by_name = {
        "complete": snapshot.complete,
        "pruned": snapshot.pruned,
        "infeasible": snapshot.infeasible,
        "failed": snapshot.failed,
    }
    return [f"{count} {name}" for name, count in by_name.items() if count]
