"""Notes and files that optuna-dashboard shows beside a study and its trials."""

from __future__ import annotations

import io
import json
import mimetypes
import uuid
from collections.abc import Mapping
from pathlib import Path

from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import RDBStorage

# One file has one id for ever, so that a study that starts afresh leaves no orphans behind.
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "moesearch:optuna-dashboard")


def write_notes(storage: RDBStorage, study_name: str, study_note: str, trial_notes: Mapping[int, str]) -> None:
    """Set the notes of a study and of these trials, by their numbers; what has not changed is not written again."""
    # Its public `save_note` takes trials in training alone; importing it takes a second or two.
    from optuna_dashboard._note import get_note_from_system_attrs, save_note_with_version

    study_id = storage.get_study_id_from_name(study_name)
    stored = storage.get_study_system_attrs(study_id)
    notes: dict[int | None, str] = {None: study_note}
    notes |= {_trial_id(storage, study_id, number): note for number, note in trial_notes.items()}
    for trial_id, note in notes.items():
        before = get_note_from_system_attrs(stored, trial_id)
        if before["body"] != note:
            save_note_with_version(storage, study_id, trial_id, before["version"] + 1, note)


def write_files(
    storage: RDBStorage,
    study_name: str,
    folder: Path,
    study_files: Mapping[str, bytes],
    trial_files: Mapping[int, Mapping[str, bytes]],
) -> None:
    """Attach files, by name, to a study and to these trials; one of the same name is replaced.

    Raises:
        OSError: the folder cannot be written.
    """
    study_id = storage.get_study_id_from_name(study_name)
    folder.mkdir(parents=True, exist_ok=True)
    store = FileSystemArtifactStore(folder)
    known = storage.get_study_system_attrs(study_id)
    owners: list[tuple[str, str, Mapping[str, bytes]]] = [("artifacts:", "study", study_files)]
    # Optuna lets no record of a finished trial change; here the study's own record speaks for its trials.
    owners += [
        (f"dashboard:artifacts:{_trial_id(storage, study_id, number)}:", str(number), files)
        for number, files in trial_files.items()
    ]
    for prefix, owner, files in owners:
        for name, content in files.items():
            artifact_id = str(uuid.uuid5(_NAMESPACE, f"{study_name}/{owner}/{name}"))
            store.write(artifact_id, io.BytesIO(content))
            mimetype, encoding = mimetypes.guess_type(name)
            meta = {"artifact_id": artifact_id, "filename": name, "mimetype": mimetype, "encoding": encoding}
            if f"{prefix}{artifact_id}" not in known:
                storage.set_study_system_attr(study_id, f"{prefix}{artifact_id}", json.dumps(meta))


def _trial_id(storage: RDBStorage, study_id: int, number: int) -> int:
    return storage.get_trial_id_from_study_id_trial_number(study_id, number)
