"""YAML text -> plain values, each with its place. The only reader of YAML.

Only ruamel.yaml's parser is used, event by event; its constructors are not, so no tag can build an object. Nesting and
the number of values are bounded while reading, since the scanner takes quadratic time on deep nesting and an alias can
stand for a billion values.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
    StreamStartEvent,
)
from ruamel.yaml.reader import ReaderError

from moesearch.errors import Problem

FieldPath = tuple[str | int, ...]
"""Keys and list indices from the root of a document to a value."""

MAX_DEPTH = 20
MAX_VALUES = 10_000

# Plain scalars by the core schema of YAML 1.2 (section 10.3.2): 1e-3 is a number, `no` is a word.
_NULL = re.compile(r"|~|null|Null|NULL")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"([-+]?\.(inf|Inf|INF))|\.(nan|NaN|NAN)")
_MAX_DIGITS = 400
_BASES = {"0o": 8, "0x": 16}

_HINTS = {
    r"'\t'": "indent with spaces, not tabs",
    "mapping values are not allowed": "one 'name: value' to a line, and quotes around text that holds ': '",
}


@dataclass(frozen=True)
class Place:
    """Where a value was written, and how."""

    source: str
    line: int | None
    """Line in the source, from 1; None where the source has no lines."""
    written: str | None
    """The text of a scalar; None for a mapping or a list."""


@dataclass
class Document:
    """Values of one YAML text, the place of each, and what was wrong with the text itself."""

    value: Any
    places: dict[FieldPath, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    replaced: list[FieldPath] = field(default_factory=list)
    """Paths whose values come from elsewhere, the latest last."""

    def replace(self, path: FieldPath, other: Document) -> None:
        """Put another document's value at a path; mappings on the way that are missing are made.

        Raises:
            ValueError: something on the way is no mapping.
        """
        place = other.places[()]
        section = self.value
        for depth, part in enumerate(path[:-1], start=1):
            if section.get(part) is None:
                section[part] = {}
                self.places[path[:depth]] = replace(place, written=None)
            section = section[part]
            if not isinstance(section, dict):
                raise ValueError(f"{dotted(path[:depth])} has no fields to set; set it as a whole")
        section[path[-1]] = other.value
        self.places = {known: place for known, place in self.places.items() if known[: len(path)] != path}
        self.places.update({(*path, *inner): place for inner, place in other.places.items()})
        self.replaced.append(path)

    def place(self, path: FieldPath) -> Place:
        """Where to look for a mistake at a path: a replacement below it first, else the nearest value around it."""
        for changed in reversed(self.replaced):
            if changed[: len(path)] == path:
                return self.places[changed]
        while path not in self.places:
            path = path[:-1]
        return self.places[path]

    def written(self, path: FieldPath) -> str | None:
        """The text of the scalar at a path."""
        return self.places[path].written if path in self.places else None


def read_document(text: str, source: str, has_lines: bool = True) -> Document:
    """Read one YAML document; ``source`` names it in places and problems.

    Problems with the text (syntax, tags, duplicate keys, aliases) end up in ``Document.problems``; where there are
    any, ``value`` is what could be read.
    """
    reader = _Reader(text, source, has_lines)
    try:
        reader.read()
    except _UnreadableError as error:
        reader.document.problems.append(Problem(source, error.line if has_lines else None, error.sentence))
    return reader.document


def plain_scalar(text: str) -> bool | int | float | str | None:
    """The value of a scalar that stands without quotes."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text[0] in "tT"
    if _INT.fullmatch(text):
        # Python refuses to convert thousands of digits, and a number of that size is out of every range anyway.
        return math.inf if len(text) > _MAX_DIGITS else int(text, _BASES.get(text[:2], 10))
    if _FLOAT.fullmatch(text):
        return float(text)
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", "", 1))
    return text


class _UnreadableError(Exception):
    """The text cannot be read any further."""

    def __init__(self, line: int | None, sentence: str) -> None:
        self.line = line
        self.sentence = sentence
        super().__init__(sentence)


@dataclass(frozen=True)
class _Scalar:
    value: bool | int | float | str | None
    written: str


@dataclass(frozen=True)
class _Node:
    """A value before aliases are expanded."""

    line: int
    content: _Scalar | list[_Node] | dict[str, _Node]


