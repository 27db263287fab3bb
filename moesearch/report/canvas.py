"""Matplotlib figures that read on a phone, in print and in the dark: one drawing, as inline SVG and as PNG.

Every figure is four inches wide, so that letters come out at one size on a phone and in a column of a wide page.
Colours have roles. In a PNG they are the light ones; in a page each is a CSS variable that follows the reader's theme.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

WIDTH_INCHES: Final = 4.0
PNG_DPI: Final = 220

# Role -> light colour. Each is unlike all others, so that the SVG's colours can be told apart again.
INK: Final = "#1b1f24"
MUTED: Final = "#59636e"
GRID: Final = "#d9dee4"
PAPER: Final = "#ffffff"
BEST: Final = "#0a5ec2"
BASE: Final = "#b0500b"
OTHER: Final = "#6e7985"
PRUNED: Final = "#b4bcc5"

ROLES: Final = {
    "ink": INK,
    "muted": MUTED,
    "grid": GRID,
    "paper": PAPER,
    "best": BEST,
    "base": BASE,
    "other": OTHER,
    "pruned": PRUNED,
}
DARK: Final = {
    "ink": "#e6e9ed",
    "muted": "#a4aeb9",
    "grid": "#38404a",
    "paper": "#171b20",
    "best": "#74b3ff",
    "base": "#f2a155",
    "other": "#94a0ad",
    "pruned": "#56606b",
}

_SETTINGS: Final[dict[Any, Any]] = {
    "font.size": 8.5,
    "font.family": ["DejaVu Sans"],
    "text.color": INK,
    "text.parse_math": False,  # a name with two dollars is a name
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.facecolor": PAPER,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.formatter.useoffset": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.left": False,
    "figure.facecolor": PAPER,
    "lines.solid_capstyle": "round",
    "hatch.color": MUTED,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",  # letters stay text: small, searchable, in the reader's font
    "svg.hashsalt": "moesearch",
}


@contextmanager
def style() -> Iterator[None]:
    """Within it, figures are drawn and saved in the report's style."""
    with matplotlib.rc_context(_SETTINGS):
        yield


def new_figure(height_inches: float) -> tuple[Figure, Axes]:
    """An empty figure of the report's width. No pyplot: it would keep every figure alive."""
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
    return figure, figure.subplots()


def heat_cell(
    axes: Axes, x: float, y: float, colour: tuple[float, float, float, float], text: str, *, size: float = 8.0
) -> str:
    """A cell of a heat map around (x, y) with a text in it; returns the ink that reads on its colour."""
    place = Rectangle((x - 0.48, y - 0.47), 0.96, 0.94, facecolor=to_hex(colour), edgecolor=GRID, linewidth=0.6)
    axes.add_patch(place)
    ink = "#101418" if _luminance(colour) > 0.3 else "#fdfdfe"
    if text:
        axes.text(x, y, text, ha="center", va="center", color=ink, size=size)
    return ink


def _luminance(colour: Sequence[float]) -> float:
    """Relative luminance, 0 to 1 (WCAG 2)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def lay_out(figure: Figure) -> None:
    """Fix the places of things, which else would be computed anew for every file: a third of a report's time."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


def to_png(figure: Figure) -> bytes:
    """The figure for where no page is: a summary, a chat."""
    lay_out(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=PNG_DPI, metadata={"Software": None})
    return stream.getvalue()


def to_svg(figure: Figure, name: str) -> str:
    """An ``<svg>`` element to stand in a page; ``name`` keeps its ids apart from those of other figures."""
    lay_out(figure)
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Inside a page this style would be everybody's.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = _own_ids(svg, name)
    for role, colour in ROLES.items():
        svg = svg.replace(colour, f"var(--{role})")
    # Hidden from assistive technology: the page says in words what a figure shows.
    svg = svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
    return re.sub(r"\s*\n\s*", "\n", svg).strip()


def _own_ids(svg: str, name: str) -> str:
    """Ids that are referred to get the figure's name before them; the others go."""
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))

    def rename(match: re.Match[str]) -> str:
        return f' id="{name}-{match[1]}"' if match[1] in used else ""

    svg = re.sub(r' id="([^"]+)"', rename, svg)
    return re.sub(r'(url\(#|href="#)([^)"]+)', rf"\g<1>{name}-\g<2>", svg)
