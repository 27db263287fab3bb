"""What a report is made of: sections of blocks, the same for the page and for the summary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Text:
    """A paragraph. A ``lead`` is what one reads if one reads nothing else; a ``note`` is a caveat."""

    text: str
    kind: Literal["lead", "plain", "note"] = "plain"


@dataclass(frozen=True)
class Facts:
    """Names and values, as tiles."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Picture:
    """A figure; ``description`` says in words what it shows, for those who cannot see it."""

    name: str
    title: str
    figure: Figure
    description: str
    caption: str = ""
    in_summary: bool = False


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side where there is room."""

    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Table:
    """Cells as text. The first ``num_names`` columns are words, the others numbers; ``row_name`` names the row."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    num_names: int = 1
    row_name: int = 0
    in_summary: bool = False


@dataclass(frozen=True)
class Snippet:
    """Text to copy: a command, a file."""

    label: str
    text: str
    is_folded: bool = False
    in_summary: bool = False


Block = Text | Facts | Gallery | Table | Snippet


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it; ``key`` is its anchor and ``short`` its name in the list of sections."""

    key: str
    short: str
    title: str
    blocks: tuple[Block, ...]
