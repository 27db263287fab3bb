"""Folders that cannot be had, files in the way, names and addresses that will not do, given to the real commands.

Each ends with exit code 2 and words that name the place and a way on, before anything is trained.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from moesearch import export, report_cli, run, train
from moesearch.cli import run_command
from tests.results.stores import finished_study
from tests.search.stand_ins import storage_in
from tests.test_run import STUDY

Refused = Callable[..., str]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study file beside a file ``taken``, in the folder that the command is given in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Path("taken").write_text("mine")
    Path("text.txt").write_text("To be, or not to be, that is the question.\n" * 100)
    Path("tiny.yaml").write_text(STUDY.format(text="text.txt"))
    return Path("tiny.yaml")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Gives a command, and returns the words with which it ends with exit code 2."""

    def refuse(main: Callable[[list[str]], int], *arguments: str | Path) -> str:
        with pytest.raises(SystemExit) as ended:
            run_command(lambda: main([*map(str, arguments)]))
        assert ended.value.code == 2
        return capsys.readouterr().err

    return refuse


@pytest.mark.parametrize(
    ("flag", "place", "found"),
    [
        ("--runs", "taken", "taken: cannot be made a folder: File exists; choose another --runs"),
        ("--runs", "taken/below", "taken/below: cannot be made a folder: Not a directory; choose another --runs"),
        ("--reports", "taken", "taken/tiny: cannot be made a folder: Not a directory; choose another --reports"),
        ("--reports", "taken/below", "taken/below/tiny: cannot be made a folder: Not a directory"),
        (
            "--files",
            "taken",
            "checkpoints/tiny: cannot be made a folder: Not a directory; choose another --files",
        ),
    ],
)
def test_a_place_that_can_be_no_folder_is_named_with_its_flag(
    study: Path, refused: Refused, flag: str, place: str, found: str
) -> None:
    assert found in refused(run.main, study, flag, place)
    assert Path("taken").read_text() == "mine"


@pytest.mark.parametrize("flag", ["--runs", "--reports", "--files"])
def test_a_place_that_cannot_be_written_to_is_named_with_its_flag(study: Path, refused: Refused, flag: str) -> None:
    """Not by a mode, which does not bind root: in /proc nobody makes folders."""
    if not Path("/proc/self").exists():
        pytest.skip("no /proc here, which nobody can write to")
    said = refused(run.main, study, flag, "/proc/self")
    assert said.startswith("/proc/self")
    assert said.rstrip().endswith(f"choose another {flag}")


@pytest.mark.skipif(os.geteuid() == 0, reason="modes do not bind root")
@pytest.mark.parametrize("flag", ["--runs", "--reports", "--files"])
def test_a_read_only_folder_is_named_with_its_flag(study: Path, refused: Refused, flag: str) -> None:
    Path("closed").mkdir(mode=0o555)
    said = refused(run.main, study, flag, "closed")
    assert "Permission denied" in said
    assert said.rstrip().endswith(f"choose another {flag}")
    assert not list(Path("closed").iterdir())


@pytest.mark.parametrize("name", ["best.yaml", "index.html"])
def test_a_folder_where_a_file_of_the_report_goes_is_found_before_training(
    study: Path, refused: Refused, name: str
) -> None:
    (Path("reports") / "tiny" / name / "inside").mkdir(parents=True)
    assert refused(run.main, study).startswith(f"reports/tiny/{name}: is a folder where a file of the report goes")
    assert (Path("reports") / "tiny" / name / "inside").exists()


@pytest.mark.parametrize(("name", "flag"), [("checkpoints", "--runs"), ("logs", "--runs")])
def test_a_file_where_a_folder_of_the_run_goes_is_found_before_training(
    study: Path, refused: Refused, name: str, flag: str
) -> None:
    Path("runs").mkdir()
    (Path("runs") / name).write_text("mine")
    assert f"runs/{name}/tiny: cannot be made a folder: Not a directory; choose another {flag}" in refused(
        run.main, study
    )
    assert (Path("runs") / name).read_text() == "mine"


def test_a_store_that_is_a_folder_is_named(study: Path, refused: Refused) -> None:
    (Path("runs") / "optuna.db").mkdir(parents=True)
    assert "runs/optuna.db is a folder; name a file in it" in refused(run.main, study)


@pytest.mark.parametrize("name", ["a" * 300, "a/b", "../up", "..", ".hidden", "two words", "é", "\u202e", "a\n", "<b>"])
def test_a_name_that_could_be_no_folder_is_refused_before_anything_is_written(
    study: Path, refused: Refused, name: str
) -> None:
    study.write_text(study.read_text().replace("name: tiny", f"name: {name!r}"))
    before = sorted(Path().rglob("*"))
    assert "tiny.yaml:1: name must be text of at most 200 letters, digits, dots, '_' and '-'" in refused(
        run.main, study
    )
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    "url", ["", "nonsense", "sqlite://", "http://x", "mysql://x/y", "sqlite:///taken/x.db", "sqlite:///taken"]
)
def test_a_store_that_is_none_is_refused(study: Path, refused: Refused, url: str) -> None:
    said = refused(run.main, study, "--storage", url)
    assert any(way in said for way in ("sqlite:///", "postgresql", "choose another"))
    assert Path("taken").read_text() == "mine"


def test_a_store_that_does_not_answer_is_named_without_its_password(study: Path, refused: Refused) -> None:
    pytest.importorskip("psycopg")
    said = refused(run.main, study, "--storage", "postgresql+psycopg://me:hunter2@127.0.0.1:1/x")
    assert "127.0.0.1:1/x: cannot be opened as a study store" in said
    assert "hunter2" not in said


@pytest.mark.parametrize("place", ["nosuch", "/", "/dev/null"])
def test_a_text_that_the_environment_names_wrongly_is_refused(
    study: Path, refused: Refused, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOESEARCH_TINY_SHAKESPEARE", place)
    study.write_text(study.read_text().replace("text: text.txt", "corpus: tiny_shakespeare"))
    assert "MOESEARCH_TINY_SHAKESPEARE: " in refused(run.main, study)


def test_reports_that_cannot_be_written_are_refused_by_the_command_that_builds_them_again(
    study: Path, refused: Refused, tmp_path: Path
) -> None:
    finished_study(storage=storage_in(tmp_path))
    store = ("--storage", f"sqlite:///{tmp_path / 'optuna.db'}")
    assert "taken/experts_topk: cannot be written: Not a directory; choose another --reports" in refused(
        report_cli.main, "experts_topk", *store, "--reports", "taken"
    )
    assert "taken" in refused(export.main, "experts_topk", *store, "-o", "taken/best.yaml")


def test_a_training_run_whose_folder_cannot_be_made_is_refused(study: Path, refused: Refused) -> None:
    Path("trial.yaml").write_text("trial:\n  data: { text: text.txt }\n  budget: { steps: 1, milestones: 1 }\n")
    assert "taken" in refused(train.main, "trial.yaml", "--out", "taken/run")
