from typing import Any

from moesearch.config.confirm_runs import NUM_FIRST_RATES, num_confirm_runs


def test_where_the_learning_rate_is_a_knob_only_the_control_has_still_to_find_one() -> None:
    facts: Any = {"top": 2, "seeds": 3, "lr_search": True, "has_baseline": True, "has_control": True}
    assert num_confirm_runs(**facts, lr_is_knob=False) == 4 * (3 + NUM_FIRST_RATES)
    assert num_confirm_runs(**facts, lr_is_knob=True) == 4 * 3 + NUM_FIRST_RATES
