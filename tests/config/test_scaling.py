from __future__ import annotations

import pytest

from moesearch.config.resolve import resolve
from moesearch.config.scaling import parsed_scale, scaled
from moesearch.config.trial import TrialConfig
from moesearch.errors import InputError

BASE = resolve(TrialConfig(), {"optim.warmup_tokens": 1000})


def test_a_scale_is_read_with_or_without_its_sign() -> None:
    assert parsed_scale("width=4, tokens=20x,experts=0.5") == {"width": 4.0, "tokens": 20.0, "experts": 0.5}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("depth=2", "'depth' is none of width, experts, tokens"),
        ("", "'' is none of"),
        ("width", "width= is no factor; write width=4 or width=4x"),
        ("width=0", "width=0 is no factor"),
        ("width=nan", "width=nan is no factor"),
        ("width=2,width=3", "width is given twice"),
    ],
)
def test_a_scale_that_makes_no_sense_is_named(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parsed_scale(text)


def test_a_wider_model_keeps_its_heads_width_its_granularity_and_its_tokens() -> None:
    config = resolve(BASE, {"moe.expert_hidden_dim": 96, "model.attention_scale": "width"})
    larger, _ = scaled(config, {"width": 2.0})
    assert (larger.model.width, larger.model.num_heads, larger.moe.expert_hidden_dim) == (256, 16, 192)
    assert larger.model.attention_scale == 128**-0.5
    assert larger.optim.mup_base_width == 128
    assert larger.budget == config.budget
    assert larger.optim.lr == config.optim.lr


def test_the_base_width_outlives_a_second_scaling() -> None:
    once, _ = scaled(BASE, {"width": 2.0})
    twice, _ = scaled(once, {"width": 2.0})
    assert (twice.model.width, twice.optim.mup_base_width) == (512, 128)


def test_more_experts_keep_the_share_that_is_active() -> None:
    larger, _ = scaled(BASE, {"experts": 4.0})
    assert (larger.moe.num_experts, larger.moe.top_k) == (32, 8)
    assert larger.optim.mup_base_width is None


def test_more_tokens_keep_the_share_of_the_warm_up() -> None:
    longer, _ = scaled(BASE, {"tokens": 20.0})
    assert (longer.budget.steps, longer.optim.warmup_tokens) == (100_000, 20_000)


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        ({"width": 1.5, "experts": 1.1}, "moe.num_experts .8. times 1.1 is no whole number"),
        ({"width": 1000.0}, "width"),
    ],
)
def test_sizes_that_do_not_exist_are_refused(factors: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        scaled(BASE, factors)


def test_a_budget_in_flops_does_not_follow_a_larger_model() -> None:
    config = resolve(BASE, {"budget.steps": None, "budget.active_flops": 1e15})
    with pytest.raises(InputError, match="give it in steps or tokens"):
        scaled(config, {"width": 2.0})


def test_what_is_not_proven_is_said() -> None:
    sentences = " ".join(scaled(BASE, {"width": 2.0, "experts": 2.0, "tokens": 2.0})[1])
    for words in ("noisy routing", "depth is kept", "few experts are not covered", "longer runs tend to want a lower"):
        assert words in sentences
    assert scaled(BASE, {"tokens": 0.5})[1] == []


def test_experts_keep_their_width_where_more_of_them_would_share_it_out() -> None:
    config = resolve(BASE, {"moe.iso_flops": True})
    larger, _ = scaled(config, {"experts": 2.0})
    assert larger.expert_hidden_dim == config.expert_hidden_dim == 256


def test_a_head_that_is_the_embedding_is_refused() -> None:
    with pytest.raises(InputError, match=r"mup_base_width \(128\) needs a head of its own"):
        scaled(resolve(BASE, {"model.tied_head": True}), {"width": 2.0})
