"""Where unfinished trials and confirmed models wait: a folder, or a URL that every machine reaches.

The file formats are those of `training.checkpoints`. What goes to a URL passes through a folder of this machine; the
record is sent last, and checksums tell a torn transfer, so whichever checkpoint is read was written whole.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from moesearch.config.secrets import mask_url
from moesearch.errors import CheckpointError, InputError
from moesearch.search.disk import DiskCap, DiskCheckpoints

if TYPE_CHECKING:
    from moesearch.training.checkpoints import LaneCheckpoint

_logger = logging.getLogger(__name__)


def is_url(place: str) -> bool:
    """Whether the place is a URL, and not a path."""
    return "://" in place


def checkpoints_at(place: str, cap: DiskCap | None = None) -> DiskCheckpoints | UrlCheckpoints:
    """The checkpoints in a folder, where a cap may hold, or behind a URL, where whoever keeps the store sees to that.

    Raises:
        InputError: the URL is of no kind that fsspec knows, or what it takes to open it is not installed.
    """
    if not is_url(place):
        return DiskCheckpoints(Path(place), cap)
    import fsspec

    try:
        # Listings are not remembered: other machines write there too.
        filesystem, root = fsspec.core.url_to_fs(place, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise InputError(f"{mask_url(place)}: files cannot be kept there: {error}") from None
    return UrlCheckpoints(filesystem, root, mask_url(place))


@dataclass(frozen=True)
class UrlCheckpoints:
    """The same behind a URL; one checkpoint per key, since its store replaces objects as a whole."""

    filesystem: Any
    """Of fsspec."""
    root: str
    """A path in it."""
    shown: str
    """The URL without its secrets."""

    def save(self, key: str, checkpoint: LaneCheckpoint) -> None:
        from moesearch.training.checkpoints import save_checkpoint

        with TemporaryDirectory(prefix="moesearch-") as name:
            save_checkpoint(checkpoint, Path(name))
            # A record names its tensors, so it comes after them.
            files = sorted(Path(name).iterdir(), key=lambda path: path.suffix == ".json")
            with self._failures_as_os_errors(f"save {key}"):
                before = self._files(key)
                self.filesystem.makedirs(f"{self.root}/{key}", exist_ok=True)
                for file in files:
                    self.filesystem.put_file(str(file), f"{self.root}/{key}/{file.name}")
                for path in before:
                    if path.rpartition("/")[2] not in {file.name for file in files}:
                        self.filesystem.rm_file(path)

    def load(self, key: str) -> LaneCheckpoint | None:
        from moesearch.training.checkpoints import load_checkpoint

        with TemporaryDirectory(prefix="moesearch-") as name:
            try:
                with self._failures_as_os_errors(f"load {key}"):
                    files = self._files(key)
                    for path in files:
                        self.filesystem.get_file(path, str(Path(name) / path.rpartition("/")[2]))
            except OSError as error:
                raise CheckpointError(str(error)) from None
            return load_checkpoint(Path(name)) if files else None

    def delete(self, key: str) -> None:
        self._remove(f"{self.root}/{key}", f"delete {key}")

    def list(self) -> tuple[str, ...]:
        """Their keys."""
        with self._failures_as_os_errors("list checkpoints"), suppress(FileNotFoundError):
            paths = self.filesystem.ls(self.root, detail=False)
            return tuple(sorted(path.rstrip("/").rpartition("/")[2] for path in paths))
        return ()

    def clear(self) -> None:
        """Delete all of them."""
        self._remove(self.root, "delete checkpoints")

    def _files(self, key: str) -> tuple[str, ...]:
        with suppress(FileNotFoundError):
            return tuple(self.filesystem.ls(f"{self.root}/{key}", detail=False))
        return ()

    def _remove(self, path: str, task: str) -> None:
        try:
            with self._failures_as_os_errors(task), suppress(FileNotFoundError):
                self.filesystem.rm(path, recursive=True)
        except OSError as error:
            _logger.warning("%s", error)  # it takes up room, and does no other harm

    @contextmanager
    def _failures_as_os_errors(self, task: str) -> Iterator[None]:
        """Each kind of store has errors of its own kinds."""
        try:
            yield
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise OSError(f"{self.shown}: could not {task}: {reason}") from error
