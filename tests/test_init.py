from __future__ import annotations

import json
from pathlib import Path

import pytest

from moesearch import init
from moesearch.config.checks import searchable_fields
from moesearch.config.loader import load_study
from moesearch.config.space import feasible_points
from moesearch.errors import InputError


def test_the_file_loads_as_it_is_and_has_a_knob_of_each_kind(tmp_path: Path) -> None:
    path = tmp_path / "my_study.yaml"
    assert init.main([str(path)]) == 0
    study = load_study(path)
    assert study.name == "my_study"
    assert [knob.type for knob in study.search.values()] == ["categorical", "int", "float"]
    assert study.enqueue
    assert feasible_points(study) is None


def test_the_file_opens_with_question_cost_and_expectation(tmp_path: Path) -> None:
    opening = init.study_text(tmp_path / "x.yaml", with_hint=False).partition("\nname:")[0]
    assert [line.split()[1] for line in opening.splitlines()] == ["Question:", "Cost:", "Expectation:"]


@pytest.mark.parametrize(
    ("file", "name"),
    [("a b é.yaml", "a_b"), ("-x.yml", "x"), ("1e3.yaml", "1e3"), ("true.yaml", "true"), ("é.yaml", "study")],
)
def test_any_file_name_becomes_a_name_that_a_study_can_have(file: str, name: str, tmp_path: Path) -> None:
    init.main([str(tmp_path / "new folder" / file)])
    assert load_study(tmp_path / "new folder" / file).name.strip("_") == name


def test_a_file_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("precious")
    with pytest.raises(InputError, match="stays as it is; choose another name, or delete it"):
        init.main([str(path), "--schema"])
    assert [file.name for file in tmp_path.iterdir()] == ["mine.yaml"]
    assert path.read_text() == "precious"


def test_the_schema_lies_beside_the_file_whose_first_line_names_it(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    init.main([str(path), "--schema"])
    hint, _, schema = path.read_text().splitlines()[0].partition("$schema=")
    assert hint == "# yaml-language-server: "
    search = json.loads((tmp_path / schema).read_text())["properties"]["search"]
    assert tuple(search["properties"]) == searchable_fields()
    assert load_study(path).name == "x"


def test_the_schema_alone_says_how_a_study_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    init.main(["--schema"])
    assert init.HINT in capsys.readouterr().out
    assert (tmp_path / init.SCHEMA_FILE).exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "name the study file to write"),
        (["my_study"], "a study file ends in .yaml; write my_study.yaml"),
        (["a\nb.yaml"], "without control characters"),
    ],
)
def test_a_name_that_will_not_do_is_met_with_the_way_on(argv: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        init.main(argv)


def test_a_place_that_cannot_be_written_is_a_persons_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        init.main([str(tmp_path / "file" / "x.yaml")])
