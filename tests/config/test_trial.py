from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from moesearch.config.trial import BudgetConfig, DataConfig, ModelConfig, MoEConfig, OptimConfig, TrialConfig


def test_the_defaults_are_the_articles_run() -> None:
    trial = TrialConfig()
    assert (trial.model.width, trial.model.num_layers, trial.model.num_heads, trial.model.context) == (128, 8, 8, 32)
    assert (trial.moe.num_experts, trial.moe.top_k, trial.moe.init, trial.moe.noise) == (8, 2, "kaiming_normal", True)
    assert (trial.budget.steps, trial.data.batch_size, trial.expert_hidden_dim) == (5000, 16, 512)


@pytest.mark.parametrize("value", [True, "8", None, 2.5, math.nan, math.inf, -1, 10**400, [8]])
def test_what_is_no_whole_number_is_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        MoEConfig.model_validate({"num_experts": value})


@pytest.mark.parametrize("value", [True, "1e-3", math.nan, math.inf, 0, -1e-3])
def test_what_is_no_learning_rate_is_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        OptimConfig.model_validate({"lr": value})


@pytest.mark.parametrize("value", [1, 0, "true", "yes", None])
def test_what_is_no_truth_value_is_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        MoEConfig.model_validate({"noise": value})


def test_a_whole_real_number_is_a_whole_number() -> None:
    steps = BudgetConfig.model_validate({"steps": 1e6}).steps
    assert (steps, type(steps)) == (1_000_000, int)


def test_a_misspelt_field_is_an_error() -> None:
    with pytest.raises(ValidationError, match="topk"):
        MoEConfig.model_validate({"topk": 2})


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"moe": {"num_experts": 2, "top_k": 4}}, r"top_k \(4\) must be at most num_experts \(2\)"),
        ({"model": {"width": 100, "num_heads": 8}}, r"num_heads \(8\) must divide width \(100\)"),
        ({"budget": {"steps": 5}}, r"milestones \(10\) must be at most steps \(5\)"),
        (
            {"budget": {"steps": 5, "tokens": 9}},
            r"give exactly one of steps, tokens, active_flops, seconds \(given: steps, tok",
        ),
        ({"budget": {"tokens": 5119}}, r"budget: tokens \(5119\) must be at least milestones \(10\) \* .* \(512\)"),
        ({"optim": {"warmup_tokens": 2_560_000}}, r"optim: warmup_tokens \(2560000\) must be less than .* 2560000"),
    ],
)
def test_rules_across_fields_are_kept(values: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        TrialConfig.model_validate(values)


def test_the_budget_knows_its_unit() -> None:
    assert BudgetConfig().unit == "steps"
    assert BudgetConfig(active_flops=1e12).unit == "active_flops"


def test_a_fingerprint_outlives_versions() -> None:
    """A stored study knows its trials by these: a new field must leave them alone where it holds its default."""
    narrow = TrialConfig(model=ModelConfig(width=64, num_layers=3), moe=MoEConfig(init="normal", init_std=0.1))
    assert [TrialConfig().fingerprint(), narrow.fingerprint()] == ["1df3e7e921a019a7", "1090461c0c666866"]


def test_seeds_do_not_change_the_fingerprint() -> None:
    assert TrialConfig(seed=1, data=DataConfig(order_seed=2)).fingerprint() == TrialConfig().fingerprint()


def test_any_field_that_is_read_changes_the_fingerprint() -> None:
    assert TrialConfig(moe=MoEConfig(top_k=1)).fingerprint() != TrialConfig().fingerprint()
    normal = [TrialConfig(moe=MoEConfig(init="normal", init_std=std)).fingerprint() for std in (0.02, 0.1)]
    assert normal[0] != normal[1]
    unlike = [
        MoEConfig(router="sigmoid"),
        MoEConfig(router="sigmoid", route_norm=False),
        MoEConfig(router="softmax_before", route_norm=False),
        MoEConfig(noise_std=0.1),
        MoEConfig(noise_std=0.1, noise_decay_fraction=None),
        MoEConfig(capacity_factor=1.0),
        MoEConfig(capacity_factor=1.0, drop_policy="score"),
        MoEConfig(capacity_factor=1.0, eval_capacity_factor=2.0),
    ]
    assert len({TrialConfig(moe=moe).fingerprint() for moe in unlike}) == len(unlike)


def test_a_default_written_out_keeps_the_fingerprint() -> None:
    assert TrialConfig(moe=MoEConfig(expert_hidden_dim=512)).fingerprint() == TrialConfig().fingerprint()


@pytest.mark.parametrize(
    "trial",
    [
        TrialConfig(moe=MoEConfig(init_std=0.1)),
        TrialConfig(optim=OptimConfig(decay_fraction=0.5, final_lr_fraction=0.5)),
        TrialConfig(moe=MoEConfig(route_norm=False)),
        TrialConfig(budget=BudgetConfig(milestone_share=0.25)),
        TrialConfig(moe=MoEConfig(router="softmax_before")),
        TrialConfig(moe=MoEConfig(noise_decay_fraction=0.5)),
        TrialConfig(moe=MoEConfig(drop_policy="score", eval_capacity_factor=None)),
    ],
)
def test_a_field_that_nothing_reads_keeps_the_fingerprint(trial: TrialConfig) -> None:
    assert trial.fingerprint() == TrialConfig().fingerprint()


def test_a_trial_survives_the_way_through_json() -> None:
    trial = TrialConfig(model=ModelConfig(attention_scale=0.1), optim=OptimConfig(grad_clip=1))
    assert TrialConfig.model_validate_json(trial.model_dump_json()) == trial


def test_a_context_in_bytes_is_rounded_to_tokens() -> None:
    config = TrialConfig(data=DataConfig(context_bytes=100))
    assert [config.fitted(length).model.context for length in (1.0, 2.4, 1000.0)] == [100, 42, 1]
    assert config.fitted(2.4).fitted(2.4) == config.fitted(2.4)
    assert TrialConfig().fitted(2.4) == TrialConfig()


def test_a_context_that_is_not_read_does_not_count_in_a_name() -> None:
    config = TrialConfig(data=DataConfig(context_bytes=100))
    assert config.fingerprint() == config.fitted(2.0).fingerprint() != TrialConfig().fingerprint()
    sizes = [TrialConfig(data=DataConfig(tokenizer="byte", vocab_size=size)) for size in (300, 400)]
    assert sizes[0].fingerprint() == sizes[1].fingerprint()
