from __future__ import annotations

from moesearch.config.schema import study_json_schema


def test_the_schema_knows_the_fields_of_a_study_and_the_knobs_of_a_search() -> None:
    schema = study_json_schema()
    assert schema["required"] == ["name", "num_trials", "search"]
    assert schema["additionalProperties"] is False
    paths = schema["properties"]["search"]["propertyNames"]["enum"]
    assert "moe.top_k" in paths
    assert "seed" not in paths


def test_every_field_of_the_schema_says_what_it_is() -> None:
    knob_tags = {"CategoricalKnob.type", "IntKnob.type", "FloatKnob.type"}
    unexplained = {
        f"{section}.{name}"
        for section, schema in study_json_schema()["$defs"].items()
        for name, field in schema["properties"].items()
        if "description" not in field and "$ref" not in field
    }
    assert unexplained == knob_tags
