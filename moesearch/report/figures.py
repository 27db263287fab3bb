"""The figures of a report. Each is one drawing of one fact; losses have honest, unbroken axes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from moesearch.config.quantities import Loss
from moesearch.report.canvas import BASE, BEST, INK, MUTED, OTHER, PAPER, PRUNED, new_figure
from moesearch.report.numbers import OBJECTIVES, compact, percent
from moesearch.results.compute import Compute
from moesearch.results.study import StudyResults
from moesearch.results.verdict import Verdict

MAX_CURVES = 200
"""Curves and dots of one figure; more are a blot, and heavy. A larger study shows an even sample."""
ROW_INCHES = 0.34
# A dozen configurations, labelled, is what one looks at; the rest is in the table and in trials.csv.
MAX_ROWS = 12
MAX_CHARACTERS = 52
"""Of a line of a figure, in its letters."""
MAX_LINES = 3
"""Of a name in a figure: a configuration of ten knobs has a long one."""


def ranking_figure(results: StudyResults) -> Figure:
    """Mean and interval of each compared configuration, its seeds as dots, what the search had said as a diamond."""
    verdict = results.verdict
    candidates = verdict.ranking[:MAX_ROWS]
    is_confirmed = verdict.conclusion not in ("unconfirmed", "nothing")
    runs = results.confirm if is_confirmed else results.trials
    runs = runs[runs["outcome"] == "complete"]
    figure, axes = new_figure(rows_height([f"{each.label}, baseline" for each in candidates]))
    for row, candidate in enumerate(candidates):
        colour = BEST if row == 0 else BASE if candidate.is_baseline else OTHER
        losses = runs.loc[runs["fingerprint"] == candidate.fingerprint, results.config.curve]
        size, alpha = (14, 0.55) if is_confirmed else (30, 0.9)
        axes.scatter(losses, [row] * len(losses), s=size, color=colour, alpha=alpha, linewidth=0, zorder=3)
        if candidate.low is not None and candidate.high is not None:
            axes.hlines(row, candidate.low, candidate.high, color=colour, linewidth=2.2, zorder=2)
            axes.vlines(candidate.mean, row - 0.16, row + 0.16, color=colour, linewidth=2.2, zorder=4)
            if candidate.search_value is not None:
                axes.scatter(
                    candidate.search_value,
                    row,
                    s=26,
                    marker="D",
                    facecolor=PAPER,
                    edgecolor=colour,
                    linewidth=1,
                    zorder=5,
                )
        suffix = ", baseline" if candidate.is_baseline else ""
        row_label(axes, row, f"{candidate.label}{suffix}", f"{candidate.mean:.4f}", bold=row == 0)
    style_rows(
        axes, len(candidates), f"{OBJECTIVES[results.config.objective]}{'' if is_confirmed else ', in the search'}"
    )
    return figure


def differences_figure(verdict: Verdict) -> Figure:
    """Extra loss of each other configuration against the best, with its corrected interval, and zero."""
    comparisons = verdict.comparisons[:MAX_ROWS]
    names = [f"{other.label}, baseline" for other in comparisons]
    figure, axes = new_figure(rows_height(names, "+0.0000, not shown"))
    axes.axvline(0, color=INK, linewidth=1)
    for row, other in enumerate(comparisons):
        colour = BASE if other.is_baseline else OTHER
        axes.hlines(row, other.low, other.high, color=colour, linewidth=2.2, zorder=2)
        face = colour if other.is_shown else PAPER
        axes.scatter(other.difference, row, s=34, facecolor=face, edgecolor=colour, linewidth=1.5, zorder=3)
        suffix = ", baseline" if other.is_baseline else ""
        said = "" if other.is_shown else ", not shown"
        row_label(axes, row, f"{other.label}{suffix}", f"+{other.difference:.4f}{said}")
    style_rows(axes, len(comparisons), f"extra {verdict.unit} against the best")
    return figure


def curves_figure(results: StudyResults, highlighted: int | None = None) -> Figure:
    """Validation loss over training tokens: complete trials, pruned ones in grey with a cross where they stopped.

    One trial stands out, by its number; without it the best and the baseline do.
    """
    trials = results.trials.set_index("number")
    objective = results.config.curve
    curves = results.curves[np.isfinite(results.curves[objective]) & results.curves["tokens"].notna()]
    outcomes = trials["outcome"].reindex(curves["number"]).to_numpy()
    figure, axes = new_figure(3.3)
    for outcome, colour, width in (("pruned", PRUNED, 0.9), ("running", OTHER, 0.9), ("complete", OTHER, 0.9)):
        group = _even_sample(curves[outcomes == outcome])
        lines = [line[["tokens", objective]].astype(float).to_numpy() for _, line in group.groupby("number")]
        axes.add_collection(LineCollection(lines, colors=colour, linewidths=width, alpha=0.9, label=outcome))
        if outcome == "pruned" and lines:
            ends = np.array([line[-1] for line in lines])
            axes.scatter(ends[:, 0], ends[:, 1], marker="x", s=16, color=MUTED, linewidth=1, zorder=3)
    shown = np.isin(outcomes, ["complete", "pruned", "running"])
    low, high = _loss_limits(curves["milestone"][shown], curves[objective][shown])
    told_apart = highlighted_trials(results) if highlighted is None else [(highlighted, f"trial {highlighted}", BEST)]
    for number, name, colour in told_apart:
        line = curves[curves["number"] == number]
        if line.empty or line[objective].min() > high:  # It was stopped before the axis begins.
            continue
        axes.plot(line["tokens"].astype(float), line[objective], color=colour, linewidth=2.2, label=name, zorder=4)
    axes.autoscale_view()
    axes.set_ylim(low, high)
    axes.set_xlim(left=0)
    axes.set_xlabel("training tokens")
    axes.set_ylabel(OBJECTIVES[objective])
    count_axis(axes)
    handles, names = axes.get_legend_handles_labels()
    seen = set(outcomes) | {name for _, name, _ in told_apart}
    kept = [(handle, name) for handle, name in zip(handles, names, strict=True) if name in seen]
    axes.legend([handle for handle, _ in kept], [name for _, name in kept], labelcolor=INK, loc="upper right")
    return figure


def best_curves_figure(studies: Sequence[StudyResults], loss: Loss) -> Figure:
    """A loss over training tokens of the best trial of each study."""
    figure, axes = new_figure(3.3)
    styles = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1, 2)))
    drawn: list[pd.DataFrame] = []
    for index, results in enumerate(studies):
        if results.ranking.empty:
            continue
        line = results.curves[results.curves["number"] == results.ranking["best_number"].iloc[0]]
        line = line[np.isfinite(line[loss].astype(float))]
        drawn.append(line)
        axes.plot(
            line["tokens"].astype(float),
            line[loss],
            color=(BEST, BASE, OTHER, INK)[index % 4],
            linestyle=styles[index // 4 % 4],
            linewidth=1.8,
            label=results.name,
        )
    if drawn:
        lines = pd.concat(drawn)
        axes.set_ylim(*_loss_limits(lines["milestone"], lines[loss]))
        axes.legend(labelcolor=INK, loc="upper right")
    axes.set_xlim(left=0)
    axes.set_xlabel("training tokens")
    axes.set_ylabel(OBJECTIVES[loss])
    count_axis(axes)
    return figure


def compute_figure(compute: Compute) -> Figure:
    """Training FLOPs by what became of them, and what pruning saved, hatched."""
    bars = [(spending.group, spending.num_trials, spending.active_flops) for spending in compute.spendings]
    total = sum(flops for _, _, flops in bars) or 1.0
    figure, axes = new_figure(0.5 + ROW_INCHES * 1.25 * (len(bars) + bool(compute.saved_flops)))
    for row, (group, count, flops) in enumerate(bars):
        axes.barh(row, flops, height=0.38, color=PRUNED if group == "pruned" else BEST)
        trials = "trial" if count == 1 else "trials"
        row_label(axes, row, f"{group}, {count:,} {trials}", f"{compact(flops)} FLOPs, {percent(flops / total)}")
    if compute.saved_flops:
        row = len(bars)
        axes.barh(row, compute.saved_flops, height=0.38, facecolor=PAPER, edgecolor=MUTED, hatch="////", linewidth=0.8)
        row_label(axes, row, "saved by pruning", f"{compact(compute.saved_flops)} FLOPs never spent")
    axes.set_xlim(0, max([flops for _, _, flops in bars] + [compute.saved_flops, 1.0]))
    style_rows(axes, len(bars) + bool(compute.saved_flops), "")
    axes.set_xticks([])
    axes.grid(False)
    return figure


def style_rows(axes: Axes, count: int, label: str) -> None:
    """A list of rows, first on top, named above their marks so that the names take no width."""
    axes.set_ylim(count - 0.6, -0.85)
    axes.set_yticks([])
    axes.grid(False, axis="y")
    axes.margins(x=0.06)
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.spines["bottom"].set_visible(bool(label))


def row_label(axes: Axes, row: int, name: str, value: str, *, bold: bool = False) -> None:
    weight = "bold" if bold else "normal"
    ground = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.8}  # over the grid's lines
    lines = wrapped_name(name, value)
    for x, side, text in ((0, "left", "\n".join(lines)), (1, "right", value)):
        label = axes.annotate(
            text,
            (x, row),
            xycoords=axes.get_yaxis_transform(),
            xytext=(0, 10),
            textcoords="offset points",
            va="bottom",
            ha=side,
            color=INK,
            weight=weight,
            bbox=ground,
        )
        label.set_in_layout(False)  # It is within the figure by its length; the layout would make room for it anew.


def wrapped_name(name: str, value: str) -> list[str]:
    """A name in lines that leave room for the value beside it, at most MAX_LINES; the rest of it is in the table."""
    return textwrap.wrap(
        name, MAX_CHARACTERS - len(value), max_lines=MAX_LINES, placeholder=" \N{HORIZONTAL ELLIPSIS}"
    ) or [name]


def rows_height(names: Sequence[str], value: str = "0.0000") -> float:
    """Inches of a figure with a row for each of these names."""
    lines = max((len(wrapped_name(name, value)) for name in names), default=1)
    return 0.75 + (1.35 * ROW_INCHES + 0.14 * (lines - 1)) * len(names)


def count_axis(axes: Axes) -> None:
    """Counts along the horizontal axis, as ``8.99 M``."""
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: compact(count)))
    if axes.get_xscale() == "linear":
        axes.xaxis.set_major_locator(MaxNLocator(5))
    else:
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda count, _: _minor_label(axes, count)))


def _minor_label(axes: Axes, count: float) -> str:
    """Within less than two decades a log axis would else show one label or none."""
    low, high = axes.get_xlim()
    leading = f"{count:e}"[0]
    return compact(count) if leading in ("2", "5") and high / low < 50 else ""


def _loss_limits(milestones: pd.Series[Any], losses: pd.Series[Any]) -> tuple[float, float]:
    """From the lowest loss to the highest of the second milestone: the fall from chance would flatten all the rest.

    While the curves are short, that fall is what there is to see.
    """
    if losses.empty:
        return 0.0, 1.0
    low = float(losses.min())
    first = 2 if milestones.max() > 3 else 1
    high = float(losses[milestones >= first].max())
    room = max(0.05 * (high - low), 0.01)
    return low - room, high + room


def highlighted_trials(results: StudyResults) -> Sequence[tuple[int, str, str]]:
    """Trial number, name and colour of the curves that are told apart: of the best that the search has, the baseline.

    The dense control is no configuration of the search, so where it is best the next one stands for the search.
    """
    ranking = results.ranking.set_index("fingerprint")
    wanted = {results.baseline_fingerprint: ("baseline", BASE)}
    found = [each for each in results.verdict.ranking if each.fingerprint in ranking.index]
    if found:
        is_best = found[0] is results.verdict.best
        wanted[found[0].fingerprint] = ("best" if is_best else "best with experts", BEST)
    return [
        (int(ranking["best_number"][fingerprint]), name, colour)
        for fingerprint, (name, colour) in wanted.items()
        if fingerprint in ranking.index
    ]


def _even_sample(curves: pd.DataFrame) -> pd.DataFrame:
    numbers = curves["number"].unique()
    if len(numbers) <= MAX_CURVES:
        return curves
    return curves[curves["number"].isin(numbers[:: -(-len(numbers) // MAX_CURVES)])]
