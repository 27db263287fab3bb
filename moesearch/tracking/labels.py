"""How trials are called and tagged where people look at them: names that read, tags that filter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import quote

from moesearch.config.labels import config_label
from moesearch.config.quantities import ROUTER_QUANTITIES, RouterQuantity

Phase = Literal["search", "confirm", "final", "summary"]
"""What a run is for; the value of its tag ``phase``."""


def run_name(params: Mapping[str, object], number: int) -> str:
    """The name of a trial's run, from its knobs and its number: ``E16 k2 xavier noise-off #12``."""
    return f"{config_label(params)} #{number}"


def trial_tags(
    *, study: str, number: int, fingerprint: str, replicate: int, phase: Phase, outcome: str | None = None
) -> dict[str, str]:
    """The tags of a trial's run, for filters such as ``tags.outcome = 'pruned' and tags.phase = 'search'``."""
    tags = {
        "study": study,
        "trial": str(number),
        "fingerprint": fingerprint,
        "replicate": str(replicate),
        "phase": phase,
    }
    return tags if outcome is None else {**tags, "outcome": outcome}


CURVES_FILTER = "tags.phase != 'confirm'"

_CURVES = ("train_loss", "val_loss", "val_bpb", "tokens", "active_flops", "train_seconds")
# By layers only what tells a sick layer from a healthy one: all would be eight charts a layer, and 10 ms a milestone.
_BY_LAYER: tuple[RouterQuantity, ...] = ("load_entropy", "max_vio")


def milestone_metrics(point: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of an ``EvalPoint``, given as its fields; MLflow groups charts by what is before the slash.

    MLflow draws the groups by their names, and what has none last. So the losses come again as a group, to be drawn
    first; their plain names are what a search and a sorted column take.
    """
    metrics = {name: float(point[name]) for name in _CURVES}
    metrics |= {f"loss/{name}": metrics[name] for name in ("train_loss", "val_loss")}
    health = point["router_health"]
    if health is None:
        return metrics
    metrics |= {f"router/{name}": float(health[name]) for name in ROUTER_QUANTITIES}
    for index, layer in enumerate(health["layers"]):
        metrics |= {f"router by layer/{name} {index}": float(layer[name]) for name in _BY_LAYER}
    return metrics


def as_text(value: object) -> str:
    """A value spelled as in a study file: ``true``, ``null``, ``0.001``; text as it is."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def charts_route(experiment_id: str) -> str:
    """The part of an MLflow address that shows the charts of an experiment, the best trials first.

    MLflow draws the first ten runs of its list, and by itself the list begins with the newest. Confirmation runs are
    left out: they are evaluated at their ends alone, so they have no curves.
    """
    return (
        f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART"
        f"&orderByKey=metrics.%60val_loss%60&orderByAsc=true&searchFilter={quote(CURVES_FILTER)}"
    )
