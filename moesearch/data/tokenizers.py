"""From text to token ids and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moesearch.errors import CorpusError


@dataclass(frozen=True)
class CharTokenizer:
    """One token per character; the id is the character's place among the corpus' sorted distinct characters."""

    characters: str

    def __post_init__(self) -> None:
        if not self.characters or sorted(set(self.characters)) != list(self.characters):
            raise ValueError("the characters of a tokenizer must be distinct, sorted and at least one")

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    @property
    def sha256(self) -> str:
        """Names the tokenizer: equal hashes give equal ids."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def encode(self, text: str) -> Tensor:
        """Ids as a one-dimensional int64 tensor; raises CorpusError for a character that the corpus lacks."""
        known = _codepoints(self.characters)
        # One slot more than the largest known character stands for all beyond it.
        id_of_codepoint = np.full(int(known[-1]) + 2, -1, dtype=np.int64)
        id_of_codepoint[known] = np.arange(len(known))
        ids = id_of_codepoint[np.minimum(_codepoints(text), known[-1] + 1)]
        if ids.size and ids.min() < 0:
            offset = int(np.argmin(ids))
            raise CorpusError(
                f"character {text[offset]!r} (U+{ord(text[offset]):04X}) at offset {offset:,} is not one of the "
                f"{self.vocab_size:,} characters that the model knows; leave it out or write it differently"
            )
        return torch.from_numpy(ids)

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of some ids; an id outside the vocabulary is an IndexError."""
        values: NDArray[np.int64] = np.asarray(torch.as_tensor(ids, dtype=torch.int64).cpu())
        if values.size and values.min() < 0:
            raise IndexError(f"token id {values.min()} is negative")
        return _codepoints(self.characters)[values].tobytes().decode("utf-32-le")

    def to_json(self) -> str:
        """A JSON object that says which tokenizer it is, and all of it."""
        return json.dumps({"type": "char", "characters": self.characters})

    @classmethod
    def from_json(cls, text: str) -> CharTokenizer:
        """The inverse of ``to_json``; raises ValueError for anything else."""
        match json.loads(text):
            case {"type": "char", "characters": str(characters)}:
                return cls(characters)
            case _:
                raise ValueError('not a character tokenizer: expected {"type": "char", "characters": "…"}')


def _codepoints(text: str) -> NDArray[np.uint32]:
    # A lone surrogate, as an undecodable command-line argument brings, is passed on to be named as unknown.
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")
