"""A study to change, and what is said about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from moesearch.config.loader import load_study
from moesearch.config.section import Section
from moesearch.errors import StudyFileError

STUDY = """\
name: tiny
num_trials: 4
base:
  moe: { num_experts: 4, top_k: 2 }
search:
  moe.top_k: { type: categorical, choices: [1, 2] }
  optim.lr: { type: float, low: 1e-4, high: 1e-2, log: true }
"""


def problems(
    folder: Path,
    text: str | bytes,
    overrides: Sequence[str] = (),
    load: Callable[[Path, Sequence[str]], Section] = load_study,
) -> list[str]:
    """The lines that are printed for a file with this text, the folder taken off; none for a good file."""
    path = folder / "study.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    try:
        load(path, overrides)
    except StudyFileError as error:
        return str(error).replace(f"{folder}/", "").splitlines()
    return []
