from __future__ import annotations

import json
from pathlib import Path

import pytest

from moesearch.model.cost import router_flops_per_token
from moesearch.search.plan import plan, plan_lines
from tests.search.stand_ins import study_config


def test_the_plan_counts_points_and_feasible_points() -> None:
    planned = plan(study_config())
    assert (planned.num_points, planned.num_feasible) == (12, 10)


def test_the_articles_model_has_its_parameters_without_a_download() -> None:
    planned = plan(study_config(base={"data": {"corpus": "tiny_shakespeare"}}))
    assert (planned.total_params, planned.active_params, planned.vocab_size) == (8_996_545, 2_674_369, 65)
    assert "8,996,545 parameters" in "\n".join(plan_lines(planned))


def test_the_cost_of_a_trial_is_three_forward_passes_per_token_and_one_per_evaluated_token() -> None:
    planned = plan(study_config())
    tokens = 40 * 16 * 32
    assert planned.base_cost is not None
    assert planned.base_cost.train_flops == tokens * 3 * planned.flops_per_token
    assert planned.base_cost.eval_flops == 4 * 192_810 * planned.flops_per_token


def test_milestones_before_the_last_cost_their_share_of_an_evaluation() -> None:
    budget = {"steps": 40, "milestones": 10, "milestone_share": 0.25}
    planned = plan(study_config(base={"budget": budget}, confirm={"top": 1, "seeds": 2, "lr_search": False}))
    part = 192_809 // 32 // 4 * 32
    assert planned.base_cost is not None
    assert planned.base_cost.eval_flops == (9 * part + 192_810) * planned.flops_per_token
    assert "10 exact evaluations, the last on the whole validation split, the others on 0.25 of it (base)" in "\n".join(
        plan_lines(planned)
    )
    # A confirmation has two milestones, in place of ten.
    alone = plan(study_config(base={"budget": {**budget, "milestones": 2}}))
    assert alone.study_flops is not None
    assert planned.confirm_flops == pytest.approx(planned.num_confirm_runs * alone.study_flops / alone.num_trials)


def test_the_plan_says_the_routers_share_and_the_memory_of_a_lane() -> None:
    planned = plan(study_config(base={"data": {"corpus": "tiny_shakespeare"}}))
    assert planned.router_flops_per_token == router_flops_per_token(study_config().base)
    assert planned.min_memory_bytes < planned.memory_bytes <= planned.max_memory_bytes
    text = "\n".join(plan_lines(planned))
    assert "0.6% of them in routers" in text
    assert f"memory   {planned.memory_bytes / 1e6:,.0f} MB for a lane (base)" in text


def test_the_cost_of_a_study_lies_between_its_cheapest_and_its_dearest_trials() -> None:
    planned = plan(study_config())
    assert planned.min_trial_flops is not None
    assert planned.max_trial_flops is not None
    assert planned.study_flops is not None
    assert planned.min_trial_flops * 6 < planned.study_flops < planned.max_trial_flops * 6


def test_lane_knobs_and_shape_knobs_are_told_apart() -> None:
    search = {
        "model.width": {"type": "int", "low": 64, "high": 128, "step": 64},
        "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
    }
    planned = plan(study_config(search=search))
    assert [(knob.path, knob.is_lane) for knob in planned.knobs] == [("model.width", False), ("optim.lr", True)]
    assert planned.num_points is None
    assert "  optim.lr     lane knob   0.0001 to 0.01, evenly in the logarithm" in plan_lines(planned)


def test_the_plan_counts_shape_families_by_their_feasible_points() -> None:
    # Of six shapes, those of 3 heads fit width 96 alone.
    shapes = {
        "model.width": {"type": "categorical", "choices": [64, 96]},
        "model.num_heads": {"type": "categorical", "choices": [2, 3, 4]},
    }
    planned = plan(study_config(search={**shapes, **study_config().model_dump()["search"]}, run={"lanes": 4}))
    assert (planned.lanes, planned.num_families) == (4, 5)
    assert "lanes    4 per worker; 5 shape families, one at a time in a worker" in plan_lines(planned)


def test_a_study_of_lane_knobs_is_one_family() -> None:
    planned = plan(study_config())
    assert (planned.lanes, planned.num_families) == ("auto", 1)
    lines = "\n".join(plan_lines(planned))
    assert "lanes    1 per worker on a CPU, measured on a GPU; all trials are of one shape" in lines


def test_the_sampler_says_whether_it_covers_the_space() -> None:
    assert "each of the 10 feasible points" in plan(study_config(num_trials=10)).sampler
    assert "TPE" in plan(study_config(num_trials=9)).sampler


def test_the_baseline_and_three_learning_rates_each_count_among_the_runs_to_confirm() -> None:
    queued = ({"moe.num_experts": 4, "moe.top_k": 1, "moe.noise": True},)
    assert plan(study_config(confirm={"top": 3, "seeds": 2}, enqueue=queued)).num_confirm_runs == (3 + 1) * (2 + 3)
    assert plan(study_config(confirm={"top": 0})).num_confirm_runs == 0


def test_a_plan_is_json() -> None:
    assert json.loads(json.dumps(plan(study_config()).to_json()))["num_points"] == 12


def test_a_plan_of_tokenizers_gives_each_its_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESEARCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text").write_text("to be or not to be\n" * 500)
    data = {"text": str(tmp_path / "text"), "tokenizer": "bpe", "vocab_size": 258, "context_bytes": 19}
    search = {"data.tokenizer": {"type": "categorical", "choices": ["char", "bpe"]}}
    base = {"data": data, "budget": {"steps": 4, "milestones": 2}}
    planned = plan(study_config(objective="val_bpb", base=base, search=search))
    assert (planned.vocab_size, planned.context) == (258, 15)
    assert planned.base_cost is not None
    assert planned.base_cost.train_tokens == 4 * 16 * 15
    assert (planned.min_trial_flops or 0) < (planned.max_trial_flops or 0)
    assert "258 tokens of bpe, " in "\n".join(plan_lines(planned))
