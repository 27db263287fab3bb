"""What is known of the built-in corpora without loading them, so that ``--dry-run`` needs neither text nor network.

The name of a built-in corpus means these very bytes, now and later: a loss on it is comparable for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from moesearch.config.trial import DataConfig
from moesearch.errors import CorpusError


@dataclass(frozen=True)
class CorpusFacts:
    """Sizes of a corpus under the character tokenizer, where one token is one character."""

    name: str
    sha256: str
    """Of the whole text as UTF-8: train, validation, test, one after the other."""
    num_bytes: int
    num_characters: int
    vocab_size: int
    train_tokens: int
    val_tokens: int
    test_tokens: int
    train_bytes: int
    """UTF-8 bytes of each split: with those of the next two, where the text is cut."""
    val_bytes: int
    test_bytes: int

    def check_length(self, context: int) -> None:
        """Raise CorpusError unless every split holds a window of ``context`` tokens and the one that follows."""
        require_length(self.name, "train", self.train_tokens, context)
        require_length(self.name, "validation", self.val_tokens, context)
        require_length(self.name, "test", self.test_tokens, context)


@dataclass(frozen=True)
class TokenFacts:
    """Sizes of a corpus under one tokenizer."""

    vocab_size: int
    val_tokens: int
    bytes_per_token: float
    """Mean over the training split."""


SHAKESPEARE = CorpusFacts(
    name="shakespeare",
    sha256="1da68223adea3ee369a85b4f2ae774d71124af4adb946e5938ad8c68a25558ad",
    num_bytes=4_781_253,
    num_characters=4_781_253,
    vocab_size=68,
    train_tokens=4_395_806,
    val_tokens=192_810,
    test_tokens=192_637,
    train_bytes=4_395_806,
    val_bytes=192_810,
    test_bytes=192_637,
)

TINY_SHAKESPEARE = CorpusFacts(
    name="tiny_shakespeare",
    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    num_bytes=1_115_394,
    num_characters=1_115_394,
    vocab_size=65,
    train_tokens=1_003_854,  # int(0.9 * num_characters), the article's split
    val_tokens=55_770,
    test_tokens=55_770,
    train_bytes=1_003_854,
    val_bytes=55_770,
    test_bytes=55_770,
)


def known_facts(config: DataConfig) -> CorpusFacts | None:
    """The facts of a built-in corpus; None for a text of the person's own, which has to be read first."""
    if config.text is not None:
        return None
    match config.corpus:
        case "shakespeare":
            return SHAKESPEARE
        case "tiny_shakespeare":
            return TINY_SHAKESPEARE
        case _:
            assert_never(config.corpus)


def token_facts(facts: CorpusFacts, config: DataConfig) -> TokenFacts | None:
    """A corpus in tokens, where that follows from its sizes; None for a tokenizer that has to be trained."""
    match config.tokenizer:
        case "char":
            return TokenFacts(facts.vocab_size, facts.val_tokens, facts.train_bytes / facts.train_tokens)
        case "byte":
            return TokenFacts(256, facts.val_bytes, 1.0)
        case "bpe":
            return None
        case _:
            assert_never(config.tokenizer)


def require_length(corpus_name: str, split: str, num_tokens: int, context: int) -> None:
    """Raise CorpusError if a split is too short for one window and the token that follows it."""
    if num_tokens < context + 1:
        raise CorpusError(
            f"data: the {split} split of {corpus_name} has {num_tokens:,} tokens, but model.context ({context:,}) "
            f"needs at least {context + 1:,}; give a longer text or a shorter context"
        )


def part_windows(num_tokens: int, context: int, share: float) -> list[int]:
    """Which whole windows of a split a share of it reads: evenly spread, one at least, the same ones each time.

    What they predict is ``context`` tokens each. A split of less than one window has none.
    """
    num_whole = (num_tokens - 1) // context
    num_read = min(num_whole, max(1, int(num_whole * share)))
    return [(2 * place + 1) * num_whole // (2 * num_read) for place in range(num_read)]
