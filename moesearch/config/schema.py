"""JSON Schema of a study file, for editors that complete and check YAML."""

from __future__ import annotations

from typing import Any

from moesearch.config.checks import searchable_fields
from moesearch.config.study import StudyConfig


def study_json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a study file. Rules across fields are beyond it; ``load_study`` checks them."""
    schema = StudyConfig.model_json_schema()
    paths = {"enum": list(searchable_fields())}
    schema["properties"]["search"]["propertyNames"] = paths
    schema["properties"]["enqueue"]["items"]["propertyNames"] = paths
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
