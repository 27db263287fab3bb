"""From text to token ids and back.

Every token stands for some bytes of the UTF-8 text (its piece), so that losses of different tokenizers can be compared
per byte, exactly.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moesearch.errors import CorpusError

if TYPE_CHECKING:
    import tokenizers

_PART_CHARACTERS = 4096
"""A BPE encoder is fed a text in parts of about this size, which takes less time and memory than the whole at once."""
_BORDER = re.compile(r"(?<=\S\n)(?=\S)")


class Tokenizer(Protocol):
    """What training, evaluation and generation need of a tokenizer."""

    @property
    def pieces(self) -> tuple[bytes, ...]:
        """The bytes that each id stands for."""

    def encode(self, text: str) -> Tensor:
        """Ids as a one-dimensional int64 tensor; raises CorpusError for text that the tokenizer cannot spell."""

    def to_json(self) -> str:
        """A JSON object that says which tokenizer it is, and all of it; ``tokenizer_from_json`` is the inverse."""


def decode(tokenizer: Tokenizer, ids: Tensor | Sequence[int]) -> str:
    """The text of some ids; an id outside the vocabulary is an IndexError.

    Bytes that are no UTF-8, as a model may sample them, become the replacement character.
    """
    values = torch.as_tensor(ids, dtype=torch.int64).tolist()
    if values and min(values) < 0:
        raise IndexError(f"token id {min(values)} is negative")
    return b"".join(map(tokenizer.pieces.__getitem__, values)).decode(errors="replace")


def sha256_of(tokenizer: Tokenizer) -> str:
    """Names the tokenizer: equal hashes give equal ids."""
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()


def bytes_per_id(tokenizer: Tokenizer) -> Tensor:
    """UTF-8 bytes that each id stands for, int64, shape (V,)."""
    return torch.tensor([len(piece) for piece in tokenizer.pieces])


def tokenizer_from_json(text: str) -> Tokenizer:
    """The inverse of ``to_json``; raises ValueError for anything else."""
    match json.loads(text):
        case {"type": "char", "characters": str(characters)}:
            return CharTokenizer(characters)
        case {"type": "byte"}:
            return ByteTokenizer()
        case {"model": {"type": "BPE"}}:
            return BPETokenizer(text)
        case _:
            raise ValueError(
                'no tokenizer of moesearch: expected {"type": "char", …}, {"type": "byte"}, or a BPE model'
            )


@dataclass(frozen=True)
class CharTokenizer:
    """One token per character; the id is the character's place among the corpus' sorted distinct characters."""

    characters: str

    def __post_init__(self) -> None:
        if not self.characters or sorted(set(self.characters)) != list(self.characters):
            raise ValueError("the characters of a tokenizer must be distinct, sorted and at least one")

    @cached_property
    def pieces(self) -> tuple[bytes, ...]:
        return tuple(character.encode() for character in self.characters)

    def encode(self, text: str) -> Tensor:
        known = _codepoints(self.characters)
        # One slot more than the largest known character stands for all beyond it.
        id_of_codepoint = np.full(int(known[-1]) + 2, -1, dtype=np.int64)
        id_of_codepoint[known] = np.arange(len(known))
        ids = id_of_codepoint[np.minimum(_codepoints(text), known[-1] + 1)]
        if ids.size and ids.min() < 0:
            offset = int(np.argmin(ids))
            raise CorpusError(
                f"character {text[offset]!r} (U+{ord(text[offset]):04X}) at offset {offset:,} is not one of the "
                f"{len(self.characters):,} characters that the model knows; leave it out or write it differently"
            )
        return torch.from_numpy(ids)

    def to_json(self) -> str:
        return json.dumps({"type": "char", "characters": self.characters})


@dataclass(frozen=True)
class ByteTokenizer:
    """One token per byte of the UTF-8 text; the id is the byte."""

    @property
    def pieces(self) -> tuple[bytes, ...]:
        return _BYTES

    def encode(self, text: str) -> Tensor:
        return torch.from_numpy(np.frombuffer(_utf8(text), dtype=np.uint8).astype(np.int64))

    def to_json(self) -> str:
        return json.dumps({"type": "byte"})


@dataclass(frozen=True)
class BPETokenizer:
    """Byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019): any text can be spelt.

    ``definition`` is the JSON of the package ``tokenizers``, which other programs read as it is.
    """

    definition: str = field(repr=False)

    @cached_property
    def pieces(self) -> tuple[bytes, ...]:
        by_id = sorted((number, text) for text, number in self._tokenizer.get_vocab().items())
        byte_of = _byte_of_letter()
        return tuple(bytes(byte_of[letter] for letter in text) for _, text in by_id)

    def encode(self, text: str) -> Tensor:
        _utf8(text)
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(_parts(text))]
        return torch.from_numpy(np.concatenate([np.asarray(part, dtype=np.int64) for part in ([], *ids)]))

    def to_json(self) -> str:
        return self.definition

    @cached_property
    def _tokenizer(self) -> tokenizers.Tokenizer:
        import tokenizers

        return tokenizers.Tokenizer.from_str(self.definition)

    @classmethod
    def train(cls, text: str, vocab_size: int) -> BPETokenizer:
        """Learn the merges from a text: all bytes, and the most frequent pairs until the vocabulary is full.

        Raises:
            CorpusError: the text has too few different pairs.
        """
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers, trainers

        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
        )
        tokenizer.train_from_iterator(_parts(text), trainer)
        if tokenizer.get_vocab_size() < vocab_size:
            raise CorpusError(
                f"data.vocab_size ({vocab_size:,}): the training split gives {tokenizer.get_vocab_size():,} tokens at "
                "most; ask for fewer, or give a longer text"
            )
        return cls(tokenizer.to_str())


def _parts(text: str) -> list[str]:
    """The text cut at single line breaks, so that the parts' tokens are those of the whole.

    The byte-level splitter looks past a token only to see where a run of white space ends. A single line break between
    two other characters is a token of its own, whatever stands around it.
    """
    borders = [0]
    while border := _BORDER.search(text, borders[-1] + _PART_CHARACTERS):
        borders.append(border.start())
    return [text[first:last] for first, last in pairwise([*borders, len(text)])]


_BYTES = tuple(bytes([value]) for value in range(256))


def _byte_of_letter() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones are themselves, the others follow from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {chr(256 + n): value for n, value in enumerate(others)}


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise CorpusError(
            f"character {text[error.start]!r} at offset {error.start:,} is half of a pair, which UTF-8 cannot write; "
            "leave it out"
        ) from None


def _codepoints(text: str) -> NDArray[np.uint32]:
    # A lone surrogate, as an undecodable command-line argument brings, is passed on to be named as unknown.
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")
