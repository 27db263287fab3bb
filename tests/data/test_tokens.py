from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moesearch.config.trial import DataConfig
from moesearch.data.corpora import Corpus
from moesearch.data.facts import SHAKESPEARE, token_facts
from moesearch.data.tokenizers import BPETokenizer, decode
from moesearch.data.tokens import Texts, check_length, load_tokens, tokenize
from moesearch.errors import CorpusError

BPE = DataConfig(tokenizer="bpe", vocab_size=257)
SMALL = Corpus(name="small", train="aé b" * 10, val="éab", test="bé", sha256="0" * 64)


def test_the_plays_load_as_ids_of_their_characters(cache: Path, shakespeare: Corpus) -> None:
    tokens = load_tokens(DataConfig(), cache)
    assert (tokens.corpus_name, tokens.corpus_sha256) == ("shakespeare", SHAKESPEARE.sha256)
    assert tokens.vocab_size == len(tokens.tokenizer.pieces) == SHAKESPEARE.vocab_size
    assert [len(tokens.train), len(tokens.val), len(tokens.test)] == [4_395_806, 192_810, 192_637]
    assert tokens.train.dtype == torch.int64
    assert decode(tokens.tokenizer, tokens.val) == shakespeare.val
    assert tokens.facts == token_facts(SHAKESPEARE, DataConfig())


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
def test_a_texts_tokens_stand_for_all_of_its_bytes(tokenizer: str) -> None:
    tokens = tokenize(SMALL, DataConfig.model_validate({"tokenizer": tokenizer, "vocab_size": 258}))
    for ids, text in ((tokens.train, SMALL.train), (tokens.val, SMALL.val), (tokens.test, SMALL.test)):
        assert int(tokens.bytes_per_id_V[ids].sum()) == len(text.encode())
        assert decode(tokens.tokenizer, ids) == text


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_sizes_in_tokens_follow_from_those_of_the_text(tokenizer: str) -> None:
    config = DataConfig.model_validate({"tokenizer": tokenizer})
    assert tokenize(SMALL, config).facts == token_facts(SMALL.facts, config)


def test_the_merges_come_from_the_training_split_alone() -> None:
    corpus = Corpus("three", "abab" * 9, "cdcd" * 9, "efef" * 9, "0" * 64)
    pieces = tokenize(corpus, BPE).tokenizer.pieces
    assert b"ab" in pieces
    assert not {b"cd", b"ef"} & set(pieces)


def test_too_short_a_training_split_for_the_vocabulary_is_named() -> None:
    with pytest.raises(CorpusError, match=r"data.vocab_size \(1,024\): the training split gives 2\d\d tokens at most"):
        tokenize(SMALL, DataConfig(tokenizer="bpe"))


def test_trained_tokens_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").write_text("to be or not to be\n" * 50)
    config = DataConfig(text=str(tmp_path / "text"), tokenizer="bpe", vocab_size=258)
    made = load_tokens(config, tmp_path / "cache")
    monkeypatch.setattr(BPETokenizer, "train", None)
    held = load_tokens(config, tmp_path / "cache")
    assert held.tokenizer == made.tokenizer
    assert all(torch.equal(getattr(held, split), getattr(made, split)) for split in ("train", "val", "test"))


def test_texts_come_back_as_they_were(cache: Path) -> None:
    texts = Texts(cache)
    assert texts.of(DataConfig()) is texts.of(DataConfig(batch_size=3, vocab_size=300))
    assert texts.of(DataConfig(tokenizer="byte")).vocab_size == 256


def test_the_vocabulary_is_that_of_all_splits() -> None:
    tokens = tokenize(Corpus("three", "a", "b", "c", "0" * 64))
    assert tokens.tokenizer.pieces == (b"a", b"b", b"c")


def test_each_split_must_hold_a_window() -> None:
    check_length(tokenize(SMALL), context=1)
    with pytest.raises(CorpusError, match="the test split of small has 2 tokens"):
        check_length(tokenize(SMALL), context=2)
