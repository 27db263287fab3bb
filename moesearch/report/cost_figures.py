"""Figures of loss against what it costs, and the front of what nothing beats in both."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moesearch.report.canvas import BASE, BEST, INK, MUTED, OTHER, PAPER, PRUNED, new_figure
from moesearch.report.figures import count_axis
from moesearch.report.numbers import OBJECTIVES
from moesearch.results.study import StudyResults
from moesearch.results.verdict import Candidate, Verdict


def cost_figure(results: StudyResults, column: str, label: str) -> Figure:
    """Objective against a cost, one dot per configuration, with the front of those that nothing beats in both.

    Where configurations were confirmed, they alone are on the front, at their means: the search's values are at another
    learning rate, and chosen. Those are pale then.
    """
    searched = results.ranking[(results.ranking["num_seeds"] > 0) & results.ranking[column].notna()]
    confirmed = confirmed_places(results, column)
    figure, axes = new_figure(2.75)
    places = searched[[column, "value"]].astype(float).to_numpy()
    axes.scatter(
        places[:, 0], places[:, 1], s=20, color=PRUNED if confirmed else OTHER, alpha=0.9, linewidth=0, zorder=2
    )
    marked = confirmed or _search_places(results, searched, column)
    for candidate, place in marked:
        _mark(axes, place, candidate, results.verdict)
    on_front = np.array([place for _, place in marked] if confirmed else places).reshape(-1, 2)
    costs, values = on_front.T
    front = pareto_front(costs, values)
    axes.step(costs[front], values[front], where="post", color=MUTED, linewidth=1, linestyle=(0, (3, 2)), zorder=1)
    every_cost = np.concatenate([places[:, 0], costs])
    if len(every_cost) and every_cost.max() > 4 * every_cost.min() > 0:
        axes.set_xscale("log")
    axes.margins(x=0.14, y=0.18)
    axes.set_xlabel(label)
    axes.set_ylabel(OBJECTIVES[results.config.objective])
    count_axis(axes)
    return figure


def confirmed_places(results: StudyResults, column: str) -> list[tuple[Candidate, tuple[float, float]]]:
    """Cost of each confirmed configuration, and its mean objective over confirmation runs; empty without any."""
    if results.verdict.conclusion in ("unconfirmed", "nothing"):
        return []
    costs = results.costs[column]
    ranking = results.verdict.ranking
    places = [(candidate, (float(costs[candidate.fingerprint]), candidate.mean)) for candidate in ranking]
    return [(candidate, place) for candidate, place in places if np.isfinite(place[0])]


def _search_places(
    results: StudyResults, searched: pd.DataFrame, column: str
) -> list[tuple[Candidate, tuple[float, float]]]:
    """Best and baseline as the search has them, while nothing is confirmed."""
    rows = searched.set_index("fingerprint")
    told_apart = [each for each in results.verdict.ranking if each.is_baseline or each is results.verdict.best]
    return [
        (each, (float(rows[column][each.fingerprint]), float(rows["value"][each.fingerprint])))
        for each in told_apart
        if each.fingerprint in rows.index
    ]


def _mark(axes: Axes, place: tuple[float, float], candidate: Candidate, verdict: Verdict) -> None:
    """A configuration that is told apart, with what it is beside it."""
    is_best = candidate is verdict.best
    names = {"best": is_best, "baseline": candidate.is_baseline, "dense": candidate.is_control}
    marker = "^" if candidate.is_control else "s" if candidate.is_baseline else "o"
    colour = BEST if is_best else BASE if candidate.is_baseline else INK if candidate.is_control else OTHER
    axes.scatter(*place, s=52, color=colour, marker=marker, edgecolor=PAPER, linewidth=1, zorder=3)
    axes.annotate(
        ", ".join(name for name, applies in names.items() if applies),
        place,
        # The best is low, so the room is below it; most others stand below the baseline.
        xytext=(0, -7 if is_best else 7),
        textcoords="offset points",
        ha="center",
        va="top" if is_best else "bottom",
        color=colour,
        weight="bold",
        zorder=4,
    )


def pareto_front(costs: np.ndarray, values: np.ndarray) -> list[int]:
    """Indices of the points that no other one beats or equals in both cost and value, cheapest first."""
    front: list[int] = []
    for index in np.lexsort((values, costs)):
        if not front or values[index] < values[front[-1]]:
            front.append(int(index))
    return front
