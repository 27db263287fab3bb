from __future__ import annotations

import math

import pytest
import torch

from moesearch.model.memory import evaluation_windows
from moesearch.model.transformer import MoETransformer, select_lane
from moesearch.training.evaluation import evaluate_split, never, summarize
from tests.training.tiny import RANDOM, TOKENS, stop_after, trainer_of, trial

BYTES = torch.ones(100_000, dtype=torch.int64)


def model(**seeds: int) -> MoETransformer:
    return MoETransformer([trial(RANDOM, **seeds)], TOKENS.vocab_size)


@torch.no_grad()
def test_every_token_but_the_first_is_predicted_from_its_window_alone() -> None:
    net, context = model(), 8
    inputs, targets = TOKENS.val[:-1], TOKENS.val[1:]
    expected = []
    for start in range(0, len(inputs), context):
        logits_TV = net(inputs[None, None, start : start + context]).logits_RBTV[0, 0]
        log_probabilities_TV = torch.log_softmax(logits_TV.double(), -1)
        expected.append(-log_probabilities_TV.gather(1, targets[start : start + context, None]))
    result = evaluate_split(net, TOKENS.val, TOKENS.bytes_per_id_V)
    assert result is not None
    assert len(torch.cat(expected)) == len(TOKENS.val) - 1
    assert result[0].loss == pytest.approx(float(torch.cat(expected).mean()), abs=1e-6)


def test_two_evaluations_of_one_model_are_bit_equal() -> None:
    net = model()
    assert evaluate_split(net, TOKENS.val, TOKENS.bytes_per_id_V) == evaluate_split(
        net, TOKENS.val, TOKENS.bytes_per_id_V
    )


def test_lanes_that_are_evaluated_together_get_the_numbers_that_they_get_alone() -> None:
    configs = [trial({"moe.num_experts": 7}), trial(RANDOM, seed=5), trial({"moe.top_k": 1})]
    net = MoETransformer(configs, TOKENS.vocab_size)
    together = evaluate_split(net, TOKENS.val, TOKENS.bytes_per_id_V)
    assert together is not None
    for lane, result in enumerate(together):
        alone = evaluate_split(select_lane(net, lane), TOKENS.val, TOKENS.bytes_per_id_V)
        assert alone is not None
        assert result.loss == pytest.approx(alone[0].loss, abs=1e-6)
        assert result.block_losses == pytest.approx(alone[0].block_losses, abs=1e-5)
        assert result.router_health is not None
        assert alone[0].router_health is not None
        assert result.router_health.summary() == pytest.approx(alone[0].router_health.summary(), abs=1e-5)


def test_each_split_is_read_on_its_own() -> None:
    trainer = trainer_of(trial())
    assert trainer.evaluate(0, "val").loss != trainer.evaluate(0, "test").loss


def test_an_evaluation_leaves_no_trace_in_the_model() -> None:
    net = model()
    evaluate_split(net, TOKENS.val, TOKENS.bytes_per_id_V)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_blocks_are_consecutive_and_weigh_up_to_the_whole() -> None:
    losses_N = torch.rand(1000)
    result = summarize(losses_N, BYTES[:1001])
    assert len(result.block_losses) == 64
    assert result.block_losses[0] == pytest.approx(float(losses_N[:15].mean()))
    assert result.block_losses[-1] == pytest.approx(float(losses_N[984:].mean()))
    assert result.loss == pytest.approx(float(losses_N.double().mean()))


def test_a_split_of_fewer_tokens_than_blocks_has_a_block_per_token() -> None:
    assert summarize(torch.tensor([1.0, 2.0]), BYTES[:3]).block_losses == (1.0, 2.0)


def test_bits_per_byte_are_the_bits_of_all_tokens_over_the_bytes_they_stand_for() -> None:
    # Three tokens of one bit each, which stand for six bytes.
    result = summarize(torch.full((3,), math.log(2)), torch.tensor([5, 1, 3, 2]))
    assert result.bits_per_byte == pytest.approx(0.5)


def test_a_block_holds_the_same_text_under_every_tokenizer() -> None:
    # 129 bytes: two nats each in the first half, one in the second.
    by_bytes = summarize(torch.tensor([2.0] * 64 + [1.0] * 64), BYTES[:129])
    by_pairs = summarize(torch.tensor([4.0] * 32 + [2.0] * 32), torch.tensor([1, *[2] * 64]))
    assert by_bytes.block_losses == by_pairs.block_losses == (2.0,) * 32 + (1.0,) * 32


def test_a_tokens_loss_is_spread_over_its_bytes() -> None:
    result = summarize(torch.tensor([1.0, 6.0]), torch.tensor([1, 2, 6]))
    assert result.block_losses == pytest.approx([3 / 4, 1.0])


def test_sums_are_taken_in_float64() -> None:
    # In float32, each 1e-8 would be lost beside the first loss.
    losses_N = torch.tensor([1.0] + [1e-8] * 63 * 1000)
    assert summarize(losses_N, BYTES[: len(losses_N) + 1]).loss * len(losses_N) == pytest.approx(1 + 63e-5, abs=1e-9)


def test_an_evaluation_that_is_told_to_stop_gives_nothing() -> None:
    assert evaluate_split(model(), TOKENS.val, TOKENS.bytes_per_id_V, stop_after(0)) is None
    assert not never()


def test_the_memory_of_the_logits_is_bounded_for_large_vocabularies() -> None:
    assert evaluation_windows(4, 32, 10**5, "cpu") * 4 * 32 * 10**5 * 4 <= 256 * 2**20
    assert evaluation_windows(1, 1_000_000, 10**6, "cpu") == 1


def test_several_lanes_can_be_evaluated_on_demand() -> None:
    trainer = trainer_of(trial(), trial(seed=1), trial(seed=2))
    results = trainer.evaluate_together([2, 0], "test")
    assert set(results) == {0, 2}
    assert results[2].loss == pytest.approx(trainer.evaluate(2, "test").loss, abs=1e-6)
