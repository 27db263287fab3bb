from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moesearch.config.checks import searchable_fields
from moesearch.config.document import read_document
from moesearch.config.schema import study_json_schema

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))

SCHEMA = study_json_schema()
KNOBS = SCHEMA["properties"]["search"]["properties"]
FIRST_TRIES = SCHEMA["properties"]["enqueue"]["items"]


def kinds(path: str) -> list[str]:
    """The types of knob that a field can have."""
    return [resolved(knob)["properties"]["type"]["const"] for knob in KNOBS[path]["oneOf"]]


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    return schema if reference is None else SCHEMA["$defs"][reference.removeprefix("#/$defs/")]


def unknown_names(value: object, schema: dict[str, Any], place: str) -> list[str]:
    """Names in a file for which the schema, that is the editor, has no property."""
    match value:
        case dict():
            schema = resolved(schema)
            if "oneOf" in schema:
                found = [resolved(option) for option in schema["oneOf"]]
                (schema,) = [option for option in found if option["properties"]["type"]["const"] == value["type"]]
            if "properties" not in schema:
                return []  # of `when`, whose names are other knobs of the file; its check is the loader's
            known = schema["properties"]
            assert schema["additionalProperties"] is False, place
            names = [f"{place}.{name}" for name in value if name not in known]
            inner = [unknown_names(value[name], known[name], f"{place}.{name}") for name in value if name in known]
            return [*names, *(name for found in inner for name in found)]
        case list():
            return [name for item in value for name in unknown_names(item, schema["items"], place)]
        case _:
            return []


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_schema_knows_every_name_of_the_committed_studies(path: Path) -> None:
    assert unknown_names(read_document(path.read_text(), path.name).value, SCHEMA, "") == []


def test_the_schema_asks_for_what_a_study_must_have() -> None:
    assert SCHEMA["required"] == ["name", "num_trials", "search"]


def test_editors_complete_the_dotted_paths_of_knobs_and_first_tries() -> None:
    assert tuple(KNOBS) == tuple(FIRST_TRIES["properties"]) == searchable_fields()
    assert SCHEMA["properties"]["search"]["additionalProperties"] is False
    assert FIRST_TRIES["additionalProperties"] is False


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("moe.init", ["categorical"]),
        ("moe.noise", ["categorical"]),
        ("moe.top_k", ["categorical", "int"]),
        ("optim.lr", ["categorical", "int", "float"]),
        ("optim.grad_clip", ["categorical", "int", "float"]),
    ],
)
def test_a_field_is_offered_the_knobs_that_it_can_have(path: str, expected: list[str]) -> None:
    assert kinds(path) == expected


def test_choices_are_checked_against_their_field() -> None:
    choices = KNOBS["moe.init"]["oneOf"][0]["properties"]["choices"]["items"]
    assert "xavier_normal" in choices["enum"]


def test_every_field_of_the_schema_says_what_it_is_in_one_line() -> None:
    unexplained = {
        f"{section}.{name}"
        for section, schema in {**SCHEMA["$defs"], "study": SCHEMA}.items()
        for name, field in schema["properties"].items()
        if "\n" in field.get("description", "" if "$ref" in field else "\n")
    }
    assert unexplained == {"IntKnob.type", "FloatKnob.type"}
