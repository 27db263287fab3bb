"""pydantic's errors -> short sentences: what is wrong, the value given, and the way on."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from moesearch.config.document import FieldPath, dotted
from moesearch.config.section import BROKEN_RULE

JsonSchema = Mapping[str, Any]

Written = Callable[[FieldPath], str | None]
"""The text of the value at a path, where it is known."""


@dataclass(frozen=True)
class Finding:
    """A sentence about the value at ``path``."""

    path: FieldPath
    sentence: str

    def __str__(self) -> str:
        return f"{dotted(self.path)}{self.sentence}"


def shown(value: object) -> str:
    """A value on one line, as YAML would have it, cut where it is long."""
    match value:
        case None:
            text = "null"
        case str():
            text = value if value.isprintable() and value.strip() == value != "" else json.dumps(value)
        case bool() | dict() | list() | tuple():
            text = json.dumps(value, default=str)
        case _:
            text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def shown_as(value: object, written: str | None) -> str:
    """The text that a value was read from where it is known, for 1e400 reads better than inf."""
    return shown(value) if not written or not written.isprintable() or len(written) > 60 else written


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean top_k?``, or nothing where no known word is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def unwritten(path: FieldPath) -> None:
    """No text is known: values are shown as they are."""
    del path


def findings(
    model: type[BaseModel], value: object, error: ValidationError, written: Written = unwritten
) -> list[Finding]:
    """All that is wrong with ``value`` as a ``model``, one finding to a place."""
    found: dict[FieldPath, Finding] = {}
    for line in error.errors(include_url=False):
        for finding in _findings_of(model, value, line, written):
            found.setdefault(finding.path, finding)
    return list(found.values())


def expectation(schema: JsonSchema) -> str:
    """What a value of this JSON Schema is, in words: ``a whole number from 1 to 512``."""
    match schema:
        case {"expected": str(words)}:
            return words
        case {"anyOf": list(options)}:
            return " or ".join(expectation(option) for option in options)
        case {"enum": list(names)}:
            return f"one of {', '.join(map(shown, names))}"
        case {"const": name}:
            return shown(name)
        case {"type": "boolean"}:
            return "true or false"
        case {"type": "integer"}:
            return f"a whole number{_range(schema)}"
        case {"type": "number"}:
            return f"a number{_range(schema) or ' that is finite'}"
        case {"type": "null"}:
            return "null"
        case {"type": "array"}:
            return f"a list{_length(schema)}"
        case {"type": "string"}:
            return f"text{_length(schema)}"
        case _:
            return "a mapping of names to values"


def _range(schema: JsonSchema) -> str:
    match schema:
        case {"minimum": low, "maximum": high}:
            return f" from {_plain(low)} to {_plain(high)}"
        case {"minimum": low, "exclusiveMaximum": high}:
            return f" from {_plain(low)} to below {_plain(high)}"
        case {"exclusiveMinimum": low, "maximum": high}:
            return f" above {_plain(low)} and at most {_plain(high)}"
        case {"exclusiveMinimum": low}:
            return f" above {_plain(low)}"
        case _:
            return ""


def _plain(number: float) -> str:
    return f"{number:.0f}" if abs(number) < 1e9 and number == int(number) else str(number)


def _length(schema: JsonSchema) -> str:
    low = schema.get("minItems", schema.get("minLength", 0))
    high = schema.get("maxItems", schema.get("maxLength"))
    unit = "values" if schema["type"] == "array" else "characters"
    if high is not None:
        return f" of {low} to {high} {unit}"
    return f" of at least {low} {unit}" if low else ""


def _findings_of(model: type[BaseModel], value: object, line: Any, written: Written) -> Iterator[Finding]:
    path, given = _locate(value, line["loc"])
    match line["type"]:
        case _ if line["type"] == BROKEN_RULE:
            for section, sentence in line["ctx"]["broken"]:
                yield Finding((*path, section) if section else path, f": {sentence}")
        case "missing":
            yield Finding((*path, str(line["loc"][-1])), " is missing")
        case "extra_forbidden":
            section = _schema_at(model, value, path[:-1])
            yield Finding(path, f" names no field{_way_on(str(path[-1]), _root_schema(model), section)}")
        case "union_tag_not_found":
            yield Finding(path, f" needs a type: one of {', '.join(_tags(_schema_at(model, value, path)))}")
        case "union_tag_invalid":
            tags, tag = _tags(_schema_at(model, value, path)), line["ctx"]["tag"]
            sentence = f" must be one of {', '.join(tags)} (given {shown(tag)}){did_you_mean(tag, tags)}"
            yield Finding((*path, "type"), sentence)
        case "model_type" if given is None:
            yield Finding(path, " is empty; give it fields, or leave it out")
        case _:
            schema = _schema_at(model, value, path)
            yield Finding(path, must_be(schema, given, written(path)))


def must_be(schema: JsonSchema, given: object, written: str | None = None) -> str:
    """`` must be a whole number from 1 to 512 (given two)``, and the nearest name where one is due."""
    hint = did_you_mean(given, _names(schema)) if isinstance(given, str) else ""
    return f" must be {expectation(schema)} (given {shown_as(given, written)}){hint}"


def _names(schema: JsonSchema) -> list[str]:
    options = [schema, *schema.get("anyOf", ())]
    return [str(name) for option in options for name in (*option.get("enum", ()), option.get("const", "")) if name]


def _way_on(name: str, root: JsonSchema, section: JsonSchema) -> str:
    known = list(section.get("properties", ()))
    deeper = {path.rpartition(".")[2]: path for path in _paths_below(root, section)}
    if name in deeper.values():
        outer, _, inner = name.partition(".")
        return f"; write it nested, as {outer}: {{ {inner}: … }}"
    close_by = did_you_mean(name, known)
    deeper_match = difflib.get_close_matches(name, list(deeper), n=1, cutoff=0.8)
    if deeper_match and (not close_by or deeper_match[0] == name):
        return f"; did you mean {deeper[deeper_match[0]]}?"
    return close_by or f"; known here: {', '.join(known)}"


def _paths_below(root: JsonSchema, section: JsonSchema) -> Iterator[str]:
    """Dotted paths of the fields of the sections in this one."""
    for name, field in section.get("properties", {}).items():
        inner = _resolved(root, field, None)
        for path in (*inner.get("properties", ()), *_paths_below(root, inner)):
            yield f"{name}.{path}"


def _locate(value: Any, loc: tuple[str | int, ...]) -> tuple[FieldPath, Any]:
    """The part of pydantic's location that exists in the value: unions add parts of their own."""
    path: list[str | int] = []
    for part in loc:
        match value, part:
            case dict(), str() if part in value:
                value = value[part]
            case list() | tuple(), int() if part < len(value):
                value = value[part]
            case _:
                continue
        path.append(part)
    return tuple(path), value


@lru_cache(maxsize=8)
def _root_schema(model: type[BaseModel]) -> JsonSchema:
    return TypeAdapter(model).json_schema()


def _schema_at(model: type[BaseModel], value: Any, path: FieldPath) -> JsonSchema:
    root = _root_schema(model)
    schema = _resolved(root, root, value)
    for part in path:
        value = value[part]
        match schema:
            case {"properties": dict(fields)} if part in fields:
                schema = fields[part]
            case {"additionalProperties": dict(item)} | {"items": dict(item)}:
                schema = item
        schema = _resolved(root, schema, value)
    return schema


def _resolved(root: JsonSchema, schema: JsonSchema, value: Any) -> JsonSchema:
    """Follow a reference, and the tag of a union that has one."""
    match schema, value:
        case {"$ref": str(name)}, _:
            return dict(root["$defs"][name.rpartition("/")[2]])
        case {"discriminator": {"mapping": dict(options)}}, {"type": str(tag)} if tag in options:
            return _resolved(root, {"$ref": options[tag]}, value)
        case _:
            return schema


def _tags(schema: JsonSchema) -> list[str]:
    return list(schema["discriminator"]["mapping"])
