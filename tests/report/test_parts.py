import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesearch.report.blocks import Facts, Table
from moesearch.report.cost_figures import confirmed_places, cost_figure, pareto_front
from moesearch.report.numbers import MISSING, compact, duration, exact, loss
from moesearch.report.ranking import ranking_section
from moesearch.report.routers import load_figure, routers_section
from moesearch.report.sections import curves_section, recommended_section, settings_section
from moesearch.report.summary import escape
from moesearch.results.study import read_study
from tests.results.stores import BASE_ON_A_SHARE, finished_study, study_config


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


def test_the_load_heat_map_has_a_cell_per_layer_and_expert() -> None:
    figure = load_figure([(0.25, 0.75), (0.5, 0.5), (0.009, 0.991)])
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.5", "1.5", "1.0", "1.0", "0.0", "2.0"]


def test_a_study_of_dense_models_has_no_section_on_routers() -> None:
    results = read_study(finished_study().storage, "experts_topk")
    results.__dict__["curves"] = results.curves.assign(load_entropy=math.nan)
    assert routers_section(results) is None


def test_the_section_on_routers_says_how_many_experts_are_dead() -> None:
    section = routers_section(read_study(finished_study().storage, "experts_topk"))
    assert section is not None
    [table] = [block for block in section.blocks if isinstance(block, Table)]
    assert table.header[3] == "dead experts"
    assert len(table.rows) > 3


def test_confirmed_configurations_stand_at_their_means_over_fresh_seeds() -> None:
    results = read_study(finished_study().storage, "experts_topk")
    [first, *others] = results.verdict.ranking
    places = confirmed_places(results, "flops_per_token")
    assert [candidate for candidate, _ in places] == [first, *others]
    runs = results.confirm[results.confirm["fingerprint"] == first.fingerprint]
    assert places[0][1] == pytest.approx((runs["flops_per_token"].iloc[0], runs["value"].mean()))
    results.__dict__["verdict"] = replace(results.verdict, conclusion="unconfirmed")
    assert confirmed_places(results, "flops_per_token") == []


def test_a_dense_control_that_is_best_is_called_both() -> None:
    results = read_study(finished_study().storage, "experts_topk")
    control = replace(results.verdict.ranking[0], is_control=True)
    ranking = (control, *results.verdict.ranking[1:])
    results.__dict__["verdict"] = replace(results.verdict, ranking=ranking)
    names = {text.get_text() for text in cost_figure(results, "flops_per_token", "cost").axes[0].texts}
    assert {"best, dense", "baseline"} <= names


def test_what_was_confirmed_alone_has_its_costs_from_there() -> None:
    results = read_study(finished_study().storage, "experts_topk")
    best = results.verdict.ranking[0]
    searched = results.costs["flops_per_token"][best.fingerprint]
    # The dense control is no proposal of the search, and may win.
    results.__dict__["ranking"] = results.ranking[results.ranking["fingerprint"] != best.fingerprint]
    del results.__dict__["costs"]
    section = ranking_section(results)
    assert section is not None
    first = next(block for block in section.blocks if isinstance(block, Table)).rows[0]
    assert (first[1], first[3]) == (best.label, MISSING)
    assert first[7] == f"{searched:,.0f}"
    recommended = recommended_section(results)
    assert recommended is not None
    facts = [value for block in recommended.blocks if isinstance(block, Facts) for _, value in block.items]
    assert not {"nan", MISSING} & set(facts)


def test_the_report_says_where_curves_are_of_a_part_of_the_validation_split() -> None:
    config = study_config(base=BASE_ON_A_SHARE)
    results = read_study(finished_study(config=config).storage, "experts_topk")
    assert "10, the last on the whole validation split, the others on 25 % of it" in repr(settings_section(results))
    assert "Points before a trial's last are of 25 % of the validation split." in repr(curves_section(results))
