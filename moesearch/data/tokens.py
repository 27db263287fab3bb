"""A corpus as token ids: what the trainer reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from moesearch.config.trial import DataConfig
from moesearch.data.corpora import Corpus, load_corpus
from moesearch.data.facts import require_length
from moesearch.data.tokenizers import CharTokenizer


@dataclass(frozen=True, eq=False)
class TokenData:
    """Three splits as one-dimensional int64 tensors on the CPU."""

    corpus_name: str
    corpus_sha256: str
    tokenizer: CharTokenizer
    train: Tensor = field(repr=False)
    val: Tensor = field(repr=False)
    test: Tensor = field(repr=False)
    val_bytes: int
    """UTF-8 bytes of the predicted tokens of the split: of all but the first one."""
    test_bytes: int
    vocab_size: int


def load_tokens(config: DataConfig, cache_dir: Path | None = None) -> TokenData:
    """Load a corpus and encode it; raises CorpusError as ``load_corpus`` does.

    The ids are not cached, since encoding the plays takes a tenth of a second.
    """
    return tokenize(load_corpus(config, cache_dir))


def tokenize(corpus: Corpus) -> TokenData:
    """A corpus in the ids of its own characters."""
    # The vocabulary comes from the whole text, as in makeMoE; of the test split it tells which characters exist.
    tokenizer = CharTokenizer(corpus.characters)
    return TokenData(
        corpus_name=corpus.name,
        corpus_sha256=corpus.sha256,
        tokenizer=tokenizer,
        train=tokenizer.encode(corpus.train),
        val=tokenizer.encode(corpus.val),
        test=tokenizer.encode(corpus.test),
        val_bytes=_predicted_bytes(corpus.val),
        test_bytes=_predicted_bytes(corpus.test),
        vocab_size=tokenizer.vocab_size,
    )


def check_length(tokens: TokenData, context: int) -> None:
    """Raise CorpusError unless every split holds a window of ``context`` tokens and the one that follows."""
    require_length(tokens.corpus_name, "train", len(tokens.train), context)
    require_length(tokens.corpus_name, "validation", len(tokens.val), context)
    require_length(tokens.corpus_name, "test", len(tokens.test), context)


def _predicted_bytes(text: str) -> int:
    return len(text[1:].encode())
