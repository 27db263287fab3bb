"""A study in the store -> ``reports/<study>/``: a page, a summary, tables and the best configuration."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import moesearch
from moesearch.errors import UnknownStudyError
from moesearch.report import canvas
from moesearch.report.blocks import Gallery, Picture, Section
from moesearch.report.comparison import comparison_sections
from moesearch.report.numbers import duration
from moesearch.report.sections import SECTIONS
from moesearch.report.summary import summary_markdown
from moesearch.results.comparison import compare
from moesearch.results.provenance import export_yaml
from moesearch.results.study import Storage, StudyResults, read_study

DATA_BESIDE = "`trials.csv` and `curves.csv` hold its data."
COMPARISONS = "_comparisons"
"""Folder of the pages that compare studies; no study's name begins like this."""
MAX_FOLDER_NAME = 200


def build_report(storage: Storage, study_name: str, reports_dir: Path) -> Path:
    """Write a study's report, whatever stage the study is at, and return its folder.

    Raises:
        UnknownStudyError: the store holds no such study.
    """
    results = read_study(storage, study_name)
    folder = reports_dir / folder_name(study_name)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "trials.csv", results.trials.to_csv(index=False))
    _write(folder / "curves.csv", results.curves.to_csv(index=False))
    try:
        _write(folder / "best.yaml", export_yaml(results))
    except UnknownStudyError:  # no trial has finished
        (folder / "best.yaml").unlink(missing_ok=True)
    with canvas.style():
        sections = tuple(filter(None, (section(results) for section in SECTIONS)))
        _publish(folder, study_name, status_line(results), sections, DATA_BESIDE)
    return folder


def build_comparison(storage: Storage, study_names: Sequence[str], reports_dir: Path) -> Path:
    """Write the page that sets studies side by side, and return its folder.

    Raises:
        UnknownStudyError: the store lacks one of them.
    """
    studies = [read_study(storage, name) for name in study_names]
    title = " and ".join(study_names)
    folder = reports_dir / COMPARISONS / folder_name("-".join(study_names))[:MAX_FOLDER_NAME]
    folder.mkdir(parents=True, exist_ok=True)
    with canvas.style():
        sections = comparison_sections(compare(studies), studies)
        _publish(folder, title, f"{len(studies)} studies compared", sections, "")
    return folder


def _publish(folder: Path, title: str, status: str, sections: tuple[Section, ...], data: str) -> None:
    """Write page, summary and pictures.

    Every file is written under another name and then renamed, so that a reader never sees half of one.
    """
    pictures = _pictures(sections)
    drawings = {picture.name: canvas.to_svg(picture.figure, picture.name) for picture in pictures}
    for picture in pictures:
        if picture.in_summary:
            _write(folder / f"{picture.name}.png", canvas.to_png(picture.figure))
    _write(folder / "summary.md", summary_markdown(title, status, sections, data))
    _write(folder / "index.html", _page(title, status, sections, drawings))


def folder_name(study_name: str) -> str:
    """A study's name as the name of a folder, which cannot lead out of the folder of reports."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", study_name).lstrip(".") or "_"


def status_line(results: StudyResults) -> str:
    """How far the study is, in a line."""
    config = results.config
    state = "finished" if results.is_finished else "running" if results.is_running else "not finished"
    trials = f"{results.num_finished:,} of {config.num_trials:,} trials"
    return f"Study {state}: {trials}, {results.num_configurations:,} configurations, {duration(results.wall_seconds)}"


def _pictures(sections: tuple[Section, ...]) -> list[Picture]:
    galleries = [block for section in sections for block in section.blocks if isinstance(block, Gallery)]
    return [picture for gallery in galleries for picture in gallery.pictures]


def _page(name: str, status: str, sections: tuple[Section, ...], drawings: Mapping[str, str]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("moesearch.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["kind"] = lambda block: type(block).__name__
    values: dict[str, Any] = {
        "name": name,
        "status": status,
        "sections": sections,
        # Matplotlib escapes the letters that it writes, so its drawings are the one thing that is taken as markup.
        "drawings": {key: Markup(svg) for key, svg in drawings.items()},  # noqa: S704  # nosec B704
        "light": canvas.ROLES,
        "dark": canvas.DARK,
        "built": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "version": moesearch.__version__,
    }
    return environment.get_template("report.html.j2").render(values)


def _write(path: Path, content: str | bytes) -> None:
    data = content.encode() if isinstance(content, str) else content
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            # A temporary file is its owner's alone; a report is for everyone who may read the folder.
            Path(file.name).chmod(0o644)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
