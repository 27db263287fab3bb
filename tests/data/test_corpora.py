from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from moesearch.config.trial import DataConfig
from moesearch.data.corpora import Corpus, fetch, load_corpus, load_facts
from moesearch.data.facts import SHAKESPEARE, TINY_SHAKESPEARE, known_facts
from moesearch.errors import CorpusError

TINY = DataConfig(corpus="tiny_shakespeare")


def write(path: Path, content: str | bytes) -> DataConfig:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return DataConfig(text=str(path))


def test_the_plays_are_what_the_facts_say(shakespeare: Corpus) -> None:
    assert shakespeare.facts == SHAKESPEARE


def test_the_facts_of_built_in_corpora_are_known_without_loading(tmp_path: Path) -> None:
    assert load_facts(TINY, tmp_path) is TINY_SHAKESPEARE
    assert list(tmp_path.iterdir()) == []


def test_the_facts_of_an_own_text_come_from_reading_it(tmp_path: Path) -> None:
    config = write(tmp_path / "own.txt", "añb\n" * 100)
    assert known_facts(config) is None
    assert known_facts(config) is None
    facts = load_facts(config)
    assert (facts.num_characters, facts.num_bytes, facts.vocab_size) == (400, 500, 4)
    assert (facts.train_tokens, facts.val_tokens, facts.test_tokens) == (360, 20, 20)


def test_the_splits_of_tiny_shakespeare_are_the_article_s() -> None:
    total = TINY_SHAKESPEARE.num_characters
    assert TINY_SHAKESPEARE.train_tokens == int(0.9 * total)
    assert TINY_SHAKESPEARE.val_tokens == TINY_SHAKESPEARE.test_tokens
    assert TINY_SHAKESPEARE.train_tokens + TINY_SHAKESPEARE.val_tokens + TINY_SHAKESPEARE.test_tokens == total


@pytest.mark.skipif(
    not os.environ.get("MOESEARCH_TINY_SHAKESPEARE"), reason="MOESEARCH_TINY_SHAKESPEARE names no copy of the text"
)
def test_tiny_shakespeare_is_what_the_facts_say(tmp_path: Path) -> None:
    corpus = load_corpus(TINY, tmp_path)
    assert corpus.facts == TINY_SHAKESPEARE
    assert corpus.train.startswith("First Citizen:\nBefore we proceed any further, hear me speak.\n")


def test_a_wrong_copy_of_tiny_shakespeare_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "copy.txt").write_text("First Citizen:\n")
    monkeypatch.setenv("MOESEARCH_TINY_SHAKESPEARE", str(tmp_path / "copy.txt"))
    with pytest.raises(CorpusError, match=r"copy\.txt is not tiny Shakespeare: 15 bytes with sha256 .* 1,115,394 by"):
        load_corpus(TINY, tmp_path)


def test_a_missing_copy_of_tiny_shakespeare_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESEARCH_TINY_SHAKESPEARE", "nowhere.txt")
    with pytest.raises(CorpusError, match=r"^MOESEARCH_TINY_SHAKESPEARE: nowhere\.txt does not exist"):
        load_corpus(TINY, tmp_path)


@contextmanager
def served(content: bytes) -> Iterator[str]:
    """The address of a local server that answers every request with ``content``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.mark.usefixtures("_no_proxy")
def test_a_download_with_the_right_hash_is_taken() -> None:
    facts = replace(TINY_SHAKESPEARE, num_bytes=5, sha256=hashlib.sha256(b"to be").hexdigest())
    with served(b"to be") as url:
        assert fetch(url, facts) == b"to be"


@pytest.mark.usefixtures("_no_proxy")
def test_a_download_of_something_else_is_refused() -> None:
    with served(b"<html>Please log in</html>") as url, pytest.raises(CorpusError, match="sent something else"):
        fetch(url, TINY_SHAKESPEARE)


@pytest.mark.usefixtures("_no_proxy")
def test_without_network_one_line_says_both_ways_out() -> None:
    with served(b"") as url:
        pass
    with pytest.raises(CorpusError) as caught:
        fetch(url, TINY_SHAKESPEARE)  # nothing listens there any more
    message = str(caught.value)
    assert message.startswith(f"tiny_shakespeare: cannot download {url} (")
    assert "connect to the network once, or set MOESEARCH_TINY_SHAKESPEARE to the path of a copy" in message
    assert "\n" not in message


@settings(max_examples=30)
@given(text=st.text(min_size=60, max_size=400).filter(lambda text: "\r\n" not in text and text[0] != "\ufeff"))
def test_an_own_text_is_cut_in_three_without_loss(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    corpus = load_corpus(write(tmp_path_factory.mktemp("text") / "own.txt", text))
    assert corpus.train + corpus.val + corpus.test == text
    assert corpus.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert 0.88 <= len(corpus.train) / len(text) <= 0.92
    assert len(corpus.val) >= 2
    assert len(corpus.test) >= 2


def test_an_own_text_is_cut_at_line_ends(tmp_path: Path) -> None:
    corpus = load_corpus(write(tmp_path / "own.txt", "seven \n" * 1000))
    assert corpus.train.endswith("\n")
    assert corpus.val.endswith("\n")
    assert abs(len(corpus.train) - 6300) < 7


def test_a_text_without_line_ends_is_cut_where_it_must(tmp_path: Path) -> None:
    corpus = load_corpus(write(tmp_path / "own.txt", "x" * 1000))
    assert [len(corpus.train), len(corpus.val), len(corpus.test)] == [900, 50, 50]


def test_byte_order_mark_and_windows_line_ends_are_not_text(tmp_path: Path) -> None:
    corpus = load_corpus(write(tmp_path / "own.txt", b"\xef\xbb\xbf" + b"line\r\n" * 100))
    assert corpus.characters == "\neiln"


def test_a_relative_path_starts_at_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "own.txt", "line\n" * 100)
    monkeypatch.chdir(tmp_path)
    assert load_corpus(DataConfig(text="own.txt")).name == "own.txt"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"line\n" * 100 + b"caf\xe9", r"is not UTF-8: byte 0xe9 at offset 503; convert it to UTF-8"),
        (b"too short", r"the validation split of .* has 0 tokens"),
    ],
)
def test_a_text_that_cannot_be_used_says_why(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        load_corpus(write(tmp_path / "own.txt", content))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.txt", r"^data\.text: nowhere\.txt does not exist \(the current folder is "),
        (".", r"^data\.text: \. is a folder; give the path of one UTF-8 text file$"),
        (os.devnull, r"is not a regular file"),
        ("x" * 4000, r"^data\.text: (cannot read|.* does not exist)"),
    ],
)
def test_a_path_that_is_no_text_says_what_it_is(path: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        load_corpus(DataConfig(text=path))


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, ""])
def test_a_path_that_no_file_can_have_is_refused_by_the_configuration(path: str) -> None:
    with pytest.raises(ValidationError, match="text"):
        DataConfig(text=path)


def test_a_text_beyond_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.txt").open("wb") as file:
        file.truncate(2**40)  # sparse: it takes no room
    with pytest.raises(CorpusError, match=r"has 1,099,511,627,776 bytes, more than the 1,073,741,824 that fit"):
        load_corpus(DataConfig(text=str(tmp_path / "huge.txt")))


def test_a_context_longer_than_a_split_is_refused() -> None:
    SHAKESPEARE.check_length(context=SHAKESPEARE.test_tokens - 1)
    with pytest.raises(
        CorpusError, match=r"the test split of shakespeare has 192,637 tokens, but model\.context \(192,6"
    ):
        SHAKESPEARE.check_length(context=SHAKESPEARE.test_tokens)
