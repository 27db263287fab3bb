"""What can be written into a study file and a trial, read from the schema: the text of docs/reference.md."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from moesearch.config.checks import NOT_SEARCHED
from moesearch.config.knobs import CategoricalKnob, FloatKnob, IntKnob
from moesearch.config.messages import expectation, shown
from moesearch.config.resolve import field_names, is_lane_field
from moesearch.config.section import Section
from moesearch.config.study import StudyConfig
from moesearch.config.trial import TrialConfig

REGENERATE = "python -m moesearch.reference > docs/reference.md"

_OPENING = f"""\
# Reference

Every field of a study file and of a trial, from the schema. `{REGENERATE}`
writes this page; its words are the docstrings in `moesearch/config/`. On the terminal,
`python -m moesearch.reference moe.top_k` explains one field.

A study file states what differs from the defaults. Numbers are YAML 1.2: `1e6` is a million, also where a whole
number is due. A field that is not listed here is refused, with its line and the name that is likely meant.
"""

_STUDY = """\
## Study file
"""

_KNOBS = """\
## Knobs

`search` maps a field of a trial, by its dotted path, to a knob: the values that the field may take. Their fields bear
Optuna's names.
"""

_TRIAL = """\
## Trial

`base` of a study, and `trial` of an exported configuration. The last column says what a search over the field means:

- **lane**: trials that differ in it train side by side in one model.
- **shape**: it changes the shape of tensors, so trials that differ in it train one after the other.
- **none**: it is not searched; `python -m moesearch.reference FIELD` says why.
"""


@dataclass(frozen=True)
class FieldFacts:
    """One field, in words."""

    path: str
    """Dotted: that of a trial for a field of ``base``, that of the study file for any other."""
    meaning: str
    """Sentences in Markdown, with the source of a formula or an idea."""
    values: str
    """What it takes: ``a whole number from 1 to 512``."""
    default: str | None
    """As YAML has it; None where the field must be given."""
    knob: str | None
    """``lane``, ``shape``, or why it is not searched; None for a field that is not of a trial."""

    @property
    def knob_sentence(self) -> str | None:
        """What a search over the field means; None for a field that is not of a trial."""
        match self.knob:
            case "lane":
                return "lane: trials that differ in it train side by side in one model"
            case "shape":
                return "shape: it changes the shape of tensors, so trials that differ in it train one after the other"
            case None:
                return None
            case why_not:
                return f"none: {why_not}"


@dataclass(frozen=True)
class _Part:
    """A section and those of its fields that are no sections themselves; its name is "" for the outermost."""

    name: str
    meaning: str
    fields: tuple[FieldFacts, ...]


def all_fields() -> tuple[FieldFacts, ...]:
    """The fields of a study file and of a trial; those of knobs are on the page alone."""
    return tuple(facts for part in (*_parts(StudyConfig), *_parts(TrialConfig)) for facts in part.fields)


def reference_markdown() -> str:
    """The page docs/reference.md: a pure function of the schema."""
    return "\n".join([_OPENING, _STUDY, *_study(), _KNOBS, *_knobs(), _TRIAL, *_trial()])


def _study() -> Iterator[str]:
    for part in _parts(StudyConfig):
        if part.name:
            yield f"### {part.name}\n\n{part.meaning}\n"
        yield _table(part.fields)


def _knobs() -> Iterator[str]:
    for knob in (CategoricalKnob, IntKnob, FloatKnob):
        (part,) = _parts(knob)
        yield f"### {part.fields[0].values}\n\n{part.meaning}\n"
        yield _table(part.fields[1:])


def _trial() -> Iterator[str]:
    outermost, *sections = _parts(TrialConfig)
    for part in (*sections, outermost):
        yield f"### {part.name}\n\n{part.meaning}\n" if part.name else "### seed\n"
        yield _table(part.fields)


def _parts(section: type[Section], prefix: str = "") -> Iterator[_Part]:
    """The section and those inside it, save that a study's base is a trial and stands for itself."""
    schemas = section.model_json_schema()["properties"]
    inner: list[tuple[str, type[Section]]] = []
    fields: list[FieldFacts] = []
    for name, info in section.model_fields.items():
        path = f"{prefix}{name}"
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            if info.annotation is not TrialConfig:
                inner.append((path, info.annotation))
            continue
        fields.append(
            FieldFacts(
                path,
                meaning=_prose(info.description),
                values=expectation(schemas[name]),
                default=None if info.is_required() else shown(info.default),
                knob=_knob_of(path) if path in field_names() else None,
            )
        )
    yield _Part(prefix.rstrip("."), _prose(section.__doc__), tuple(fields))
    for path, annotation in inner:
        yield from _parts(annotation, f"{path}.")


def _knob_of(path: str) -> str:
    return NOT_SEARCHED.get(path, "lane" if is_lane_field(path) else "shape")


def _prose(docstring: str | None) -> str:
    """A docstring as Markdown, in one line."""
    return " ".join(inspect.cleandoc(docstring or "").split()).replace("``", "`")


def _table(fields: Sequence[FieldFacts]) -> str:
    rows = [["Field", "Meaning", "Values", "Default"], ["---"] * 4]
    for facts in fields:
        default = "must be given" if facts.default is None else f"`{facts.default}`"
        rows.append([f"`{facts.path}`", facts.meaning, facts.values, default])
    knobs = [facts.knob if facts.knob in ("lane", "shape") else "none" for facts in fields if facts.knob is not None]
    if knobs:
        rows = [[*row, cell] for row, cell in zip(rows, ["Knob", "---", *knobs], strict=True)]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)
