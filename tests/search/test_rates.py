import math

import pytest

from moesearch.config.resolve import resolve
from moesearch.config.trial import TrialConfig
from moesearch.search.rates import FURTHEST, best_doublings, impossible, next_doublings, rate_at


def search(optimum: float, diverges_from: int = 99) -> dict[int, float]:
    """What is tried where the loss grows with the distance from the optimum, in doublings."""
    losses: dict[int, float] = {}
    while step := next_doublings(losses):
        losses |= {
            doublings: math.inf if doublings >= diverges_from else abs(doublings - optimum) for doublings in step
        }
    return losses


def test_half_once_and_twice_the_rate_are_tried_first() -> None:
    assert next_doublings({}) == [-1, 0, 1]
    assert next_doublings({0: 2.0}) == [-1, 1]


def test_a_best_rate_between_worse_ones_ends_the_search() -> None:
    assert sorted(search(0.2)) == [-1, 0, 1]


@pytest.mark.parametrize(
    ("optimum", "tried"), [(1.2, [-1, 0, 1, 2]), (-2.1, [-3, -2, -1, 0, 1]), (9, [-1, 0, 1, 2, 3, 4, 5])]
)
def test_the_search_goes_on_until_the_best_rate_is_bracketed_or_far(optimum: float, tried: list[int]) -> None:
    losses = search(optimum)
    assert sorted(losses) == tried
    assert best_doublings(losses) == max(-FURTHEST, min(FURTHEST, round(optimum)))


def test_a_rate_that_diverges_is_worse_than_any_other() -> None:
    assert best_doublings(search(5, diverges_from=1)) == 0


def test_where_every_rate_diverges_lower_ones_are_tried() -> None:
    losses = search(0, diverges_from=-1)
    assert sorted(losses) == [-3, -2, -1, 0, 1]
    assert best_doublings(losses) == -2


def test_of_equal_rates_the_one_that_was_searched_stays() -> None:
    assert best_doublings({-1: 2.0, 0: 2.0, 1: 2.0}) == 0


def test_rates_beyond_the_field_are_not_tried() -> None:
    config = resolve(TrialConfig(), {"optim.lr": 40.0})
    assert sorted(impossible(config)) == [2, 3, 4, 5]
    assert rate_at(config, -1) == 20
