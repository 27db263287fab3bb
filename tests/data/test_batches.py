from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moesearch.data.batches import BatchOrder, evaluation_batches
from moesearch.errors import CorpusError

SEEDS = st.integers(0, 2**63 - 1)
SIZES = st.integers(1, 9)


@given(seed=SEEDS, batch_size=SIZES, context=SIZES, surplus=st.integers(1, 50), step=st.integers(0, 10**9))
def test_every_window_lies_inside_the_split(seed: int, batch_size: int, context: int, surplus: int, step: int) -> None:
    num_tokens = context + surplus
    starts = BatchOrder(seed, num_tokens, batch_size, context).window_starts(step)
    assert starts.shape == (batch_size,)
    assert starts.dtype == torch.int64
    assert starts.min() >= 0
    assert starts.max() + context + 1 <= num_tokens


@given(seed=SEEDS, batch_size=SIZES, first=st.integers(0, 1000), num_steps=st.integers(0, 5))
def test_a_range_of_steps_is_those_steps(seed: int, batch_size: int, first: int, num_steps: int) -> None:
    order = BatchOrder(seed, 1000, batch_size, 8)
    starts = order.window_starts_range(first, first + num_steps)
    assert starts.shape == (num_steps, batch_size)
    for offset in range(num_steps):
        assert torch.equal(starts[offset], order.window_starts(first + offset))


def test_the_order_is_the_same_on_every_machine() -> None:
    # Checked against Salmon et al.'s definition of Philox 4x64-10. Other numbers here mean other results everywhere.
    order = BatchOrder(order_seed=2**63 - 1, num_tokens=1_003_854, batch_size=3, context=32)
    assert order.window_starts_range(10**9, 10**9 + 2).tolist() == [[906138, 332905, 53432], [340194, 107545, 758008]]


def test_other_seeds_and_other_steps_read_other_windows() -> None:
    order = BatchOrder(0, 10**6, 16, 32)
    assert not torch.equal(order.window_starts(0), order.window_starts(1))
    assert not torch.equal(order.window_starts(0), BatchOrder(1, 10**6, 16, 32).window_starts(0))


def test_starts_are_uniform_over_all_valid_ones() -> None:
    starts = BatchOrder(0, num_tokens=13, batch_size=10, context=3).window_starts_range(0, 2000).flatten()
    counts = torch.bincount(starts, minlength=10)
    assert counts.shape == (10,)
    # 20,000 draws over 10 starts: a deviation of 42; five of them leave no room for chance.
    assert (counts - 2000).abs().max() < 210


def test_the_shortest_split_has_one_window() -> None:
    assert BatchOrder(0, num_tokens=9, batch_size=2, context=8).window_starts(5).tolist() == [0, 0]


def test_a_split_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(CorpusError, match=r"8 training tokens hold no window of model\.context \(8\) tokens"):
        BatchOrder(0, num_tokens=8, batch_size=2, context=8)


@pytest.mark.parametrize(("first", "last"), [(-1, 2), (3, 2)])
def test_a_range_that_runs_backwards_is_an_error(first: int, last: int) -> None:
    with pytest.raises(ValueError, match="0 <= first <= last"):
        BatchOrder(0, 100, 2, 8).window_starts_range(first, last)


@given(num_tokens=st.integers(2, 200), context=st.integers(1, 60), num_windows=st.integers(1, 5))
def test_evaluation_predicts_every_token_but_the_first_once(num_tokens: int, context: int, num_windows: int) -> None:
    batches = list(evaluation_batches(torch.arange(num_tokens), context, num_windows))
    inputs, targets = (torch.cat([part.flatten() for part in parts]) for parts in zip(*batches, strict=True))
    assert inputs.tolist() == list(range(num_tokens - 1))
    assert targets.tolist() == list(range(1, num_tokens))


@given(num_tokens=st.integers(2, 200), context=st.integers(1, 60), num_windows=st.integers(1, 5))
def test_evaluation_windows_are_whole_but_for_one_at_the_end(num_tokens: int, context: int, num_windows: int) -> None:
    shapes = [tuple(inputs.shape) for inputs, _ in evaluation_batches(torch.arange(num_tokens), context, num_windows)]
    num_short = (num_tokens - 1) % context
    whole = [shape for shape in shapes if shape[1] == context]
    assert shapes == whole + ([(1, num_short)] if num_short else [])
    assert all(num == num_windows for num, _ in whole[:-1])
