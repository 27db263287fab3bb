import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from moesearch.results import wording
from moesearch.results.runs import ConfirmRun, Rate
from moesearch.results.verdict import OpenedTest, Verdict, decide


def planted(losses: npt.ArrayLike, baseline: int | None = None, blocks: bool = False) -> list[ConfirmRun]:
    """Confirmation runs from a table of configurations x seeds."""
    return [
        ConfirmRun(
            fingerprint=f"{config:016x}",
            label=f"E{2**config}",
            params={"moe.num_experts": 2**config},
            seed_index=seed,
            val_loss=float(loss),
            search_value=float(loss) - 0.01,
            is_baseline=config == baseline,
            block_losses=(float(loss) - 0.1, float(loss) + 0.1) if blocks else (),
        )
        for config, row in enumerate(np.asarray(losses))
        for seed, loss in enumerate(row)
    ]


def planted_study(rng: np.random.Generator, true_losses: Sequence[float], num_seeds: int) -> list[ConfirmRun]:
    """A study whose seed noise is 1, with half of its variance shared by the runs of one seed index."""
    shared, own = rng.standard_normal((1, num_seeds)), rng.standard_normal((len(true_losses), num_seeds))
    return planted(100 + np.array(true_losses)[:, None] + math.sqrt(0.5) * (shared + own))


NULL_STUDIES = 1000
# 2.6 standard errors of that many tosses of a coin with chance 0.05.
FIVE_PERCENT = 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / NULL_STUDIES)


@pytest.mark.parametrize("num_configs", [2, 4])
def test_with_no_real_difference_a_winner_is_claimed_in_at_most_5_percent_of_studies(num_configs: int) -> None:
    rng = np.random.default_rng(1)
    claims = [decide(planted_study(rng, [0] * num_configs, 3)).conclusion == "winner" for _ in range(NULL_STUDIES)]
    assert np.mean(claims) <= FIVE_PERCENT


def test_with_no_real_difference_any_claim_at_all_is_made_in_at_most_5_percent_of_studies() -> None:
    rng = np.random.default_rng(2)
    claims = [any(c.is_shown for c in decide(planted_study(rng, [0] * 5, 3)).comparisons) for _ in range(NULL_STUDIES)]
    assert np.mean(claims) <= FIVE_PERCENT


def test_two_equal_leaders_among_worse_ones_are_told_apart_in_at_most_5_percent_of_studies() -> None:
    rng = np.random.default_rng(3)
    claims = [decide(planted_study(rng, [0, 0, 50, 50], 5)).conclusion == "winner" for _ in range(NULL_STUDIES)]
    assert np.mean(claims) <= FIVE_PERCENT


def test_a_difference_of_three_seed_deviations_is_found_in_95_percent_of_studies_of_five_seeds() -> None:
    rng = np.random.default_rng(4)
    verdicts = [decide(planted_study(rng, [3, 0, 3, 3], 5)) for _ in range(300)]
    found = [v.conclusion == "winner" and v.ranking[0].label == "E2" for v in verdicts]
    assert np.mean(found) >= 0.95


def test_three_seeds_find_three_deviations_mostly_but_not_always() -> None:
    rng = np.random.default_rng(5)
    found = np.mean([decide(planted_study(rng, [3, 0, 3, 3], 3)).conclusion == "winner" for _ in range(300)])
    assert 0.7 < found < 0.99


WINNER = [[1.90, 1.91, 1.92], [1.80, 1.81, 1.82], [1.85, 1.861, 1.869]]
TIE = [[1.800, 1.806, 1.801], [1.8025, 1.805, 1.806], [1.95, 1.951, 1.956]]


def test_the_lowest_mean_is_ranked_first() -> None:
    assert [candidate.label for candidate in decide(planted(WINNER)).ranking] == ["E2", "E4", "E1"]


def test_a_winner_is_said_with_nats_percent_confidence_and_the_baseline() -> None:
    verdict = decide(planted(WINNER, baseline=0))
    assert verdict.sentence == (
        "E2 is best: 1.8100 nats, 0.0500 nats (2.69 %) below the runner-up, E4, at 95 % confidence (3 fresh seeds "
        "each, paired, Holm-corrected). It beats the baseline, E1, by 0.1000 nats (5.24 %)."
    )


def test_no_difference_is_said_with_the_seeds_that_could_show_one() -> None:
    verdict = decide(planted(TIE))
    assert verdict.conclusion == "no_difference"
    assert verdict.leaders == ("E1", "E2")
    assert verdict.seeds_needed is not None
    assert verdict.seeds_needed > 3
    assert "No difference was shown between the leaders, E1 and E2." in verdict.sentence
    assert f"{verdict.seeds_needed - 3} more seeds each could show it" in verdict.sentence


def test_a_configuration_that_is_shown_to_be_worse_is_no_leader() -> None:
    assert [comparison.is_shown for comparison in decide(planted(TIE)).comparisons] == [False, True]


def test_an_interval_of_a_difference_excludes_zero_just_where_the_difference_is_shown() -> None:
    rng = np.random.default_rng(6)
    for _ in range(100):
        for comparison in decide(planted_study(rng, [0, 1, 2, 3], 3)).comparisons:
            assert (comparison.low > 0) == comparison.is_shown


def test_pairing_by_seed_takes_out_what_the_seeds_share() -> None:
    verdict = decide(planted([[1.0, 2.0, 3.0], [1.1, 2.1, 3.101]]))
    assert verdict.conclusion == "winner"
    assert verdict.paired_noise == pytest.approx(0.0004, abs=2e-4)
    assert verdict.seed_noise == pytest.approx(1.0, abs=1e-2)


