"""Figures of the knobs: their importance, the effect of each, and two of them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.colors
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from moesearch.config.labels import short_value
from moesearch.report.canvas import BEST, MUTED, OTHER, PAPER, heat_cell, new_figure
from moesearch.report.figures import MAX_CHARACTERS, MAX_CURVES, ROW_INCHES, row_label, style_rows
from moesearch.report.numbers import OBJECTIVES, percent
from moesearch.results.effects import Effects
from moesearch.results.importance import Importance
from moesearch.results.records import FAILURES
from moesearch.results.study import StudyResults

_SEQUENTIAL = matplotlib.colors.LinearSegmentedColormap.from_list("blues", ["#f3f7fc", "#9cc3ee", "#2f78c4", "#0b3b73"])


def importance_figure(importance: Importance) -> Figure:
    """A bar per knob."""
    shares = importance.shares
    figure, axes = new_figure(0.5 + ROW_INCHES * 1.25 * len(shares))
    rows = range(len(shares))
    axes.barh(rows, list(shares.values()), height=0.38, color=BEST)
    for row, (path, share) in enumerate(shares.items()):
        row_label(axes, row, path, f"{percent(share)}")
    axes.set_xlim(0, max([*shares.values(), 0.01]))
    style_rows(axes, len(shares), "")
    axes.set_xticks([])
    axes.grid(False)
    return figure


def effect_figure(results: StudyResults, effects: Effects, path: str) -> Figure:
    """The objective at each value of a knob: a dot per complete trial, a bar at their mean. One scale for all knobs."""
    values = effects.evened_out(path)
    levels = effects.levels[path]
    names = [name for name in levels.cat.categories if (levels == name).any()]
    is_long = _is_too_long(names)
    figure, axes = new_figure(2.55 + (0.075 * max(map(len, names)) if is_long else 0))
    for place, name in enumerate(names):
        dots = _even_sample_of(values[levels == name])
        # A fixed spread instead of a random one: the same data, the same picture.
        spread = np.linspace(-0.16, 0.16, len(dots)) if len(dots) > 1 else np.zeros(1)
        axes.scatter(place + spread, dots, s=15, color=OTHER, edgecolor=PAPER, linewidth=0.5, zorder=3)
        mean = float(values[levels == name].mean())
        axes.hlines(mean, place - 0.34, place + 0.34, color=BEST, linewidth=2.4, zorder=2)
        axes.annotate(
            f"{mean:.4f}",
            (place, mean),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            color=BEST,
            weight="bold",
            size=8,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.6, "alpha": 0.8},
            zorder=4,
        )
    axes.set_xticks(range(len(names)), [_two_lines(name) for name in names], rotation=90 if is_long else 0)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylim(*_effect_limits(effects))
    axes.set_xlabel(path)
    axes.set_ylabel(OBJECTIVES[results.config.objective])
    axes.grid(False, axis="x")
    return figure


def _two_lines(name: str) -> str:
    """The name of a range takes two lines, since four of them share the width of a figure."""
    return name.replace(" to ", "\nto ")


def _is_too_long(names: Sequence[str]) -> bool:
    """Whether names side by side under an axis would run into one another."""
    longest = max(len(line) for name in names for line in _two_lines(name).splitlines())
    return longest * len(names) > MAX_CHARACTERS - 8


def _effect_limits(effects: Effects) -> tuple[float, float]:
    """One scale for all knobs, so that their effects can be compared by eye."""
    values = np.concatenate([effects.evened_out(path).to_numpy() for path in effects.varied])
    low, high = float(values.min()), float(values.max())
    room = max(0.1 * (high - low), 1e-4)
    return low - room, high + 2 * room  # names of the means stand above them


def pair_figure(results: StudyResults, effects: Effects, row_path: str, column_path: str) -> Figure:
    """Mean objective at each pair of values of two knobs, darker is lower; a number and a count in each cell."""
    values = effects.evened_out(row_path, column_path)
    rows, columns = (effects.levels[path] for path in (row_path, column_path))
    means = pd.crosstab(rows, columns, values=values, aggfunc="mean", dropna=False)
    counts = pd.crosstab(rows, columns, dropna=False)
    is_long = _is_too_long([str(name) for name in means.columns])
    figure, axes = new_figure(0.85 + 0.5 * len(means) + (0.075 * max(map(len, means.columns)) if is_long else 0))
    low, high = float(np.nanmin(means)), float(np.nanmax(means))
    shade = matplotlib.colors.Normalize(low, high if high > low else low + 1)
    for y, row in enumerate(means.index):
        for x, column in enumerate(means.columns):
            mean = means.loc[row, column]
            if pd.isna(mean):
                why = _why_empty(results, {row_path: row, column_path: column})
                axes.text(x, y, why, ha="center", va="center", color=MUTED, size=7.5)
                continue
            colour = _SEQUENTIAL(1 - shade(mean))
            ink = heat_cell(axes, x, y, colour, "")
            axes.text(x, y - 0.1, f"{mean:.4f}", ha="center", va="center", color=ink, weight="bold")
            axes.text(x, y + 0.27, f"n = {counts.loc[row, column]}", ha="center", va="center", color=ink, size=7)
    axes.set_xlim(-0.5, len(means.columns) - 0.5)
    axes.set_ylim(len(means) - 0.5, -0.5)
    names = [_two_lines(name) for name in means.columns]
    axes.set_xticks(range(len(names)), names, rotation=90 if is_long else 0)
    axes.set_yticks(range(len(means)), [_two_lines(name) for name in means.index])
    axes.set_xlabel(column_path)
    axes.set_ylabel(row_path)
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0)
    return figure


def _why_empty(results: StudyResults, pair: Mapping[str, str]) -> str:
    """Why a pair of values has no complete trial."""
    trials = results.trials
    tried = np.logical_and.reduce([trials[path].map(short_value) == value for path, value in pair.items()])
    outcomes = set(trials.loc[tried, "outcome"])
    for outcome in ("pruned", "running", *FAILURES):
        if outcome in outcomes:
            return outcome.replace("_", " ")
    return "not tried"


def _even_sample_of(values: pd.Series[float]) -> pd.Series[float]:
    """At most ``MAX_CURVES`` values, evenly over their order, both ends in."""
    if len(values) <= MAX_CURVES:
        return values
    ordered = values.sort_values()
    return ordered.iloc[np.linspace(0, len(ordered) - 1, MAX_CURVES).astype(int)]
