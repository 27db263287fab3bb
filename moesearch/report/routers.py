"""Router health: which experts the best configuration uses, how that came about, and how the others fare."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from moesearch.config.quantities import RouterQuantity
from moesearch.report.blocks import Block, Gallery, Picture, Section, Table, Text
from moesearch.report.canvas import INK, MUTED, OTHER, PRUNED, heat_cell, new_figure
from moesearch.report.figures import count_axis, highlighted_trials
from moesearch.report.numbers import MISSING, exact
from moesearch.results.frames import last_point
from moesearch.results.study import StudyResults

MAX_TABLE_ROWS = 12
MAX_EXPERTS_NAMED = 16
"""Cells of a heat map that still have room for a number."""
_DIVERGING = matplotlib.colormaps["RdBu_r"]

_SHOWN: dict[RouterQuantity, str] = {
    "load_entropy": "load entropy",
    "max_vio": "MaxVio",
    "dead_experts": "dead experts",
    "dropped_fraction": "dropped",
    "router_entropy": "router entropy",
    "top1_probability": "top-1 prob.",
    "router_logit_rms": "logit size",
}


def routers_section(results: StudyResults) -> Section | None:
    """Load heat map of the best configuration, load entropy over training, and a table of the leaders."""
    curves = results.curves[results.curves["load_entropy"].notna()]
    if curves.empty or results.ranking.empty:
        return None
    best = int(results.ranking["best_number"].iloc[0])
    label = str(results.ranking["label"].iloc[0])
    pictures: list[Picture] = []
    loads = layer_loads(results, best)
    if loads:
        dead = exact(curves[curves["number"] == best]["dead_experts"].iloc[-1])
        described = f"Load of each expert of {label} in {len(loads)} layers, in fair shares; {dead} dead experts"
        caption = (
            f"{label}, trial {best}, on the validation split. 1 is the fair share; blue has less, red more. An expert "
            "under 0.01 of it counts as dead."
        )
        pictures.append(Picture("load", "Load of each expert", load_figure(loads), described, caption, in_summary=True))
    described = "Load entropy over training tokens of all trials, 1 at perfect balance"
    caption = "Of the least balanced layer. 1: every expert has the fair share. 0: one expert has everything."
    picture = Picture("load_entropy", "Balance over training", _entropy_figure(results), described, caption)
    pictures.append(picture)
    blocks: list[Block] = [
        Text("How the routers use their experts, with dropout and router noise off. None of this is in the objective."),
        Gallery(tuple(pictures)),
        _table(results),
    ]
    return Section("routers", "Routers", "Router health", tuple(blocks))


def layer_loads(results: StudyResults, number: int) -> list[Sequence[float]]:
    """Per MoE layer the load of each expert at a trial's last milestone; empty where it was not kept."""
    health = last_point(results.trial(number)).get("router_health") or {}
    return [layer["load"] for layer in health.get("layers", ())]


def load_figure(loads: Sequence[Sequence[float]]) -> Figure:
    """A row per MoE layer, a cell per expert: its load in fair shares."""
    num_experts = max(map(len, loads))
    figure, axes = new_figure(0.85 + 0.36 * len(loads))
    # Half and twice the fair share are equally far from it.
    shade = matplotlib.colors.Normalize(-2, 2)
    for y, load in enumerate(loads):
        for x, part in enumerate(load):
            share = part * len(load)
            colour = _DIVERGING(shade(np.log2(max(share, 1e-3))))
            text = f"{share:.1f}" if num_experts <= MAX_EXPERTS_NAMED else ""
            heat_cell(axes, x, y, colour, text, size=8 if num_experts <= 8 else 6.5)
    axes.set_xlim(-0.5, num_experts - 0.5)
    axes.set_ylim(len(loads) - 0.5, -0.5)
    axes.set_xticks(range(0, num_experts, max(1, num_experts // 16)))
    axes.set_yticks(range(len(loads)), [str(layer + 1) for layer in range(len(loads))])
    axes.set_xlabel("expert")
    axes.set_ylabel("MoE layer")
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0)
    return figure


def _entropy_figure(results: StudyResults) -> Figure:
    curves = results.curves[results.curves["load_entropy"].notna() & results.curves["tokens"].notna()]
    outcomes = results.trials.set_index("number")["outcome"].reindex(curves["number"]).to_numpy()
    figure, axes = new_figure(2.75)
    for outcome, colour in (("pruned", PRUNED), ("complete", OTHER)):
        group = curves[outcomes == outcome]
        lines = [line[["tokens", "load_entropy"]].astype(float).to_numpy() for _, line in group.groupby("number")]
        axes.add_collection(LineCollection(lines, colors=colour, linewidths=0.9, alpha=0.7))
    for number, name, colour in highlighted_trials(results):
        line = curves[curves["number"] == number]
        if not line.empty:
            axes.plot(line["tokens"].astype(float), line["load_entropy"], color=colour, linewidth=2.2, label=name)
    axes.autoscale_view()
    axes.set_ylim(min(0.9, float(curves["load_entropy"].min()) - 0.02), 1.005)
    axes.set_xlim(left=0)
    axes.set_xlabel("training tokens")
    axes.set_ylabel("load entropy / log E")
    count_axis(axes)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(labelcolor=INK, loc="lower right")
    axes.tick_params(labelcolor=MUTED)
    return figure


def _table(results: StudyResults) -> Table:
    ends = results.curves.groupby("number").tail(1).set_index("number")
    rows: list[tuple[str, ...]] = []
    for row in results.ranking.head(MAX_TABLE_ROWS).to_dict("records"):
        number = int(row["best_number"])
        if number not in ends.index:
            continue
        end = ends.loc[number].to_dict()
        values = [end[name] for name in _SHOWN]
        texts = (MISSING if value != value else f"{value:.3g}" for value in values)
        rows.append((str(row["label"]), *texts))
    return Table(
        "Routers of the leading configurations at their last milestone; MaxVio is the busiest expert's load over its "
        "fair share, minus 1",
        ("configuration", *_SHOWN.values()),
        tuple(rows),
    )
