"""Where a user's files lie on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

CACHE_VARIABLE = "MOESEARCH_CACHE"


def default_cache_dir() -> Path | None:
    """``MOESEARCH_CACHE``, else the platform's place for a user's caches; None for a user without a home."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own)
    try:
        home = Path.home()
    except RuntimeError:
        return None
    match sys.platform:
        case "win32":
            return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "moesearch" / "cache"
        case "darwin":
            return home / "Library" / "Caches" / "moesearch"
        case _:
            return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "moesearch"
