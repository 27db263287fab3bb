"""A YAML file and ``--set`` overrides -> a checked configuration, or every mistake in them at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import NoReturn, TypeVar

from pydantic import ValidationError

from moesearch.config.checks import check_feasibility, check_form, check_sampler, normalized
from moesearch.config.document import Document, FieldPath, read_document
from moesearch.config.knobs import CategoricalKnob, FloatKnob, IntKnob
from moesearch.config.messages import Finding, did_you_mean, findings, shown
from moesearch.config.resolve import field_names
from moesearch.config.section import Section
from moesearch.config.study import StudyConfig
from moesearch.config.trial import TrialConfig
from moesearch.errors import Problem, StudyFileError

MAX_BYTES = 256 * 1024
"""Size of the largest file that is read; a study is a short letter."""

MAX_PROBLEMS = 50
"""Problems that are listed; the rest is counted."""

_KNOB_FIELDS = {*CategoricalKnob.model_fields, *IntKnob.model_fields, *FloatKnob.model_fields}

_Config = TypeVar("_Config", bound=Section)


def load_study(path: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read and check a study file.

    Each override is ``path=value``: a dotted path of the study and a value in YAML. A path of a trial, such as
    ``optim.lr``, means the base's.

    Raises:
        StudyFileError: the file or an override cannot be used; it lists every problem.
    """
    doc = _read(path, "a study needs name, num_trials and search")
    if "trial" in doc.value and "search" not in doc.value:
        _refuse(path, "this is the configuration of one trial; train it with python -m moesearch.train")
    for override in overrides:
        _override(doc, override, _study_address)
    study, found = _validated(StudyConfig, doc, ())
    found.extend(check_form(doc.value, doc.written))
    _raise_problems(doc, found)
    assert study is not None
    study = normalized(study)
    _raise_problems(doc, check_sampler(study))
    _raise_problems(doc, islice(check_feasibility(study), MAX_PROBLEMS))
    return study


def load_trial(path: Path, overrides: Sequence[str] = ()) -> TrialConfig:
    """Read and check the ``trial`` of an exported configuration; what else the file holds is its provenance.

    Each override is ``path=value`` with a dotted path of the trial, such as ``optim.lr=1e-3``.

    Raises:
        StudyFileError: the file or an override cannot be used; it lists every problem.
    """
    doc = _read(path, "make a configuration with python -m moesearch.export")
    if "trial" not in doc.value:
        if "search" in doc.value:
            _refuse(path, "this is a study; run it with python -m moesearch.run, and train the best.yaml of its report")
        _refuse(path, "has no trial: section; make a configuration with python -m moesearch.export")
    for override in overrides:
        _override(doc, override, _trial_address)
    trial, found = _validated(TrialConfig, doc, ("trial",))
    _raise_problems(doc, found)
    assert trial is not None
    return trial


def _read(path: Path, way_on: str) -> Document:
    """The document of a file; its value is a mapping."""
    text = _text(path)
    doc = read_document(text, _name(path))
    if isinstance(doc.value, dict):
        return doc
    if doc.problems:
        raise StudyFileError(doc.problems)
    if doc.value is None:
        _refuse(path, f"is empty; {way_on}")
    _refuse(path, f"must hold fields, one 'name: value' to a line (given {shown(doc.value)}); {way_on}")


def _text(path: Path) -> str:
    try:
        if not path.exists():
            _refuse(path, f"does not exist{did_you_mean(str(path), map(str, path.parent.glob('*.y*ml')))}")
        if not path.is_file():
            _refuse(path, "is a folder, not a YAML file" if path.is_dir() else "is not a regular file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        _refuse(path, f"cannot be read ({getattr(error, 'strerror', None) or error})")
    if len(content) > MAX_BYTES:
        _refuse(path, f"is larger than {MAX_BYTES // 1024} KiB; a configuration is far smaller")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        _refuse(path, "is not UTF-8 text; save it as UTF-8", line)


def _validated(model: type[_Config], doc: Document, root: FieldPath) -> tuple[_Config | None, list[Finding]]:
    """The configuration at a path of the document, or what is wrong with its form."""
    value = doc.value
    for part in root:
        value = value[part]
    try:
        return model.model_validate(value), []
    except ValidationError as error:
        found = findings(model, value, error, lambda path: doc.written((*root, *path)))
        return None, [Finding((*root, *finding.path), finding.sentence) for finding in found]


def _override(doc: Document, override: str, address: Callable[[str, Document], FieldPath]) -> None:
    """Apply one ``path=value``; its own problems are added to the document's."""
    source = f"--set {override if override.isprintable() else json.dumps(override)}"
    name, sign, text = override.partition("=")
    if not sign or not all(name.split(".")):
        doc.problems.append(Problem(source, None, "write it as path=value, such as optim.lr=1e-3"))
        return
    value = read_document(text, source, has_lines=False)
    doc.problems.extend(value.problems)
    if value.problems:
        return
    try:
        doc.replace(address(name.strip(), doc), value)
    except ValueError as error:
        doc.problems.append(Problem(source, None, str(error)))


def _trial_address(name: str, doc: Document) -> FieldPath:
    del doc
    return ("trial", *name.removeprefix("trial.").split("."))


def _study_address(name: str, doc: Document) -> FieldPath:
    """Where an override goes in a study; knobs have dots in their names, and a path of a trial means the base's.

    Raises:
        ValueError: a path of a trial that could mean its knob as well.
    """
    first, _, rest = name.partition(".")
    search = doc.value.get("search")
    knobs = search if isinstance(search, dict) else {}
    if first == "search" and rest:
        known = [knob for knob in (*knobs, *field_names()) if rest == knob or rest.startswith(f"{knob}.")]
        name_alone, _, last = rest.rpartition(".")
        knob = max(known, key=len, default=name_alone if last in _KNOB_FIELDS else rest)
        inner = rest.removeprefix(knob).removeprefix(".")
        return ("search", knob, *(inner.split(".") if inner else ()))
    if first in TrialConfig.model_fields:
        if name in knobs:
            raise ValueError(f"{name} is searched; set search.{name} for its knob, or base.{name} for the base alone")
        return ("base", *name.split("."))
    return tuple(name.split("."))


def _raise_problems(doc: Document, found: Iterable[Finding]) -> None:
    """Raise all problems of the text and of its values, in the order of the file."""
    places = [(doc.place(finding.path), finding) for finding in found]
    problems = {*doc.problems, *(Problem(place.source, place.line, str(finding)) for place, finding in places)}
    if not problems:
        return
    ordered = sorted(problems, key=lambda problem: (problem.source.startswith("--set "), problem.line or 0, problem))
    if len(ordered) > MAX_PROBLEMS:
        rest = len(ordered) - MAX_PROBLEMS
        ordered = [*ordered[:MAX_PROBLEMS], Problem(ordered[0].source, None, f"and {rest} more problems")]
    raise StudyFileError(ordered)


def _refuse(path: Path, sentence: str, line: int | None = None) -> NoReturn:
    raise StudyFileError([Problem(_name(path), line, sentence)])


def _name(path: Path) -> str:
    return str(path) if str(path).isprintable() else json.dumps(str(path))
