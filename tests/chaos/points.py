"""Named points at which a process kills itself: the seams of the product, wrapped by the entry scripts of this folder.

Nothing of this is in the product. A point is armed by a file; a process that reaches it removes the file, which only
one process can, and is gone by the next instruction, as after ``kill -9``.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

FOLDER = "CHAOS_POINTS"
"""Environment variable: the folder of the armed points."""

WORKER_POINTS = (
    "after ask",
    "before report",
    "between checkpoint and report",
    "inside a checkpoint's write",
    "before a checkpoint's record",
    "before tell",
    "after tell",
)
SUPERVISOR_POINTS = ("before workers start", "before recovery", "before verdict", "during the report's build")


def arm(folder: Path, point: str) -> None:
    (folder / point).touch()


def is_armed(folder: Path, points: Sequence[str]) -> bool:
    """Whether any of these points still waits for its victim."""
    return any((folder / point).exists() for point in points)


def die_if_armed(point: str) -> None:
    try:
        (Path(os.environ[FOLDER]) / point).unlink()
    except FileNotFoundError:
        return  # it is not armed, or another process was faster
    os.kill(os.getpid(), signal.SIGKILL)


def kill_before(owner: Any, name: str, point: str) -> None:
    """Make a function of a module or class a point that lies before it."""
    inner: Callable[..., Any] = getattr(owner, name)

    @wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> Any:
        die_if_armed(point)
        return inner(*args, **kwargs)

    setattr(owner, name, outer)


def kill_after(owner: Any, name: str, point: str) -> None:
    """Make a function a point that lies after it."""
    inner: Callable[..., Any] = getattr(owner, name)

    @wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> Any:
        result = inner(*args, **kwargs)
        die_if_armed(point)
        return result

    setattr(owner, name, outer)
