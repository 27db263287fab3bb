"""A folder for what is made or fetched once; every read is checked, so nothing in it has to be trusted."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def cached(path: Path | None, sha256: str, make: Callable[[], bytes]) -> bytes:
    """The bytes with this hash: from ``path`` if they are there and whole, else made anew and kept there.

    Several processes may do this at once: each writes a file of its own and renames it over the target, so a
    reader sees whole files only. A folder that cannot be written costs the making each time, and nothing else.
    """
    if path is None:
        return make()
    try:
        held = path.read_bytes()
    except OSError:
        held = b""
    if hashlib.sha256(held).hexdigest() == sha256:
        return held
    made = make()
    _replace(path, made)
    return made


def made_once(path: Path | None, make: Callable[[], bytes]) -> bytes:
    """What was made under this name before, else made now and kept there with its hash in front.

    The name must say all that the content follows from. Of several processes that need it at once one makes it and the
    others wait; a torn or altered file is made anew; a folder that cannot be written costs the making each time.
    """
    if path is None:
        return make()
    held = _held(path)
    if held is not None:
        return held
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        lock.acquire()
    except OSError:
        return make()
    with lock:
        held = _held(path)
        if held is not None:
            return held
        made = make()
        _replace(path, hashlib.sha256(made).digest() + made)
        return made


def _held(path: Path) -> bytes | None:
    """The content of a file whose hash stands in front of it; None unless both are whole."""
    try:
        held = path.read_bytes()
    except OSError:
        return None
    digest, content = held[: hashlib.sha256().digest_size], held[hashlib.sha256().digest_size :]
    return content if hashlib.sha256(content).digest() == digest else None


def _replace(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path`` in one step, or leave ``path`` as it is."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError:
        return  # A full disk or a read-only folder: the caller has the bytes, only the next one makes them again.
