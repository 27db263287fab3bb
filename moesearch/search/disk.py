"""Where unfinished trials wait: a folder per trial, and a cap on all of a study's, under which losers' go first."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock
from optuna.trial import FrozenTrial, TrialState

from moesearch.errors import DiskCapError
from moesearch.results.standing import as_they_stand, latest_records

if TYPE_CHECKING:
    from moesearch.training.checkpoints import LaneCheckpoint


@dataclass(frozen=True)
class DiskCap:
    """A limit on the bytes of a folder, for all processes of this host."""

    root: Path
    """The study's folder: checkpoints of its search, and below it those of its confirmation."""
    max_bytes: int
    dispensable: Callable[[], Sequence[Path]]
    """Folders of checkpoints that may go, the first one first; a running trial's is not among them."""

    @property
    def lock(self) -> FileLock:
        return FileLock(f"{self.root}.lock")

    def make_room(self, num_bytes: int, folder: Path) -> None:
        """Delete until ``num_bytes`` more fit for a checkpoint in ``folder``. To be called under the lock.

        Raises:
            DiskCapError: they do not fit even then.
        """
        from moesearch.training.checkpoints import remove_spares

        if self._fit(num_bytes):
            return
        for victim in self.dispensable():
            if victim != folder:
                shutil.rmtree(victim, ignore_errors=True)
            if self._fit(num_bytes):
                return
        # What is left are trials in training: of each, the checkpoint before the newest can be spared.
        for path in sorted(self.root.rglob("step-*.json")):
            remove_spares(path.parent)
            if self._fit(num_bytes):
                return
        raise DiskCapError(
            f"{folder}: a checkpoint of {num_bytes / 1e9:.3g} GB does not fit run.max_disk_gb "
            f"({self.max_bytes / 1e9:g}) beside those of the trials in training ({used_bytes(self.root) / 1e9:.3g} GB)"
        )

    def _fit(self, num_bytes: int) -> bool:
        return used_bytes(self.root) + num_bytes <= self.max_bytes


@dataclass(frozen=True)
class DiskCheckpoints:
    """Checkpoints in folders named by their keys."""

    root: Path
    cap: DiskCap | None = None

    def save(self, key: str, checkpoint: LaneCheckpoint) -> None:
        """Write a checkpoint; see ``training.checkpoints.save_checkpoint``.

        Raises:
            DiskCapError: it does not fit the cap; the one before stays.
        """
        from moesearch.training.checkpoints import save_checkpoint

        cap, folder = self.cap, self.root / key
        if cap is None:
            save_checkpoint(checkpoint, folder)
            return
        folder.mkdir(parents=True, exist_ok=True)
        with cap.lock:
            save_checkpoint(checkpoint, folder, make_room=lambda num_bytes: cap.make_room(num_bytes, folder))

    def load(self, key: str) -> LaneCheckpoint | None:
        from moesearch.training.checkpoints import has_checkpoint, load_checkpoint

        return load_checkpoint(self.root / key) if has_checkpoint(self.root / key) else None

    def delete(self, key: str) -> None:
        shutil.rmtree(self.root / key, ignore_errors=True)

    def list(self) -> tuple[str, ...]:
        """Their keys."""
        return tuple(sorted(path.name for path in self.root.iterdir())) if self.root.is_dir() else ()

    def clear(self) -> None:
        """Delete all of them."""
        shutil.rmtree(self.root, ignore_errors=True)


def used_bytes(root: Path) -> int:
    """Bytes of all files below a folder; one that another process removes meanwhile has none."""
    return sum(_size(path) for path in root.rglob("*"))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def losers_first(root: Path, trials: Sequence[FrozenTrial]) -> list[Path]:
    """Folders of checkpoints that a study can do without, in the order in which it misses them least.

    First those that no trial will ask for, then trials that were stopped, trained models (for the test split), and
    last trials that wait to go on; of each kind, those of the highest loss first. Trials in training keep theirs.
    """
    records = latest_records(as_they_stand(trials))
    latest = {f"{fingerprint}-{replicate}": trial for (fingerprint, replicate), trial in records.items()}
    found = [path for path in root.glob("*-*") if path.is_dir()]
    ranks = {path: _rank(latest.get(path.name)) for path in found}
    return sorted((path for path in found if ranks[path] is not None), key=lambda path: ranks[path] or (0, 0.0))


def _rank(trial: FrozenTrial | None) -> tuple[int, float] | None:
    if trial is None:
        return 0, 0.0
    loss = float("inf") if trial.last_step is None else trial.intermediate_values[trial.last_step]
    match trial.state:
        case TrialState.FAIL:
            return 0, -loss
        case TrialState.PRUNED:
            return 1, -loss
        case TrialState.COMPLETE:
            return 2, -loss
        case TrialState.WAITING:
            return 3, -loss
        case _:
            return None
