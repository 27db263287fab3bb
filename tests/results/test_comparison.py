from dataclasses import replace

import pytest

from moesearch.report.comparison import sentence
from moesearch.results.comparison import compare
from moesearch.results.study import StudyResults, read_study
from tests.results.stores import finished_study


@pytest.fixture(scope="module")
def study() -> StudyResults:
    return read_study(finished_study().storage, "experts_topk")


def other(study: StudyResults, **changes: object) -> StudyResults:
    return replace(study, **{"name": "other", **changes})  # type: ignore[arg-type]


def test_a_study_does_not_differ_from_itself(study: StudyResults) -> None:
    comparison = compare([study, other(study)])
    [difference] = comparison.differences
    assert difference.difference == 0
    assert not difference.is_shown
    assert comparison.settings == {}
    assert sentence(comparison).startswith("No difference was shown")


def test_a_better_best_is_named_with_its_interval(study: StudyResults) -> None:
    worse = other(study)
    losses = study.confirm["val_loss"] + 1
    worse.__dict__["confirm"] = study.confirm.assign(val_loss=losses)
    comparison = compare([worse, study])
    [difference] = comparison.differences
    assert (difference.better, difference.other, difference.is_shown) == ("experts_topk", "other", True)
    assert difference.low < 1 < difference.high
    assert sentence(comparison).startswith("The best of experts_topk, E16 k4 xavier noise-off, is 1.0000 nats below")


def test_losses_on_two_texts_are_not_compared(study: StudyResults) -> None:
    comparison = compare([study, other(study, corpus={**study.corpus, "sha256": "0" * 64})])
    assert comparison.differences == ()
    assert sentence(comparison) == "Losses of these studies cannot be compared."


def test_settings_that_differ_are_listed_and_only_those(study: StudyResults) -> None:
    longer = study.config.model_copy(update={"num_trials": study.config.num_trials + 1})
    comparison = compare([study, other(study, config=longer)])
    assert comparison.settings == {"num_trials": (str(study.config.num_trials), str(longer.num_trials))}


def test_losses_in_two_kinds_of_tokens_are_compared_in_bits_per_byte(study: StudyResults) -> None:
    data = study.config.base.data.model_copy(update={"tokenizer": "byte"})
    base = study.config.base.model_copy(update={"data": data})
    worse = other(study, config=study.config.model_copy(update={"base": base}))
    worse.__dict__["confirm"] = study.confirm.assign(val_bpb=study.confirm["val_bpb"] + 0.5)
    comparison = compare([study, worse])
    [difference] = comparison.differences
    assert difference.difference == pytest.approx(0.5)
    assert "0.5000 bits per byte below" in sentence(comparison)
    assert any("tokenizers differ" in obstacle for obstacle in comparison.obstacles)
