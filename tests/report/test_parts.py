import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesearch.report.figures import pareto_front
from moesearch.report.numbers import compact, duration, exact, loss
from moesearch.report.summary import escape


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (512, "512"), (999.6, "1 k"), (8_996_545, "9 M"), (1.163e12, "1.16 T"), (5e15, "5 P"), (0.5, "0.5")],
)
def test_large_counts_are_short(count: float, text: str) -> None:
    assert compact(count) == text


@given(st.floats(min_value=1, max_value=1e15))
def test_a_short_count_is_within_half_a_percent(count: float) -> None:
    number, _, prefix = compact(count).partition(" ")
    size = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}[prefix]
    assert float(number) * size == pytest.approx(count, rel=0.0051)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.31, "0.3 s"), (59.4, "59 s"), (59.7, "1 min"), (552, "9 min 12 s"), (11_100, "3 h 5 min")],
)
def test_durations_are_said_in_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_is_not_known_is_a_dash() -> None:
    assert {exact(math.nan), loss(None), duration(math.nan)} == {"\N{EN DASH}"}


def test_thousands_are_separated_and_losses_have_four_decimals() -> None:
    assert (exact(8_996_545), loss(1.75)) == ("8,996,545", "1.7500")


def test_nothing_on_the_front_is_beaten_in_both_cost_and_loss() -> None:
    costs, values = np.array([1.0, 2.0, 2.0, 3.0, 4.0]), np.array([5.0, 4.0, 3.0, 3.5, 1.0])
    assert pareto_front(costs, values) == [0, 2, 4]


def test_markdown_takes_hostile_text_as_text() -> None:
    assert escape("<b>|*x*|\n# y") == "&lt;b&gt;\\|\\*x\\*\\| \\# y"


def test_markdown_keeps_underscores_inside_words() -> None:
    assert escape("moe.num_experts") == "moe.num_experts"
