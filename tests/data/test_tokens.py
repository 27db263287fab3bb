from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moesearch.config.trial import DataConfig
from moesearch.data.corpora import Corpus
from moesearch.data.facts import SHAKESPEARE
from moesearch.data.tokens import check_length, load_tokens, tokenize
from moesearch.errors import CorpusError

SMALL = Corpus(name="small", train="aé b" * 10, val="éab", test="bé", sha256="0" * 64)


def test_the_plays_load_as_ids_of_their_characters(cache: Path, shakespeare: Corpus) -> None:
    tokens = load_tokens(DataConfig(), cache)
    assert (tokens.corpus_name, tokens.corpus_sha256) == ("shakespeare", SHAKESPEARE.sha256)
    assert tokens.vocab_size == tokens.tokenizer.vocab_size == SHAKESPEARE.vocab_size
    assert [len(tokens.train), len(tokens.val), len(tokens.test)] == [4_395_806, 192_810, 192_637]
    assert tokens.train.dtype == torch.int64
    assert tokens.tokenizer.decode(tokens.val) == shakespeare.val
    assert (tokens.val_bytes, tokens.test_bytes) == (192_809, 192_636)


def test_bytes_are_those_of_all_tokens_but_the_first() -> None:
    tokens = tokenize(SMALL)
    assert tokens.val_bytes == 2
    assert tokens.test_bytes == 2


def test_the_vocabulary_is_that_of_all_splits() -> None:
    tokens = tokenize(Corpus("three", "a", "b", "c", "0" * 64))
    assert tokens.tokenizer.characters == "abc"


def test_each_split_must_hold_a_window() -> None:
    check_length(tokenize(SMALL), context=1)
    with pytest.raises(CorpusError, match="the test split of small has 2 tokens"):
        check_length(tokenize(SMALL), context=2)
