"""Nested values as dotted paths, as people name the fields of a configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """``{"moe": {"top_k": 2}}`` as ``{"moe.top_k": 2}``; an empty mapping is a value."""
    return dict(_leaves(values, ""))


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
