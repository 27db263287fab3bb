from __future__ import annotations

import pytest

from moesearch.tracking.labels import as_text, flat_params, run_name, trial_tags


def test_a_run_is_named_by_its_knobs_and_its_number() -> None:
    params = {"moe.num_experts": 16, "moe.top_k": 2, "moe.init": "xavier_normal", "moe.noise": False}
    assert run_name(params, 12) == "E16 k2 xavier noise-off #12"


def test_a_nested_configuration_becomes_dotted_paths() -> None:
    assert flat_params({"moe": {"top_k": 2, "noise": True}, "seed": 7}) == {
        "moe.top_k": 2,
        "moe.noise": True,
        "seed": 7,
    }


@pytest.mark.parametrize(
    ("value", "text"), [(True, "true"), (None, "null"), (0.001, "0.001"), (3, "3"), ("xavier", "xavier")]
)
def test_values_are_spelled_as_in_a_study_file(value: object, text: str) -> None:
    assert as_text(value) == text


def test_tags_are_text_that_filters_can_name() -> None:
    tags = trial_tags(study="s", number=3, fingerprint="ab", replicate=1, phase="search", outcome="pruned")
    assert tags == {
        "study": "s",
        "trial": "3",
        "fingerprint": "ab",
        "replicate": "1",
        "phase": "search",
        "outcome": "pruned",
    }


def test_a_trial_that_runs_has_no_outcome_yet() -> None:
    assert "outcome" not in trial_tags(study="s", number=3, fingerprint="ab", replicate=0, phase="confirm")
