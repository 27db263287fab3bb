from __future__ import annotations

from pathlib import Path

from moesearch.config.reference import REGENERATE, all_fields, reference_markdown
from moesearch.config.resolve import field_names

FIELDS = {facts.path: facts for facts in all_fields()}


def test_the_committed_reference_is_that_of_the_schema() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference.md"
    assert page.read_text(encoding="utf-8") == reference_markdown(), f"docs/reference.md is stale; run: {REGENERATE}"


def test_every_field_of_a_trial_has_a_meaning_and_says_what_a_search_over_it_means() -> None:
    assert set(field_names()) <= set(FIELDS)
    assert all(FIELDS[path].meaning and FIELDS[path].knob for path in field_names())


def test_every_field_of_a_study_has_a_meaning() -> None:
    study = {path: facts for path, facts in FIELDS.items() if path not in field_names()}
    assert {"name", "search", "confirm.seeds", "run.workers"} <= set(study)
    assert all(facts.meaning for facts in study.values())


def test_a_field_is_told_with_range_default_and_kind() -> None:
    facts = FIELDS["moe.top_k"]
    assert (facts.values, facts.default, facts.knob) == ("a whole number from 1 to 512", "2", "lane")
    assert FIELDS["model.width"].knob == "shape"
    assert FIELDS["name"].default is None


def test_a_field_that_is_not_searched_says_why() -> None:
    assert "confirm.seeds trains the best on fresh ones" in str(FIELDS["seed"].knob_sentence)
