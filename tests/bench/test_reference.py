"""The reference is the same function of the same weights, so a ratio of times compares like with like."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from moesearch.bench.reference import Block, Head, ReferenceTrainer, ReferenceTransformer
from moesearch.bench.settings import ARTICLE, ARTICLE_VOCAB_SIZE
from moesearch.config.trial import TrialConfig
from moesearch.data.tokens import TokenData
from moesearch.model.cost import total_params
from moesearch.model.losses import LossWeights, training_losses
from moesearch.model.transformer import MoETransformer


def copy_weights(ours: Mapping[str, Tensor], reference: ReferenceTransformer) -> None:
    """Our lane's tensors into the reference: linear weights are stored input first in ours, output first in torch's."""

    def put(target: Tensor | None, value: Tensor) -> None:
        assert target is not None
        assert target.shape == value.shape
        target.data.copy_(value)

    def put_linear(linear: nn.Module, weight_IO: Tensor, bias_O: Tensor | None) -> None:
        assert isinstance(linear, nn.Linear)
        put(linear.weight, weight_IO.T)
        if bias_O is not None:
            put(linear.bias, bias_O)

    def put_norm(norm: nn.Module, name: str) -> None:
        assert isinstance(norm, nn.LayerNorm)
        put(norm.weight, ours[f"{name}.weight"])
        put(norm.bias, ours[f"{name}.bias"])

    put(reference.token_embedding.weight, ours["token_embedding.weight"])
    put(reference.position_embedding.weight, ours["position_embedding.weight"])
    for index, block in enumerate(reference.blocks):
        assert isinstance(block, Block)
        layer = f"layers.{index}"
        put_norm(block.attention_norm, f"{layer}.attention_norm")
        put_norm(block.moe_norm, f"{layer}.moe_norm")
        for kind, weight_CC in zip(
            ("query", "key", "value"), ours[f"{layer}.attention.qkv.weight"].chunk(3, 1), strict=True
        ):
            for head, weight_CD in zip(
                block.attention.heads, weight_CC.chunk(len(block.attention.heads), 1), strict=True
            ):
                assert isinstance(head, Head)
                put_linear(getattr(head, kind), weight_CD, None)
        projection = f"{layer}.attention.projection"
        put_linear(block.attention.projection, ours[f"{projection}.weight"], ours[f"{projection}.bias"])
        router = f"{layer}.moe.router"
        # The router's weight is stored output first.
        put_linear(block.moe.router.route, ours[f"{router}.logits.weight"].T, ours[f"{router}.logits.bias"])
        put_linear(block.moe.router.noise, ours[f"{router}.noise.weight"].T, ours[f"{router}.noise.bias"])
        experts = f"{layer}.moe.experts"
        for number, expert in enumerate(block.moe.experts):
            assert isinstance(expert, nn.Sequential)
            put_linear(expert[0], ours[f"{experts}.weight_in"][number], ours[f"{experts}.bias_in"][number])
            put_linear(expert[2], ours[f"{experts}.weight_out"][number], ours[f"{experts}.bias_out"][number])
    put_norm(reference.final_norm, "norm")
    put_linear(reference.head, ours["head.weight"], ours["head.bias"])


def silence_noise(reference: ReferenceTransformer) -> None:
    """Ours has no noise in evaluation; softplus of a very negative number is no noise either."""
    for block in reference.blocks:
        assert isinstance(block, Block)
        block.moe.router.noise.bias.data.fill_(-1e4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_with_our_weights_the_reference_gives_our_logits(config: TrialConfig, dtype: torch.dtype) -> None:
    ours = MoETransformer([config], vocab_size=11, dtype=dtype)
    reference = ReferenceTransformer(config, vocab_size=11).to(dtype).eval()
    copy_weights(ours.lane_parameters(0), reference)
    silence_noise(reference)
    tokens_BT = torch.randint(11, (5, config.model.context))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens_BT.unsqueeze(0)).logits_RBTV[0], reference(tokens_BT))


def test_with_our_weights_the_reference_gives_our_gradient_of_the_embedding(config: TrialConfig) -> None:
    ours = MoETransformer([config], vocab_size=11, dtype=torch.float64)
    reference = ReferenceTransformer(config, vocab_size=11).double()
    copy_weights(ours.lane_parameters(0), reference)
    silence_noise(reference)
    tokens_BT, targets_BT = torch.randint(11, (2, 5, config.model.context))
    losses = training_losses(ours(tokens_BT.unsqueeze(0)), targets_BT.unsqueeze(0), LossWeights.of([config]))
    torch.autograd.backward(losses.total_R.sum())
    torch.autograd.backward(reference.loss(tokens_BT, targets_BT))
    gradient_RVC = ours.token_embedding.weight.grad
    assert gradient_RVC is not None
    torch.testing.assert_close(gradient_RVC[0], reference.token_embedding.weight.grad)


def test_the_reference_has_the_parameters_of_the_article() -> None:
    with torch.device("meta"):
        reference = ReferenceTransformer(ARTICLE, ARTICLE_VOCAB_SIZE)
    assert sum(parameter.numel() for parameter in reference.parameters()) == 8_996_545
    assert total_params(ARTICLE, ARTICLE_VOCAB_SIZE) == 8_996_545


def test_the_reference_routes_with_noise_in_evaluation_too(config: TrialConfig) -> None:
    reference = ReferenceTransformer(config, vocab_size=11).eval()
    tokens_BT = torch.randint(11, (5, config.model.context))
    with torch.no_grad():
        assert not torch.equal(reference(tokens_BT), reference(tokens_BT))


def test_a_later_token_never_changes_an_earlier_output_of_the_reference(config: TrialConfig) -> None:
    reference = ReferenceTransformer(config, vocab_size=11).eval()
    silence_noise(reference)
    tokens_BT = torch.randint(11, (1, config.model.context))
    changed_BT = tokens_BT.clone()
    changed_BT[0, -1] = (tokens_BT[0, -1] + 1) % 11
    with torch.no_grad():
        torch.testing.assert_close(reference(tokens_BT)[:, :-1], reference(changed_BT)[:, :-1])


def test_the_reference_learns(config: TrialConfig, tokens: TokenData) -> None:
    torch.manual_seed(0)
    trainer = ReferenceTrainer(config, tokens.train, tokens.vocab_size, "cpu")
    before = sum(trainer.evaluation_batch() for _ in range(20))
    for _ in range(60):
        trainer.step()
    assert sum(trainer.evaluation_batch() for _ in range(20)) < before
