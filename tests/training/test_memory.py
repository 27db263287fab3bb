"""Estimated memory against what torch allocates on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from moesearch.config.resolve import resolve
from moesearch.config.trial import TrialConfig
from moesearch.model.memory import TOLERANCE, peak_memory_bytes
from moesearch.training.trainer import LaneTrainer
from tests.training.tiny import TOKENS

# Large enough that libraries' own tables do not count, small enough for a test.
BASE = resolve(TrialConfig(), {"model.num_layers": 2, "budget.steps": 2, "budget.milestones": 1})


def measured_peak_bytes(config: TrialConfig, vocab_size: int) -> int:
    """Most bytes that torch held at once in two training steps and an evaluation of two batches."""
    random = torch.Generator().manual_seed(0)
    train, val = (torch.randint(vocab_size, (size,), generator=random) for size in (10_000, 4_000))
    ones_V = torch.ones(vocab_size, dtype=torch.int64)
    tokens = replace(TOKENS, train=train, val=val, bytes_per_id_V=ones_V, vocab_size=vocab_size)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer = LaneTrainer(tokens)
        trainer.load(0, config)
        trainer.advance()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@pytest.mark.parametrize(
    ("params", "vocab_size"),
    [
        ({}, 65),
        ({"model.dropout": 0.0, "moe.noise": False}, 65),
        ({"moe.num_experts": 32, "moe.top_k": 1}, 65),
        ({"moe.num_experts": 1, "moe.top_k": 1}, 65),
        ({"model.width": 64, "model.context": 128, "moe.top_k": 8}, 65),
        ({"data.batch_size": 64}, 2000),
        ({"data.batch_size": 1, "moe.top_k": 8}, 2000),
        ({"moe.activation": "swiglu", "moe.num_shared_experts": 2, "moe.every": 2, "data.batch_size": 64}, 65),
        ({"model.norm": "rms_norm", "model.qk_norm": True, "model.positions": "rotary", "model.tied_head": True}, 65),
    ],
    ids=[
        "article",
        "plain",
        "many experts",
        "dense",
        "long context",
        "many logits",
        "evaluation is the larger part",
        "swiglu, shared experts, dense layers",
        "norms and rotation",
    ],
)
def test_a_lanes_estimated_memory_is_what_torch_allocates(params: Mapping[str, object], vocab_size: int) -> None:
    config = resolve(BASE, params)
    estimate = peak_memory_bytes(config, vocab_size)
    assert estimate == pytest.approx(measured_peak_bytes(config, vocab_size), rel=TOLERANCE)


def test_products_in_bfloat16_need_copies_of_the_weights_and_smaller_activations() -> None:
    few, many = (resolve(BASE, {"data.batch_size": size, "model.context": 128}) for size in (1, 512))
    cpu, cuda = ([peak_memory_bytes(config, 65, device_type=d) for config in (few, many)] for d in ("cpu", "cuda"))
    assert cuda[1] - cuda[0] < cpu[1] - cpu[0]
