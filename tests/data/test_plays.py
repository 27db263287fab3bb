from __future__ import annotations

import re

import pytest

from moesearch.data.corpora import Corpus
from moesearch.data.plays import TEST_PLAYS, VALIDATION_PLAYS, plays_folder, render_play

PLAY = """\
# A Play

## ACT I

### SCENE I. A room with a heading that goes on

over a second line.

_Enter A and B, with
others_

**A**
_\\[Aside]_
First line,
second line\\--broken.

_Trumpets_

Third line, & c.

**First Lord**
"Quoted"—said _\\[ ]_ he.

1\\. Two judges.

*Exeunt.*
""".replace("\n", "  \n")  # Markdown's mark of a line break


def test_a_play_becomes_names_speeches_and_blank_lines() -> None:
    assert render_play(PLAY) == (
        "A:\nFirst line,\nsecond line--broken.\nThird line, &c.\n\nFirst Lord:\n'Quoted'--said  he.\n\n"
    )


def test_every_speech_of_the_plays_has_a_name_and_lines(shakespeare: Corpus) -> None:
    for split in (shakespeare.train, shakespeare.val, shakespeare.test):
        assert split.endswith("\n\n")
        for speech in split.removesuffix("\n\n").split("\n\n"):
            name, *lines = speech.split("\n")
            assert name.endswith(":")
            assert lines


def test_no_markup_is_left_in_the_plays(shakespeare: Corpus) -> None:
    text = shakespeare.train + shakespeare.val + shakespeare.test
    assert re.findall(r"[_*#\[\]\\]|ACT I|Exeunt$", text) == []


def test_all_but_the_held_out_plays_are_trained_on(shakespeare: Corpus) -> None:
    folder = plays_folder()
    names = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob("*/*.md"))
    assert len(names) == 38
    texts = {name: render_play((folder / f"{name}.md").read_text(encoding="utf-8")) for name in names}
    assert shakespeare.val == "".join(texts[name] for name in VALIDATION_PLAYS)
    assert shakespeare.test == "".join(texts[name] for name in TEST_PLAYS)
    assert shakespeare.train == "".join(texts[name] for name in names if name not in VALIDATION_PLAYS + TEST_PLAYS)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_held_out_split_is_small_enough_to_evaluate_whole(shakespeare: Corpus, split: str) -> None:
    assert 180_000 <= len(getattr(shakespeare, split)) <= 220_000
