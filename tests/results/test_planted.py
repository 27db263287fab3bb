from functools import cache

from moesearch.results.planted import PlantedRates, planted_rates


@cache
def rates() -> PlantedRates:
    return planted_rates()


def test_with_no_real_difference_a_winner_is_claimed_in_at_most_5_percent_of_1000_studies() -> None:
    assert rates().num_studies == 1000
    assert rates().false_winner_rate <= 0.05
    assert rates().false_claim_rate <= 0.05


def test_a_difference_of_three_seed_deviations_is_found_in_at_least_95_percent() -> None:
    assert rates().true_winner_rate >= 0.95
