"""The folders that a run writes to, made and tried before it begins: hours later a mistake in them costs more."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from moesearch.errors import InputError

if TYPE_CHECKING:
    from moesearch.search.order import WorkOrder


def make_folders(order: WorkOrder, reports: Path) -> None:
    """Make the folders of a run, and see that they can be written to and that nothing is in a report's way.

    Raises:
        InputError: one of them cannot be had.
    """
    from moesearch.report.build import folder_name
    from moesearch.search.checkpoint_files import is_url

    report = reports / folder_name(order.config.name)
    _make(report, "--reports")
    for path in sorted(report.iterdir()):
        if path.is_dir() and path.suffix:
            raise InputError(
                f"{path}: is a folder where a file of the report goes; move it, or choose another --reports"
            )
    _make(order.runs, "--runs")
    _make(order.logs, "--runs")
    if not is_url(order.search_checkpoints):
        _make(Path(order.search_checkpoints), "--runs" if order.files is None else "--files")


def _make(folder: Path, flag: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made a folder: {error.strerror}; choose another {flag}") from None
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to: {error.strerror}; choose another {flag}") from None
