from pathlib import Path

import pytest

from moesearch.report.notes import Notes, dashboard_notes
from moesearch.results.study import read_study
from moesearch.search.notes import write_files, write_notes
from moesearch.search.storage import open_storage
from tests.results.stores import finished_study

PAGE = "http://127.0.0.1:5000/#/experiments/1"


@pytest.fixture(scope="module")
def notes() -> Notes:
    results = read_study(finished_study().storage, "experts_topk")
    return dashboard_notes(results, "reports/experts_topk/index.html", PAGE)


def test_the_studys_note_opens_with_the_verdict(notes: Notes) -> None:
    assert notes.study.startswith("**E16 k4 xavier noise-off is best")
    assert f"[MLflow experiment]({PAGE})" in notes.study


def test_a_trials_note_says_what_it_was_and_where_it_stands(notes: Notes) -> None:
    results = read_study(finished_study().storage, "experts_topk")
    best = int(results.ranking["best_number"].iloc[0])
    note = notes.trials[best]
    assert f"Place 1 of {len(results.ranking)} configurations" in note
    assert "fresh seeds" in note
    assert f"--trial {best} -o trial.yaml" in note


def test_the_leaders_and_the_baseline_have_a_picture(notes: Notes) -> None:
    results = read_study(finished_study().storage, "experts_topk")
    baseline = results.ranking.set_index("fingerprint")["best_number"][results.baseline_fingerprint]
    assert int(baseline) in notes.trial_files
    assert all(files["learning_curve.png"].startswith(b"\x89PNG") for files in notes.trial_files.values())


def test_optuna_dashboard_finds_notes_and_files(tmp_path: Path) -> None:
    import optuna
    from optuna_dashboard import get_note
    from optuna_dashboard.artifact._backend import list_study_artifacts, list_trial_artifacts

    storage = open_storage(f"sqlite:///{tmp_path}/optuna.db")
    study = optuna.create_study(study_name="s", storage=storage)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    for text in ("first", "second"):
        write_notes(storage, "s", f"study {text}", {1: f"trial {text}"})
        write_files(storage, "s", tmp_path / "files", {"a.png": text.encode()}, {1: {"b.png": text.encode()}})
    assert get_note(study) == "study second"
    attrs = storage.get_study_system_attrs(study._study_id)
    [own] = list_study_artifacts(attrs)
    [trials] = list_trial_artifacts(attrs, {}, study.trials[1])
    assert [(own["filename"], own["mimetype"]), trials["filename"]] == [("a.png", "image/png"), "b.png"]
    assert (tmp_path / "files" / own["artifact_id"]).read_bytes() == b"second"


def test_a_note_that_has_not_changed_is_not_written_again(tmp_path: Path) -> None:
    import optuna

    storage = open_storage(f"sqlite:///{tmp_path}/optuna.db")
    study = optuna.create_study(study_name="s", storage=storage)
    write_notes(storage, "s", "as it is", {})
    before = storage.get_study_system_attrs(study._study_id)
    write_notes(storage, "s", "as it is", {})
    assert storage.get_study_system_attrs(study._study_id) == before
