"""A corpus as token ids: what the trainer reads.

Shapes:  N tokens of a split   V vocabulary
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import assert_never

import safetensors.torch
import torch
from torch import Tensor

from moesearch.config.places import default_cache_dir
from moesearch.config.trial import DataConfig
from moesearch.data.cache import made_once
from moesearch.data.corpora import Corpus, load_corpus
from moesearch.data.facts import TokenFacts, require_length
from moesearch.data.tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    bytes_per_id,
    tokenizer_from_json,
)

_SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class TokenData:
    """Three splits as one-dimensional int64 tensors on the CPU."""

    corpus_name: str
    corpus_sha256: str
    tokenizer: Tokenizer
    train: Tensor = field(repr=False)
    val: Tensor = field(repr=False)
    test: Tensor = field(repr=False)
    bytes_per_id_V: Tensor = field(repr=False)
    """UTF-8 bytes that each id stands for, int64."""
    vocab_size: int

    @cached_property
    def facts(self) -> TokenFacts:
        train_bytes = int(self.bytes_per_id_V[self.train].sum())
        return TokenFacts(self.vocab_size, len(self.val), train_bytes / max(1, len(self.train)))


class Texts:
    """The texts of a process by configuration: a study may search tokenizers, and comes back to each of them often."""

    def __init__(self, cache_dir: Path | None = None) -> None:
        self._cache_dir = cache_dir
        self._held: OrderedDict[tuple[object, ...], TokenData] = OrderedDict()

    def of(self, config: DataConfig) -> TokenData:
        """A corpus in tokens; raises CorpusError as ``load_tokens`` does."""
        key = (config.corpus, config.text, config.tokenizer, config.vocab_size if config.tokenizer == "bpe" else None)
        if key not in self._held:
            self._held[key] = load_tokens(config, self._cache_dir)
        self._held.move_to_end(key)
        while len(self._held) > _TEXTS_HELD:
            self._held.popitem(last=False)
        return self._held[key]


_TEXTS_HELD = 4
"""Each takes 8 bytes of memory per token, and a tenth of a second to come back."""


def load_tokens(config: DataConfig, cache_dir: Path | None = None) -> TokenData:
    """Load a corpus and encode it.

    BPE takes seconds, so its merges and ids are kept in the cache folder; the others take a tenth of a second.

    Raises:
        CorpusError: as ``load_corpus`` does, or the training split is too short for the vocabulary that is asked for.
    """
    corpus = load_corpus(config, cache_dir)
    match config.tokenizer:
        case "char" | "byte":
            return tokenize(corpus, config)
        case "bpe":
            folder = cache_dir if cache_dir is not None else default_cache_dir()
            place = None if folder is None else folder / f"bpe-{_name(corpus, config)}.tokens"
            return _unpacked(corpus, made_once(place, lambda: _packed(tokenize(corpus, config))))
        case _:
            assert_never(config.tokenizer)


def tokenize(corpus: Corpus, config: DataConfig | None = None) -> TokenData:
    """A corpus in the ids of a tokenizer; without a configuration, in those of its characters."""
    tokenizer = _tokenizer(corpus, config or DataConfig())
    return _token_data(corpus, tokenizer, {split: tokenizer.encode(getattr(corpus, split)) for split in _SPLITS})


def check_length(tokens: TokenData, context: int) -> None:
    """Raise CorpusError unless every split holds a window of ``context`` tokens and the one that follows."""
    require_length(tokens.corpus_name, "train", len(tokens.train), context)
    require_length(tokens.corpus_name, "validation", len(tokens.val), context)
    require_length(tokens.corpus_name, "test", len(tokens.test), context)


def _tokenizer(corpus: Corpus, config: DataConfig) -> Tokenizer:
    match config.tokenizer:
        case "char":
            # From the whole text, as in makeMoE; of the test split it tells which characters exist.
            return CharTokenizer(corpus.characters)
        case "byte":
            return ByteTokenizer()
        case "bpe":
            return BPETokenizer.train(corpus.train, config.vocab_size)
        case _:
            assert_never(config.tokenizer)


def _token_data(corpus: Corpus, tokenizer: Tokenizer, ids: dict[str, Tensor]) -> TokenData:
    return TokenData(
        corpus_name=corpus.name,
        corpus_sha256=corpus.sha256,
        tokenizer=tokenizer,
        **ids,
        bytes_per_id_V=bytes_per_id(tokenizer),
        vocab_size=len(tokenizer.pieces),
    )


def _name(corpus: Corpus, config: DataConfig) -> str:
    """Names all that the ids of a BPE follow from: the text, its cuts, the vocabulary size, the library."""
    cuts = [len(corpus.train), len(corpus.val)]
    facts = [_PACKED_FORMAT, corpus.sha256, cuts, config.vocab_size, version("tokenizers")]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


_PACKED_FORMAT = 1


def _packed(tokens: TokenData) -> bytes:
    ids = {split: getattr(tokens, split).to(torch.int32) for split in _SPLITS}
    return safetensors.torch.save(ids, {"tokenizer": tokens.tokenizer.to_json()})


def _unpacked(corpus: Corpus, content: bytes) -> TokenData:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    ids = {split: tensor.long() for split, tensor in safetensors.torch.load(content).items()}
    return _token_data(corpus, tokenizer_from_json(header["__metadata__"]["tokenizer"]), ids)
