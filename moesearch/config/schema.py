"""JSON Schema of a study file, for editors that complete and check YAML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moesearch.config.checks import accepts, searchable_fields
from moesearch.config.knobs import CategoricalKnob
from moesearch.config.resolve import field_schema
from moesearch.config.study import StudyConfig


def study_json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a study file. Rules across fields are beyond it; ``load_study`` checks them.

    The paths of ``search`` and ``enqueue`` are spelled out as properties, each with the values of its field: editors
    complete properties, and few of them the names that ``propertyNames`` allows.
    """
    schema = StudyConfig.model_json_schema()
    fields = {path: field_schema(path) for path in searchable_fields()}
    knobs = {path: _knob_schema(field) for path, field in fields.items()}
    schema["properties"]["search"] |= {"properties": knobs, "additionalProperties": False}
    schema["properties"]["enqueue"]["items"] = {
        "type": "object",
        "minProperties": 1,
        "properties": fields,
        "additionalProperties": False,
    }
    del schema["$defs"]["CategoricalKnob"]  # each knob has its own, with the choices of its field
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_one_line_descriptions(schema)}


def _knob_schema(field: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs that a field can have: any of its values as choices, and a range where it takes all numbers of one."""
    description, values = field["description"], {key: value for key, value in field.items() if key != "description"}
    categorical = CategoricalKnob.model_json_schema()
    categorical["properties"]["choices"]["items"] = values
    ranges = []
    if accepts(field, "integer"):
        ranges.append({"$ref": "#/$defs/IntKnob"})
    if accepts(field, "number"):
        ranges.append({"$ref": "#/$defs/FloatKnob"})
    return {"description": description, "oneOf": [categorical, *ranges]}


def _one_line_descriptions(schema: Any) -> Any:
    """The schema without the line breaks that docstrings have: editors show descriptions as they are."""
    match schema:
        case {"description": str(text)}:
            rest = {key: _one_line_descriptions(value) for key, value in schema.items() if key != "description"}
            return {"description": " ".join(text.split()), **rest}
        case dict():
            return {key: _one_line_descriptions(value) for key, value in schema.items()}
        case list():
            return [_one_line_descriptions(value) for value in schema]
        case _:
            return schema
