from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from moesearch.config.moe import MoEConfig
from moesearch.config.shape import inner_dim
from moesearch.config.trial import ModelConfig, TrialConfig


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        (
            {"moe": {"iso_flops": True, "top_k": 2, "num_shared_experts": 1}},
            r"moe: iso_flops divides expert_hidden_dim \(512\) among top_k \(2\) \+ num_shared_experts \(1\) experts; "
            "make it a multiple of 3, such as 513",
        ),
        ({"moe": {"every": 9}}, r"moe: every \(9\) must be at most model.num_layers \(8\); .* set num_experts to 1"),
        (
            {"model": {"width": 24, "num_heads": 8, "positions": "rotary"}},
            r"positions \(rotary\) turns numbers in pairs, so width / num_heads \(3\) must be even",
        ),
    ],
)
def test_shapes_that_cannot_be_are_refused_with_a_way_on(values: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        TrialConfig.model_validate(values)


def test_a_derived_width_has_the_fingerprint_of_the_same_width_written_out() -> None:
    derived = TrialConfig(moe=MoEConfig(iso_flops=True))
    assert derived.expert_hidden_dim == 256
    assert derived.fingerprint() == TrialConfig(moe=MoEConfig(expert_hidden_dim=256)).fingerprint()


def test_a_spelled_out_trial_has_its_width_and_no_rule() -> None:
    spelled = TrialConfig(moe=MoEConfig(iso_flops=True)).spelled_out()
    assert (spelled.moe.expert_hidden_dim, spelled.moe.iso_flops) == (256, False)
    assert spelled.expert_hidden_dim == 256


@pytest.mark.parametrize(
    "moe",
    [
        {"init_scale": 0.5},
        {"init_router": "kaiming_normal", "init_experts": "kaiming_normal", "init_attention": "kaiming_normal"},
        {"num_experts": 1, "top_k": 1, "every": 2},
        {"num_experts": 1, "top_k": 1, "init_router": "normal"},
    ],
    ids=["scale of another init", "its own init is that of all", "every of a dense model", "no router"],
)
def test_a_shape_or_init_field_that_nothing_reads_keeps_the_fingerprint(moe: dict[str, Any]) -> None:
    plain = {name: value for name, value in moe.items() if name in ("num_experts", "top_k")}
    with_field, without = (TrialConfig(moe=MoEConfig.model_validate(values)) for values in (moe, plain))
    assert with_field.fingerprint() == without.fingerprint()


@pytest.mark.parametrize(
    "moe",
    [
        {"num_shared_experts": 1},
        {"every": 2},
        {"activation": "gelu"},
        {"init_depth_scaled": True},
        {"init_router": "normal"},
        {"init_router": "normal", "init_std": 0.1},
        {"init": "truncated_normal", "init_scale": 1.0},
        {"num_experts": 1, "top_k": 1, "num_shared_experts": 1, "every": 2},
    ],
    ids=str,
)
def test_a_shape_or_init_field_that_is_read_changes_the_fingerprint(moe: dict[str, Any]) -> None:
    seen = {TrialConfig(moe=MoEConfig.model_validate(moe)).fingerprint()}
    for name in moe:
        without = {key: value for key, value in moe.items() if key != name}
        if name not in ("num_experts", "top_k", "init"):
            seen.add(TrialConfig(moe=MoEConfig.model_validate(without)).fingerprint())
    assert len(seen) == 1 + len(moe.keys() - {"num_experts", "top_k", "init"})


def test_heads_positions_and_norms_change_the_fingerprint() -> None:
    changes: list[dict[str, Any]] = [
        {"positions": "rotary"}, {"norm": "rms_norm"}, {"qk_norm": True}, {"tied_head": True}
    ]  # fmt: skip
    names = {TrialConfig(model=ModelConfig.model_validate(change)).fingerprint() for change in [{}, *changes]}
    assert len(names) == 5


@pytest.mark.parametrize(("hidden", "inner"), [(1, 1), (16, 11), (96, 64), (120, 80), (128, 88), (512, 344)])
def test_swiglu_is_two_thirds_as_wide(hidden: int, inner: int) -> None:
    assert inner_dim(hidden, "swiglu") == inner
    assert inner_dim(hidden, "gelu") == hidden
