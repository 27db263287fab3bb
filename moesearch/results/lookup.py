"""Which study a person means: its name in the store, or its file."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from optuna.storages import BaseStorage

from moesearch.config.loader import load_study
from moesearch.errors import UnknownStudyError
from moesearch.results.records import confirm_study_name


def study_name_of(study: str) -> str:
    """The name that is meant by a name or by the path of a study file.

    Raises:
        StudyFileError: a path of a study file that cannot be read.
    """
    path = Path(study)
    return load_study(path).name if path.suffix in (".yaml", ".yml") or path.is_file() else study


def all_names(storage: BaseStorage) -> list[str]:
    """Names of all Optuna studies of the store, confirmations included."""
    return sorted(study.study_name for study in storage.get_all_studies())


def unknown_study(name: str, names: Sequence[str]) -> UnknownStudyError:
    """The error that says what the store holds instead."""
    held = [other for other in names if not other.endswith(confirm_study_name(""))]
    if not held:
        return UnknownStudyError(
            f"study {name} is not in the store, which holds none yet; python -m moesearch.run STUDY.yaml starts one"
        )
    close = difflib.get_close_matches(name, held, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return UnknownStudyError(f"study {name} is not in the store, which holds {', '.join(held)}{hint}")
