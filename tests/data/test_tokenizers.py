from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moesearch.data.corpora import Corpus
from moesearch.data.tokenizers import CharTokenizer
from moesearch.errors import CorpusError

ABC = CharTokenizer("abc")


@given(text=st.text(min_size=1))
def test_decoding_undoes_encoding(text: str) -> None:
    tokenizer = CharTokenizer("".join(sorted(set(text))))
    ids = tokenizer.encode(text)
    assert ids.dtype == torch.int64
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids.tolist()) == text


def test_ids_follow_the_sorted_characters() -> None:
    assert CharTokenizer("\naé").encode("éa\n").tolist() == [2, 1, 0]


@given(text=st.text(min_size=1))
def test_a_tokenizer_comes_back_from_json_as_it_was(text: str) -> None:
    tokenizer = CharTokenizer("".join(sorted(set(text))))
    back = CharTokenizer.from_json(tokenizer.to_json())
    assert back == tokenizer
    assert back.sha256 == tokenizer.sha256


def test_other_characters_have_another_hash() -> None:
    assert CharTokenizer("abd").sha256 != ABC.sha256


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("abé", r"'é' \(U\+00E9\) at offset 2"),  # beyond the largest known character
        (" b", r"' ' \(U\+0020\) at offset 0"),  # before the smallest
        ("ab\U0001f600", r"U\+1F600\) at offset 2"),
        ("a\udcff", r"'\\udcff' \(U\+DCFF\) at offset 1"),  # half of a pair, from an undecodable argument
    ],
)
def test_an_unknown_character_is_named(text: str, place: str) -> None:
    with pytest.raises(CorpusError, match=place + r".* not one of the 3 characters that the model knows"):
        ABC.encode(text)


@pytest.mark.parametrize("ids", [[-1], [0, 3]])
def test_an_id_outside_the_vocabulary_is_an_error(ids: list[int]) -> None:
    with pytest.raises(IndexError):
        ABC.decode(ids)


def test_nothing_encodes_to_nothing() -> None:
    assert ABC.encode("").shape == (0,)
    assert ABC.decode([]) == ""


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"type": "bpe", "characters": "ab"}', '{"type": "char", "characters": 3}']
)
def test_json_of_something_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a character tokenizer"):
        CharTokenizer.from_json(text)


@pytest.mark.parametrize("characters", ["", "ba", "aa"])
def test_characters_must_be_distinct_and_sorted(characters: str) -> None:
    with pytest.raises(ValueError, match="distinct, sorted"):
        CharTokenizer(characters)


def test_the_plays_need_few_characters(shakespeare: Corpus) -> None:
    assert shakespeare.characters == ("\n !&',-.24568:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