class _Reader:
    """Events -> nodes -> values. Nodes come between so that an alias is expanded where it stands."""

    def __init__(self, text: str, source: str, has_lines: bool) -> None:
        self.document = Document(value=None)
        self._text = text
        self._source = source
        self._has_lines = has_lines
        self._anchors: dict[str, _Node | None] = {}
        self._num_values = 0

    def read(self) -> None:
        root = None
        events = self._events()
        for event in events:
            match event:
                case StreamStartEvent() | StreamEndEvent() | DocumentEndEvent():
                    pass
                case DocumentStartEvent():
                    if root is not None:
                        raise _UnreadableError(_line(event), "a second document starts here; write one per file")
                case _:
                    root = self._node(event, events, depth=0)
        # An empty text is a null, with a place like any other.
        self.document.value = self._expand(root or _Node(1, _Scalar(None, "")), (), depth=0)

    def _events(self) -> Iterator[Any]:
        """Events of ruamel.yaml's pure Python parser, its errors as ours."""
        try:
            yield from YAML(typ="safe", pure=True).parse(self._text)
        except ReaderError as error:
            line = self._text.count("\n", 0, error.position) + 1
            raise _UnreadableError(line, f"not valid YAML: character {error.character:#06x} is not allowed") from None
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            words = " ".join(f"{error.context or ''} {error.problem or ''}".split())
            hint = next((f"; {hint}" for sign, hint in _HINTS.items() if sign in words), "")
            raise _UnreadableError(mark and mark.line + 1, f"not valid YAML: {words}{hint}") from None
        except Exception as error:
            # The scanner trips over some malformed escapes and directives with plain Python errors.
            raise _UnreadableError(None, f"not valid YAML: {' '.join(str(error).split())}") from None

    def _node(self, event: Any, events: Iterator[Any], depth: int) -> _Node:
        if depth > MAX_DEPTH:
            raise _UnreadableError(_line(event), f"nested more than {MAX_DEPTH} deep")
        if isinstance(event, AliasEvent):
            return self._alias(event)
        if event.tag is not None:
            self._report(_line(event), f"the tag {_shown_tag(event.tag)} is not allowed; write the plain value")
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        node = _Node(_line(event), self._content(event, events, depth))
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _content(self, event: Any, events: Iterator[Any], depth: int) -> _Scalar | list[_Node] | dict[str, _Node]:
        match event:
            case ScalarEvent(value=text, style=None):
                return _Scalar(plain_scalar(text), text)
            case ScalarEvent(value=text):
                if not _is_whole(text):
                    self._report(_line(event), f"{shown_key(text)} holds half a character; write the whole")
                    text = ""
                return _Scalar(text, json.dumps(text, ensure_ascii=False))
            case SequenceStartEvent():
                items = []
                while not isinstance(item := next(events), SequenceEndEvent):
                    items.append(self._node(item, events, depth + 1))
                return items
            case _:
                assert isinstance(event, MappingStartEvent)
                fields: dict[str, _Node] = {}
                while not isinstance(key := next(events), MappingEndEvent):
                    self._add_field(fields, key, events, depth + 1)
                return fields

    def _add_field(self, fields: dict[str, _Node], key: Any, events: Iterator[Any], depth: int) -> None:
        self._node(key, events, depth)  # reads a key that is no scalar to its end
        value = self._node(next(events), events, depth)
        line = _line(key)
        if not isinstance(key, ScalarEvent):
            self._report(line, "the name of a field must be plain text, not a list, mapping or alias")
        elif key.value == "<<" and key.style is None:
            self._report(line, "merge keys (<<) are not supported; write the fields out")
        elif not _is_whole(key.value):
            pass  # reported with the key itself
        elif key.value in fields:
            self._report(line, f"{shown_key(key.value)} is given twice (first on line {fields[key.value].line})")
        else:
            # The place of a field is that of its name: its value may start further down.
            fields[key.value] = _Node(line, value.content)

    def _alias(self, event: Any) -> _Node:
        name = shown_key(event.anchor)
        if event.anchor not in self._anchors:
            raise _UnreadableError(_line(event), f"*{name} has no anchor &{name} before it")
        node = self._anchors[event.anchor]
        if node is None:
            raise _UnreadableError(_line(event), f"*{name} stands inside its own anchor &{name}")
        return _Node(_line(event), node.content)

    def _expand(self, node: _Node, path: FieldPath, depth: int) -> Any:
        self._num_values += 1
        if self._num_values > MAX_VALUES:
            raise _UnreadableError(node.line, f"more than {MAX_VALUES} values, counting what aliases stand for")
        if depth > MAX_DEPTH:
            raise _UnreadableError(node.line, f"nested more than {MAX_DEPTH} deep, counting what aliases stand for")
        written = node.content.written if isinstance(node.content, _Scalar) else None
        self.document.places[path] = Place(self._source, node.line if self._has_lines else None, written)
        match node.content:
            case _Scalar(value):
                return value
            case list() as items:
                return [self._expand(item, (*path, index), depth + 1) for index, item in enumerate(items)]
            case fields:
                return {name: self._expand(child, (*path, name), depth + 1) for name, child in fields.items()}

    def _report(self, line: int, sentence: str) -> None:
        self.document.problems.append(Problem(self._source, line if self._has_lines else None, sentence))


def dotted(path: FieldPath) -> str:
    """``base.moe.top_k``, ``enqueue[0].moe.top_k``."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{shown_key(part)}" for part in path)
    return "".join(parts).removeprefix(".")


def shown_key(key: str) -> str:
    """A key as it can be printed: escapes and long ones are tamed."""
    text = key if key.isprintable() and key else json.dumps(key)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_whole(text: str) -> bool:
    """Whether no surrogate stands alone: an escape can write one, and no UTF-8 text can hold it."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _shown_tag(tag: str) -> str:
    return shown_key(tag.replace("tag:yaml.org,2002:", "!!"))


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1
