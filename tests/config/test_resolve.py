from __future__ import annotations

import pytest

from moesearch.config.resolve import derive_seed, field_names, field_value, is_feasible, is_lane_field, resolve
from moesearch.config.trial import MoEConfig, TrialConfig
from moesearch.errors import InfeasibleError

BASE = TrialConfig(moe=MoEConfig(num_experts=4))


def test_a_proposal_changes_its_fields_alone() -> None:
    trial = resolve(BASE, {"moe.top_k": 1, "optim.lr": 0.1}, seed=5, order_seed=6)
    assert (trial.moe.top_k, trial.optim.lr, trial.seed, trial.order_seed) == (1, 0.1, 5, 6)
    assert resolve(trial, {"moe.top_k": 2, "optim.lr": 1e-3, "seed": 0, "data.order_seed": None}) == BASE


@pytest.mark.parametrize(
    ("params", "reasons"),
    [
        ({"moe.top_k": 4, "moe.num_experts": 2}, ["moe: top_k (4) must be at most num_experts (2)"]),
        (
            {"moe.top_k": 5, "model.num_heads": 7},
            ["model: num_heads (7) must divide width (128)", "moe: top_k (5) must be at most num_experts (4)"],
        ),
        ({"moe.num_experts": 600}, ["moe.num_experts must be a whole number from 1 to 512 (given 600)"]),
        ({"moe.topk": 2}, ["moe.topk names no field of a trial; did you mean moe.top_k?"]),
        ({"moe": 2}, ["moe is a whole section; name a field of it, such as moe.num_experts"]),
        (
            {"budget.tokens": 10**6},
            ["budget: give exactly one of steps, tokens, active_flops, seconds (given: steps, tokens)"],
        ),
        (
            {"optim.warmup_tokens": 10**7},
            ["optim: warmup_tokens (10000000) must be less than the budget's 2560000 tokens"],
        ),
    ],
)
def test_an_infeasible_proposal_says_every_reason(params: dict[str, object], reasons: list[str]) -> None:
    with pytest.raises(InfeasibleError) as caught:
        resolve(BASE, params)
    assert list(caught.value.reasons) == reasons


def test_feasibility_is_what_resolve_says() -> None:
    assert is_feasible(BASE, {"moe.top_k": 4})
    assert not is_feasible(BASE, {"moe.top_k": 5})


def test_every_dotted_path_is_a_field_that_takes_its_own_default() -> None:
    values = TrialConfig().model_dump()
    assert len(field_names()) == sum(len(section) if isinstance(section, dict) else 1 for section in values.values())
    for path in field_names():
        section, _, name = path.rpartition(".")
        default = values[section][name] if section else values[name]
        assert field_value(path, default) == default


def test_lane_fields_are_those_that_change_no_shape() -> None:
    shape_fields = [path for path in field_names() if not is_lane_field(path)]
    assert shape_fields == [
        "model.width",
        "model.num_layers",
        "model.num_heads",
        "model.context",
        "model.attention_scale",
        "model.positions",
        "model.norm",
        "model.qk_norm",
        "model.tied_head",
        "moe.expert_hidden_dim",
        "moe.iso_flops",
        "moe.num_shared_experts",
        "moe.every",
        "moe.activation",
        "data.corpus",
        "data.text",
        "data.tokenizer",
        "data.vocab_size",
        "data.context_bytes",
        "data.batch_size",
    ]


def test_a_field_value_is_of_the_fields_type() -> None:
    value = field_value("moe.top_k", 2.0)
    assert (value, type(value)) == (2, int)
    with pytest.raises(InfeasibleError, match=r"moe\.top_k must be a whole number from 1 to 512 \(given true\)"):
        field_value("moe.top_k", True)


def test_seeds_are_stable_across_machines_and_versions() -> None:
    # A change of these numbers breaks the replay of every stored trial.
    assert derive_seed(0, "00c0ffee00c0ffee", 0) == 3_373_208_576_889_662_940
    assert derive_seed(0, "00c0ffee00c0ffee", 1) == 5_703_923_788_618_114_702


def test_seeds_differ_in_each_of_their_parts_and_fit_63_bits() -> None:
    seeds = {
        derive_seed(study, f"{mark:016x}", replicate)
        for study in range(5)
        for mark in range(5)
        for replicate in range(5)
    }
    assert len(seeds) == 125
    assert all(0 <= seed < 2**63 for seed in seeds)
