from __future__ import annotations

import math
import time

import pytest

from moesearch.config.document import MAX_VALUES, read_document


def said(text: str) -> list[str]:
    return [str(problem) for problem in read_document(text, "f.yaml").problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5.", 5.0),
        (".5", 0.5),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("-3", -3),
        ("1e400", math.inf),
        ("-.inf", -math.inf),
        ("9" * 5000, math.inf),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("'8'", "8"),
        ('"true"', "true"),
        ("~", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("[1, {a: b}]", [1, {"a": "b"}]),
    ],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(text: str, value: object) -> None:
    assert read_document(text, "f.yaml").value == value


def test_nan_is_read_as_a_number() -> None:
    assert math.isnan(read_document(".nan", "f.yaml").value)


def test_the_place_of_a_field_is_the_line_of_its_name() -> None:
    document = read_document("a: 1\nb:\n\n  c: 1e400\nd:\n- x\n- y\n", "f.yaml")
    lines = {path: place.line for path, place in document.places.items()}
    assert lines == {(): 1, ("a",): 1, ("b",): 2, ("b", "c"): 4, ("d",): 5, ("d", 0): 6, ("d", 1): 7}
    assert document.written(("b", "c")) == "1e400"


def test_an_alias_stands_for_its_anchor_and_has_a_place_of_its_own() -> None:
    document = read_document("a: &x {b: 1}\nc: *x\n", "f.yaml")
    assert document.value == {"a": {"b": 1}, "c": {"b": 1}}
    assert document.places[("c",)].line == 2


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system [ls]", "!!int 3", "!custom {a: 1}", "!<x> y"])
def test_no_tag_is_accepted(tag: str) -> None:
    problem = said(f"a: 1\nb: {tag}")[0]
    assert problem.startswith("f.yaml:2: the tag ")
    assert problem.endswith("is not allowed; write the plain value")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: 2\na: 3", "f.yaml:3: a is given twice (first on line 1)"),
        ("'a': 1\na: 2", "f.yaml:2: a is given twice (first on line 1)"),
        ("b: &x {a: 1}\nc:\n  <<: *x", "f.yaml:3: merge keys (<<) are not supported; write the fields out"),
        ("? [a]\n: 1", "f.yaml:1: the name of a field must be plain text, not a list, mapping or alias"),
        ("a: *x", "f.yaml:1: *x has no anchor &x before it"),
        ("a: &x\n  b: *x", "f.yaml:2: *x stands inside its own anchor &x"),
        ("a: 1\n---\nb: 2", "f.yaml:2: a second document starts here; write one per file"),
        ("a:\n\tb: 3", "indent with spaces, not tabs"),
        ("a: b: c", "f.yaml:1: not valid YAML: mapping values are not allowed here; one 'name: value' to a line"),
        (
            "a: [1, 2\nb: 3\n",
            "f.yaml:2: not valid YAML: while parsing a flow sequence expected ',' or ']', but got ':'",
        ),
        ("a: 1\nb: \x07", "f.yaml:2: not valid YAML: character 0x0007 is not allowed"),
        ('"\\UFFFFFFFF"', "f.yaml: not valid YAML"),
        ('a:\n  b: "\\uD800"', r'f.yaml:2: "\ud800" holds half a character; write the whole'),
        ('"\\uD800": 1', r'f.yaml:1: "\ud800" holds half a character; write the whole'),
        ("%YAML 999.1\n---\na", "f.yaml:1: not valid YAML"),
    ],
)
def test_each_fault_of_the_text_has_its_line(text: str, line: str) -> None:
    assert any(line in problem for problem in said(text)), said(text)


def test_all_faults_that_leave_the_text_readable_are_reported_at_once() -> None:
    assert len(said("a: 1\na: 2\nb: !!int 3\n<<: {}\n? {}\n: 1")) == 4


def test_a_bomb_of_aliases_is_refused() -> None:
    rows = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    assert said("\n".join(["a0: &a0 [1]", *rows]))[-1].endswith(
        f"more than {MAX_VALUES} values, counting what aliases stand for"
    )


def test_nesting_through_aliases_is_bounded() -> None:
    rows = [f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 100)]
    assert "nested more than 20 deep" in said("\n".join(["a0: &a0 [1]", *rows]))[0]


@pytest.mark.parametrize("opening", ["[", "{", "- ", "? ", "[a, ", "{a: "])
def test_deep_nesting_is_refused_quickly(opening: str) -> None:
    # The scanner alone would take minutes over this: its time grows with the square of the depth.
    start = time.perf_counter()
    assert said(opening * 50_000) == ["f.yaml:1: nested more than 20 deep"]
    assert time.perf_counter() - start < 3
