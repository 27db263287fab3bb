from __future__ import annotations

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesearch.data.corpora import Corpus
from moesearch.data.tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    decode,
    sha256_of,
    tokenizer_from_json,
)
from moesearch.errors import CorpusError

ABC = CharTokenizer("abc")


@given(text=st.text(min_size=1))
def test_decoding_undoes_encoding(text: str) -> None:
    tokenizer = CharTokenizer("".join(sorted(set(text))))
    ids = tokenizer.encode(text)
    assert ids.dtype == torch.int64
    assert decode(tokenizer, ids) == text
    assert decode(tokenizer, ids.tolist()) == text


def test_ids_follow_the_sorted_characters() -> None:
    assert CharTokenizer("\naé").encode("éa\n").tolist() == [2, 1, 0]


@given(text=st.text(min_size=1))
def test_a_tokenizer_comes_back_from_json_as_it_was(text: str) -> None:
    tokenizer = CharTokenizer("".join(sorted(set(text))))
    assert tokenizer_from_json(tokenizer.to_json()) == tokenizer


def test_other_characters_have_another_hash() -> None:
    assert sha256_of(CharTokenizer("abd")) != sha256_of(ABC)


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
        decode(ABC, ids)


def test_nothing_encodes_to_nothing() -> None:
    assert ABC.encode("").shape == (0,)
    assert decode(ABC, []) == ""


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"type": "bpe", "characters": "ab"}', '{"type": "char", "characters": 3}']
)
def test_json_of_something_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no tokenizer of moesearch"):
        tokenizer_from_json(text)


@pytest.mark.parametrize("characters", ["", "ba", "aa"])
def test_characters_must_be_distinct_and_sorted(characters: str) -> None:
    with pytest.raises(ValueError, match="distinct, sorted"):
        CharTokenizer(characters)


def test_the_plays_need_few_characters(shakespeare: Corpus) -> None:
    assert shakespeare.characters == ("\n !&',-.24568:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return BPETokenizer.train("to be or not to be\n\nthat is the question\n" * 20, 280)


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=50)
def test_bytes_spell_any_text(bpe: Tokenizer, text: str) -> None:
    for tokenizer in (ByteTokenizer(), bpe):
        assert decode(tokenizer, tokenizer.encode(text)) == text


def test_half_of_a_pair_is_named(bpe: Tokenizer) -> None:
    for tokenizer in (ByteTokenizer(), bpe):
        with pytest.raises(CorpusError, match=r"'\\udcff' at offset 1 is half of a pair"):
            tokenizer.encode("a\udcff")


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    assert decode(ByteTokenizer(), [0x61, 0xE9]) == "a\N{REPLACEMENT CHARACTER}"


def test_parts_of_a_long_text_are_encoded_as_the_whole(bpe: Tokenizer) -> None:
    text = ("to be \n\n\nor not\nto be\n \n\tthat is\r\nthe question " * 9 + "\n") * 30
    assert isinstance(bpe, BPETokenizer)
    assert bpe.encode(text).tolist() == tokenizers.Tokenizer.from_str(bpe.definition).encode(text).ids


def test_a_trained_tokenizer_is_the_same_each_time_and_comes_back_from_json(bpe: Tokenizer) -> None:
    again = BPETokenizer.train("to be or not to be\n\nthat is the question\n" * 20, 280)
    assert again == bpe == tokenizer_from_json(bpe.to_json())
    assert len(bpe.pieces) == 280
