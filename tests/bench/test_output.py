from __future__ import annotations

import json

import pytest

from moesearch.bench.figures import Figure, at_least, at_most, milliseconds, minutes
from moesearch.bench.measure import Spread
from moesearch.bench.output import Facts, as_object, as_table, name_of_device

FACTS = Facts("cpu", "a processor", 2, "2.13.0", is_quick=True, seconds=41.5)
FAST = Figure("a", "step_vs_reference", "article's step / our step", Spread(2.1, 1.9, 2.3), at_least(1.6), "9 / 4 ms")
SLOW = Figure("b", "moe_vs_dense_8_2", "8 experts / dense", Spread(1.5, 1.4, 1.6), at_most(1.3), parts={"seconds": 0.5})
PLAIN = Figure("f", "products_share_of_step", "products / step", Spread(0.5, 0.4, 0.6))


def test_the_json_object_has_a_number_and_a_spread_for_each_figure() -> None:
    values = as_object([FAST, SLOW], FACTS)
    assert values["step_vs_reference"] == 2.1
    assert values["step_vs_reference_spread"] == [1.9, 2.3]
    assert values["moe_vs_dense_8_2"] == 1.5


def test_the_json_object_says_where_it_was_measured() -> None:
    values = as_object([FAST], FACTS)
    assert (values["device"], values["device_name"], values["threads"], values["torch"], values["is_quick"]) == (
        "cpu",
        "a processor",
        2,
        "2.13.0",
        True,
    )


def test_the_json_object_says_which_marks_are_met() -> None:
    assert as_object([FAST, SLOW, PLAIN], FACTS)["marks"] == {
        "step_vs_reference": {"mark": "at least 1.6", "is_met": True},
        "moe_vs_dense_8_2": {"mark": "at most 1.3", "is_met": False},
    }


def test_the_json_object_is_json() -> None:
    assert json.loads(json.dumps(as_object([FAST, SLOW, PLAIN], FACTS)))["parts"]["moe_vs_dense_8_2"] == {
        "seconds": 0.5
    }


def test_a_line_of_the_table_says_what_is_good_and_whether_it_was_met() -> None:
    lines = as_table([FAST, SLOW, PLAIN], FACTS).splitlines()
    assert lines[1] == "(a)  article's step / our step   2.10  1.90 to 2.30  at least 1.6  met     9 / 4 ms"
    assert "at most 1.3   MISSED" in lines[2]
    assert "met" not in lines[3].lower()


def test_the_table_ends_with_the_marks_met_and_the_machine() -> None:
    last = as_table([FAST, SLOW, PLAIN], FACTS).splitlines()[-1]
    assert last == "1 of 2 marks met on a processor (cpu, 2 threads), torch 2.13.0; quick: rough, 42 s"


@pytest.mark.parametrize(("value", "is_met"), [(1.59, False), (1.6, True), (2.0, True)])
def test_a_lower_mark_is_met_from_its_bound_on(value: float, is_met: bool) -> None:
    assert at_least(1.6).is_met_by(value) is is_met


@pytest.mark.parametrize(("value", "is_met"), [(1.2, True), (1.3, True), (1.31, False)])
def test_an_upper_mark_is_met_up_to_its_bound(value: float, is_met: bool) -> None:
    assert at_most(1.3).is_met_by(value) is is_met


def test_times_are_shown_with_three_digits() -> None:
    assert [milliseconds(0.001234), milliseconds(0.0987), milliseconds(0.16849)] == ["1.23 ms", "98.7 ms", "168 ms"]
    assert minutes(754.0) == "12.6 min"


def test_the_device_has_a_name() -> None:
    assert name_of_device("cpu")
