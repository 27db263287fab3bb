"""Checkpoints of one lane: everything that an exact resume needs, safe against kills, full disks and altered files.

A checkpoint is two files of a folder: tensors in ``step-000000300-<hash>.safetensors`` and a record in
``step-000000300.json``. The record names the tensors' file and its SHA-256, bears a checksum of its own, and is written
last, so a checkpoint exists from the moment its record is renamed into place. The one before it is kept. Random numbers
and the order of batches are pure functions of (seed, step), so no generator's state is stored. Nothing is ever pickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from pydantic import ValidationError
from torch import Tensor

from moesearch.config.trial import TrialConfig
from moesearch.errors import CheckpointError
from moesearch.training.points import EvalPoint

_FORMAT = 1
_RECORD = re.compile(r"step-(\d{9,})\.json")
_OURS = re.compile(r"step-\d{9,}(-[0-9a-f]{16})?\.(json|safetensors)(\.tmp)?")
_GROUPS = ("parameters", "exp_avg", "exp_avg_sq")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """Running sums of a trial between two milestones."""

    train_loss_sum: float = 0.0
    """Sum of the training losses of the steps since the last milestone."""
    train_seconds: float = 0.0
    eval_seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class LaneCheckpoint:
    """One lane at one step."""

    config: TrialConfig
    corpus_sha256: str
    step: int
    """Optimizer steps done; also the step counter of AdamW."""
    progress: Progress
    points: tuple[EvalPoint, ...]
    """All evaluations so far; those before the last one are brief (``EvalPoint.brief``)."""
    parameters: Mapping[str, Tensor]
    """And the biases that balance experts, which have no moments."""
    exp_avg: Mapping[str, Tensor]
    """AdamW's first moments, or Muon's momentum, by the names of the parameters."""
    exp_avg_sq: Mapping[str, Tensor]
    """AdamW's second moments."""


def has_checkpoint(folder: Path) -> bool:
    """Whether the folder holds a checkpoint, usable or not."""
    return bool(_records(folder))


def save_checkpoint(
    checkpoint: LaneCheckpoint, folder: Path, *, make_room: Callable[[int], None] | None = None
) -> None:
    """Write a checkpoint beside the one before it; older ones go.

    ``make_room`` is told how many bytes are about to be written, and may raise to prevent it. A kill at any moment
    leaves the one before usable. An ``OSError`` (a full disk, a read-only folder) leaves the folder as it was, without
    the unfinished file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{group}/{name}": tensor for group in _GROUPS for name, tensor in getattr(checkpoint, group).items()}
    content = safetensors.torch.save(tensors)
    digest = hashlib.sha256(content).hexdigest()
    stem = f"step-{checkpoint.step:09d}"
    # The hash in the name keeps a second save of one step from altering the file that the first one's record names.
    tensors_path = folder / f"{stem}-{digest[:16]}.safetensors"
    points = [point.brief() for point in checkpoint.points[:-1]]
    record = {
        "format": _FORMAT,
        "tensors": tensors_path.name,
        "tensors_sha256": digest,
        "config": checkpoint.config.model_dump(mode="json"),
        "corpus_sha256": checkpoint.corpus_sha256,
        "step": checkpoint.step,
        "progress": asdict(checkpoint.progress),
        "points": [asdict(point) for point in (*points, *checkpoint.points[-1:])],
    }
    record["sha256"] = _checksum(record)
    record_path = folder / f"{stem}.json"
    encoded = json.dumps(record, indent=1).encode()
    if make_room is not None:
        make_room(len(content) + len(encoded))
    write_durably(tensors_path, content)
    try:
        write_durably(record_path, encoded)
    except BaseException:
        # Without a record nothing names the tensors, and a full disk has no room for them.
        tensors_path.unlink(missing_ok=True)
        raise
    _remove_others(folder, newest=record_path, newest_tensors=tensors_path.name)


def load_checkpoint(folder: Path) -> LaneCheckpoint:
    """Read the newest intact checkpoint of a folder.

    Raises:
        CheckpointError: there is none, or the newest intact one is of a format that this version does not read.
    """
    problems = []
    for path in _records(folder):
        try:
            checkpoint = _read(path)
        except _DamagedError as damage:
            problems.append(f"{path}: {damage}")
            continue
        for problem in problems:
            _log.warning("%s; going on from %s", problem, path.name)
        return checkpoint
    found = "; ".join(problems) if problems else f"{folder}: holds no checkpoint"
    raise CheckpointError(f"{found}; remove the folder to start from step 0")


def remove_spares(folder: Path) -> None:
    """Remove all of a folder's checkpoints but the newest, if that one is intact."""
    records = _records(folder)
    if not records:
        return
    try:
        record, _ = _read_intact(records[0])
    except _DamagedError:
        return
    _remove_all_but({records[0].name, record["tensors"]}, folder)


