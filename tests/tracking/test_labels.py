from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from moesearch.config.quantities import ROUTER_QUANTITIES
from moesearch.tracking.labels import (
    as_text,
    milestone_metrics,
    run_name,
    trial_tags,
)
from moesearch.training.points import LayerHealth, RouterHealth


def test_a_run_is_named_by_its_knobs_and_its_number() -> None:
    params = {"moe.num_experts": 16, "moe.top_k": 2, "moe.init": "xavier_normal", "moe.noise": False}
    assert run_name(params, 12) == "E16 k2 xavier noise-off #12"


@pytest.mark.parametrize(
    ("value", "text"), [(True, "true"), (None, "null"), (0.001, "0.001"), (3, "3"), ("xavier", "xavier")]
)
def test_values_are_spelled_as_in_a_study_file(value: object, text: str) -> None:
    assert as_text(value) == text


def test_tags_are_text_that_filters_can_name() -> None:
    tags = trial_tags(study="s", number=3, fingerprint="ab", replicate=1, phase="search", outcome="pruned")
    assert tags == {
        "study": "s",
        "trial": "3",
        "fingerprint": "ab",
        "replicate": "1",
        "phase": "search",
        "outcome": "pruned",
    }


def test_a_trial_that_runs_has_no_outcome_yet() -> None:
    assert "outcome" not in trial_tags(study="s", number=3, fingerprint="ab", replicate=0, phase="confirm")


def point(router_health: RouterHealth | None) -> dict[str, Any]:
    names = ("train_loss", "val_loss", "val_bpb", "tokens", "active_flops", "train_seconds")
    return {**dict.fromkeys(names, 1), "router_health": None if router_health is None else asdict(router_health)}


def test_metrics_of_a_milestone_have_the_routers_in_groups_of_their_own() -> None:
    layers = [LayerHealth((0.5, 0.5), 1.0, vio, 0, 0.0, 0.7, 0.5, 1.0, 0.0) for vio in (0.0, 0.25)]
    metrics = milestone_metrics(point(RouterHealth.of(layers)))
    assert metrics["val_loss"] == metrics["loss/val_loss"] == 1
    assert min(name for name in metrics if "/" in name).startswith("loss/")
    assert {f"router/{name}" for name in ROUTER_QUANTITIES} <= metrics.keys()
    assert metrics["router/max_vio"] == 0.25
    assert [metrics[f"router by layer/max_vio {layer}"] for layer in (0, 1)] == [0.0, 0.25]


def test_a_milestone_without_routers_has_no_metrics_of_them() -> None:
    assert not any("router" in name for name in milestone_metrics(point(None)))
