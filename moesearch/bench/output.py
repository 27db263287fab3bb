"""The bench's figures as a table for a person and as an object for a program."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from moesearch.bench.figures import Figure


@dataclass(frozen=True)
class Facts:
    """Where and how the figures were measured."""

    device: str
    device_name: str
    threads: int
    torch: str
    is_quick: bool
    seconds: float
    """Wall time of the whole bench."""


def name_of_device(device: str) -> str:
    """The card's or the processor's name, as its maker or the kernel gives it."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else f"CPU ({torch.backends.cpu.get_cpu_capability()})"


def as_object(figures: Iterable[Figure], facts: Facts) -> dict[str, object]:
    """One flat JSON object: a number and a spread (quartiles) per figure, then marks, parts and facts."""
    figures = list(figures)
    result: dict[str, object] = {}
    for figure in figures:
        result[figure.key] = figure.spread.median
        result[f"{figure.key}_spread"] = [figure.spread.low, figure.spread.high]
    result["marks"] = {
        figure.key: {"mark": str(figure.mark), "is_met": figure.is_met} for figure in figures if figure.mark is not None
    }
    result["parts"] = {figure.key: dict(figure.parts) for figure in figures}
    return result | asdict(facts)


def as_table(figures: Sequence[Figure], facts: Facts) -> str:
    """Aligned lines: what, ratio, quartiles, mark, whether it is met, and what the ratio is made of."""
    header = ("", "", "ratio", "quartiles", "good is", "", "measured")
    rows = [header, *(_row(figure) for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", _footer(figures, facts)])


def _row(figure: Figure) -> tuple[str, ...]:
    spread = figure.spread
    verdict = {True: "met", False: "MISSED", None: ""}[figure.is_met]
    return (
        f"({figure.case})",
        figure.title,
        f"{spread.median:5.2f}",
        f"{spread.low:.2f} to {spread.high:.2f}",
        "" if figure.mark is None else str(figure.mark),
        verdict,
        figure.detail,
    )


def _footer(figures: Sequence[Figure], facts: Facts) -> str:
    verdicts = [figure.is_met for figure in figures if figure.is_met is not None]
    how = "quick: rough, " if facts.is_quick else ""
    threads = f"{facts.threads} thread" + ("s" if facts.threads != 1 else "")
    return (
        f"{sum(verdicts)} of {len(verdicts)} marks met on {facts.device_name} ({facts.device}, {threads}), "
        f"torch {facts.torch}; {how}{facts.seconds:.0f} s"
    )
