"""``summary.md``: the report as a page for a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from moesearch.report.blocks import Block, Facts, Gallery, Section, Snippet, Table, Text


def summary_markdown(title: str, status: str, sections: Sequence[Section], data: str) -> str:
    """The sections as GitHub's Markdown, with those pictures and tables that are marked for it.

    ``data`` says, in Markdown, where the numbers lie.
    """
    lines = [f"# {escape(title)}", "", f"{escape(status)}.", ""]
    for section in sections:
        written = [line for block in section.blocks for line in _block(block)]
        if written:
            lines += [f"## {escape(section.title)}", "", *written]
    lines.append(f"The whole report is `index.html` beside this page{f'; {data}' if data else '.'}")
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Text that Markdown takes as text, also inside a table."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # An underscore inside a word is a letter to GitHub; elsewhere these would start markup.
    return re.sub(r"([\\`*|\[\]~#]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))


def _block(block: Block) -> Iterator[str]:
    match block:
        case Text(text, "lead"):
            yield from (f"**{escape(text)}**", "")
        case Text(text, "note"):
            yield from (f"> {escape(text)}", "")
        case Text(text):
            yield from (escape(text), "")
        case Facts(items):
            yield from (" · ".join(f"{escape(name)} **{escape(value)}**" for name, value in items), "")
        case Gallery(pictures):
            shown = [picture for picture in pictures if picture.in_summary]
            for picture in shown:
                yield f'<img src="{picture.name}.png" alt="{_attribute(picture.title)}" width="49%">'
            if shown:
                yield ""
        case Table():
            if block.in_summary:
                yield from _table(block)
        case Snippet():
            if block.in_summary:
                yield from (f"{escape(block.label)}:", "", *(f"    {line}" for line in block.text.splitlines()), "")


def _table(table: Table) -> Iterator[str]:
    yield from (f"{escape(table.caption)}:", "")
    rules = [":--" if place < table.num_names else "--:" for place in range(len(table.header))]
    for cells in (
        [escape(cell) for cell in table.header],
        rules,
        *([escape(cell) for cell in row] for row in table.rows),
    ):
        yield f"| {' | '.join(cells)} |"
    yield ""


def _attribute(text: str) -> str:
    return escape(text).replace('"', "&quot;")