def test_blocks_of_the_text_count_as_one_replicate_not_as_many() -> None:
    with_blocks, without = decide(planted(TIE, blocks=True)), decide(planted(TIE))
    assert [c.p_value for c in with_blocks.comparisons] == [c.p_value for c in without.comparisons]
    assert with_blocks.comparisons[0].num_blocks == 2


def test_the_seed_noise_is_the_pooled_deviation_over_seeds() -> None:
    losses = np.array(WINNER)
    assert decide(planted(WINNER)).seed_noise == pytest.approx(math.sqrt(losses.var(axis=1, ddof=1).mean()))


def test_the_winners_curse_is_search_value_minus_confirmed_mean() -> None:
    assert decide(planted(WINNER)).flattery == pytest.approx(1.79 - 1.81)


def test_a_configuration_that_diverged_on_a_fresh_seed_is_left_out() -> None:
    losses = np.array(WINNER)
    losses[1, 2] = math.nan
    verdict = decide(planted(losses))
    assert [candidate.label for candidate in verdict.ranking] == ["E4", "E1"]
    assert verdict.left_out[0].reason == "diverged on 1 of 3 fresh seeds"


def test_only_seeds_that_every_configuration_has_are_compared() -> None:
    runs = [run for run in planted(WINNER) if (run.label, run.seed_index) != ("E1", 0)]
    assert decide(runs).num_seeds == 2


def test_a_configuration_far_behind_does_not_hold_up_the_others() -> None:
    runs = [run for run in planted(WINNER) if run.label != "E1" or run.seed_index == 0]
    verdict = decide(runs)
    assert [candidate.label for candidate in verdict.ranking] == ["E2", "E4"]
    assert verdict.left_out[0].label == "E1"


def test_a_single_seed_confirms_nothing() -> None:
    verdict = decide(planted([[1.8], [1.9]]))
    assert verdict.conclusion == "unconfirmed"
    assert verdict.ranking[0].low is None


def test_one_configuration_is_confirmed_but_compared_with_none() -> None:
    assert decide(planted([[1.8, 1.81]])).conclusion == "alone"


def test_no_runs_give_no_answer() -> None:
    assert decide([]).sentence == "No configuration has finished its training yet, so there is no answer yet."


def test_equal_losses_are_no_difference() -> None:
    verdict = decide(planted([[1.8, 1.8], [1.8, 1.8]]))
    assert verdict.conclusion == "no_difference"
    assert "take the cheaper one" in verdict.sentence


def test_the_order_of_the_runs_does_not_matter() -> None:
    assert decide(planted(WINNER)[::-1]) == decide(planted(WINNER))


@pytest.mark.parametrize("losses", [WINNER, TIE, [[1.8], [1.9]], [[1.8, 1.9]]])
def test_json_gives_an_equal_verdict(losses: list[list[float]]) -> None:
    verdict = decide(planted(losses, baseline=0, blocks=True), num_searched=24)
    tested = Verdict.from_json({**verdict.to_json(), "test": OpenedTest((1.9,), (2.7,), 1.0).__dict__})
    assert tested.test == OpenedTest((1.9,), (2.7,), 1.0)
    assert Verdict.from_json(json.loads(json.dumps(verdict.to_json()))) == verdict


def with_control(label: str) -> list[ConfirmRun]:
    """The winner's runs, with one configuration as the dense control, which then is no baseline."""
    return [
        replace(run, label="the dense control", is_control=True, is_baseline=False) if run.label == label else run
        for run in planted(WINNER, baseline=0)
    ]


def test_the_baseline_is_said_where_the_runner_up_is_the_dense_control() -> None:
    sentence = decide(with_control("E4")).sentence
    assert "below the runner-up, the dense control, at 95 % confidence" in sentence
    assert sentence.endswith("It beats the baseline, E1, by 0.1000 nats (5.24 %).")


def test_the_dense_control_is_said_with_what_it_is() -> None:
    assert decide(with_control("E1")).sentence.endswith(
        "It beats the dense control of equal active FLOPs by 0.1000 nats (5.24 %)."
    )


def test_a_dense_control_that_wins_is_said_to_be_best() -> None:
    assert decide(with_control("E2")).sentence.startswith("The dense control is best: 1.8100 nats")


def at_rate(lr: float, tried: dict[float, float | None]) -> Verdict:
    rate = Rate(lr, searched_lr=1e-3, tried=tuple(tried.items()))
    return decide([replace(run, rate=rate) for run in planted(WINNER)])


def test_the_winners_curse_compares_at_the_learning_rate_of_the_search() -> None:
    assert at_rate(1e-3, {5e-4: 1.9, 1e-3: 1.8, 2e-3: 1.9}).flattery == pytest.approx(1.79 - 1.81)
    moved = at_rate(2e-3, {5e-4: 1.9, 1e-3: 1.85, 2e-3: 1.8, 4e-3: None})
    assert moved.flattery == pytest.approx(1.79 - 1.85)
    assert any("on a fresh seed at the same learning rate, 0.001." in detail for detail in wording.details(moved))


def test_the_learning_rates_are_said_and_one_at_the_end_of_those_tried_is_a_warning() -> None:
    bracketed = wording.details(at_rate(1e-3, {5e-4: 1.9, 1e-3: 1.8, 2e-3: 1.9}))
    assert any("the best of 3 tried on a seed apart: 0.001 for all of them" in detail for detail in bracketed)
    assert not any("may lie beyond" in detail for detail in bracketed)
    at_end = wording.details(at_rate(8e-3, {4e-3: 1.9, 8e-3: 1.8}))
    assert any("The learning rates of E2, E4 and E1 are at the end of those tried" in detail for detail in at_end)