def save_weights(parameters: Mapping[str, Tensor], path: Path) -> None:
    """Write a trained model's parameters alone, by their names."""
    write_durably(path, safetensors.torch.save(dict(parameters)))


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file so that a reader, or a power cut, sees the old content or the new one, and nothing between."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


class _DamagedError(Exception):
    """A record or its tensors are torn or altered."""


def _read(path: Path) -> LaneCheckpoint:
    record, content = _read_intact(path)
    if record["format"] != _FORMAT:
        raise CheckpointError(
            f"{path}: written in format {record['format']}, this version reads {_FORMAT}; "
            "use the version of moesearch that wrote it, or remove the folder to start from step 0"
        )
    try:
        config = TrialConfig.model_validate(record["config"])
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: its configuration is none of this version ({error.errors()[0]['msg']}); "
            "use the version of moesearch that wrote it, or remove the folder to start from step 0"
        ) from None
    groups: dict[str, dict[str, Tensor]] = {group: {} for group in _GROUPS}
    for full_name, tensor in safetensors.torch.load(content).items():
        group, name = full_name.split("/", 1)
        groups[group][name] = tensor
    return LaneCheckpoint(
        config=config,
        corpus_sha256=record["corpus_sha256"],
        step=record["step"],
        progress=Progress(**record["progress"]),
        points=tuple(map(EvalPoint.from_record, record["points"])),
        **groups,
    )


def _read_intact(path: Path) -> tuple[dict[str, Any], bytes]:
    """A record and the bytes of its tensors, both as they were written."""
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
        checksum = record.pop("sha256")
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise _DamagedError(f"no readable record ({error!r})") from None
    if checksum != _checksum(record):
        raise _DamagedError("altered: its checksum differs")
    name = str(record["tensors"])
    try:
        content = path.with_name(name).read_bytes()
    except (OSError, ValueError) as error:
        raise _DamagedError(f"its tensors cannot be read ({error})") from None
    if hashlib.sha256(content).hexdigest() != record["tensors_sha256"]:
        raise _DamagedError(f"{name} is torn or altered: its checksum differs")
    return record, content


def _checksum(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _records(folder: Path) -> list[Path]:
    """Records of a folder, newest first."""
    matches = [(match, path) for path in folder.glob("step-*.json") if (match := _RECORD.fullmatch(path.name))]
    return [path for _, path in sorted(matches, key=lambda pair: int(pair[0][1]), reverse=True)]


def _remove_others(folder: Path, newest: Path, newest_tensors: str) -> None:
    """Remove all checkpoints but this one and the intact one before it.

    A record of a later step is a torn one that the run fell back from, so it goes too.
    """
    names = {newest.name, newest_tensors}
    records = _records(folder)
    for path in records[records.index(newest) + 1 :]:
        try:
            record, _ = _read_intact(path)
        except _DamagedError as damage:
            _log.warning("%s: %s; removed", path, damage)
            continue
        names |= {path.name, record["tensors"]}
        break
    _remove_all_but(names, folder)


def _remove_all_but(names: Collection[str], folder: Path) -> None:
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in names:
            path.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Make a rename outlast a power cut, where folders can be flushed."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
