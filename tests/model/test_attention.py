from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from moesearch.config.trial import ModelConfig
from moesearch.model.attention import CausalSelfAttention, attention_with_dropout, score_scale
from moesearch.model.randomness import DropoutRates, StepRandomness

CPU = torch.device("cpu")


@pytest.mark.parametrize("context", [1, 2, 9])
@pytest.mark.parametrize("scale", [0.25, 1.0])
def test_the_product_written_out_agrees_with_torchs_own(context: int, scale: float) -> None:
    qkv = torch.randn(3, 4, context, 6, dtype=torch.float64).requires_grad_()
    written_out = attention_with_dropout(qkv, torch.ones(4, context, context), scale)
    q, k, v = qkv.unbind()
    own = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    torch.testing.assert_close(written_out, own)
    weights = torch.randn_like(own)
    gradients = [torch.autograd.grad((out * weights).sum(), qkv) for out in (written_out, own)]
    torch.testing.assert_close(*gradients)


def test_training_with_almost_no_dropout_agrees_with_evaluation() -> None:
    model = ModelConfig(width=12, num_heads=3, context=5)
    rates = DropoutRates([0.0, 2.0**-16], CPU)
    attention = CausalSelfAttention(2, model, rates, device=CPU, dtype=torch.float64)
    for parameter in attention.parameters():
        parameter.data.normal_()
    x_RNC = torch.randn(2, 10, 12, dtype=torch.float64)
    randomness = StepRandomness(torch.tensor([1, 2]), torch.tensor([0, 0])).layers(1)[0]
    torch.testing.assert_close(attention(x_RNC, 5, randomness)[0], attention(x_RNC, 5, None)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("attention_scale", "expected"), [("head", 16**-0.5), ("width", 128**-0.5), (0.3, 0.3)], ids=str
)
def test_scores_are_scaled_by_head_by_width_or_as_given(attention_scale: str | float, expected: float) -> None:
    config = ModelConfig.model_validate({"width": 128, "num_heads": 8, "attention_scale": attention_scale})
    assert score_scale(config) == pytest.approx(expected)


def test_heads_attend_as_if_each_were_alone() -> None:
    """The article's form: one product per head, from that head's columns of the weights."""
    model = ModelConfig(width=8, num_heads=2, context=4)
    attention = CausalSelfAttention(1, model, DropoutRates([0.0], CPU), device=CPU, dtype=torch.float64)
    for parameter in attention.parameters():
        parameter.data.normal_()
    x_NC = torch.randn(4, 8, dtype=torch.float64)
    heads = []
    for head in range(2):
        q, k, v = (x_NC @ attention.qkv.weight[0, :, part * 8 + head * 4 :][:, :4] for part in range(3))
        scores = (q @ k.T * 4**-0.5).masked_fill(torch.ones(4, 4).triu(1).bool(), float("-inf"))
        heads.append(torch.softmax(scores, -1) @ v)
    assert attention.projection.bias is not None
    expected = torch.cat(heads, 1) @ attention.projection.weight[0] + attention.projection.bias[0]
    torch.testing.assert_close(attention(x_NC[None], 4, None)[0], expected)
