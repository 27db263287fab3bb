"""The random numbers of one training step, as a pure function of each lane's seed and step.

A number is a hash of (seed, step, place in the model, row, column): nothing is stored, so an exact resume needs no
generator state; nothing depends on a lane's place, on R or on its neighbours; and the same few integer operations run
on a CPU and inside a CUDA graph, without a host sync.

Rows get a strong 32-bit key. The entries of a row cost seven passes over 32-bit words, and each word serves four
entries as four 8-bit draws: a dropout mask is several times cheaper than from torch's own CPU generator.

Shapes:  R lanes   L layers   P places   N rows of a lane   M rows of any lanes   J columns   E experts
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from functools import lru_cache

import torch
from torch import Tensor

# Increments and multipliers: splitmix64 (Steele et al. 2014) for keys, lowbias32 (Wellons 2018) for rows and entries.
_GOLDEN_64 = 0x9E3779B97F4A7C15
_GOLDEN_32 = 0x9E3779B1
_SPLITMIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LOWBIAS = (0x7FEB352D, 0x846CA68B)
# Room for places to come, so that a new one moves no stream.
_PLACES_PER_LAYER = 16
# A token's row of router noise has room for this many experts, so that a lane's do not depend on its neighbours' E.
_NOISE_COLUMNS = 512


class Place(IntEnum):
    """Where in a layer random numbers are drawn."""

    ATTENTION_WEIGHTS = 0
    ATTENTION_OUTPUT = 1
    EXPERT_OUTPUT = 2
    ROUTER_NOISE = 3
    FIXED_NOISE = 4
    INPUT_JITTER = 5
    SHARED_OUTPUT = 6


class StepRandomness:
    """Random numbers of one training step of R lanes; lane r's are decided by seeds_R[r] and steps_R[r] alone.

    ``progress_R`` is the part of its budget that a lane has behind it, for noise that fades; None is the start.
    ``part`` is the number of the part of a batch that is trained here: its rows are counted on from those before it, so
    that processes which share a batch of one lane draw what one process would.
    """

    def __init__(self, seeds_R: Tensor, steps_R: Tensor, progress_R: Tensor | None = None, part: int = 0) -> None:
        self._keys_R = _mix64(_mix64(seeds_R) + _signed(_GOLDEN_64, 64) * (steps_R + 1))
        self._progress_R = torch.zeros(len(seeds_R), device=seeds_R.device) if progress_R is None else progress_R
        assert part == 0 or len(seeds_R) == 1, "lanes do not share the rows of a batch"
        self._part = part

    def layers(self, num_layers: int) -> list[LayerRandomness]:
        """The randomness of each layer."""
        places_P = torch.arange(1, num_layers * _PLACES_PER_LAYER + 1, device=self._keys_R.device)
        keys_PR = _mix64(self._keys_R + _signed(_GOLDEN_64, 64) * places_P.unsqueeze(1))
        keys_LPR2 = keys_PR.view(torch.int32).view(num_layers, _PLACES_PER_LAYER, -1, 2)
        row_keys = RowKeys(keys_LPR2, self._part)
        return [
            LayerRandomness(layer, keys_PR2, row_keys, self._progress_R, self._part)
            for layer, keys_PR2 in enumerate(keys_LPR2.unbind())
        ]


class RowKeys:
    """Keys of rows, made for all layers in one go: a dozen tiny operations in a step instead of in each layer."""

    def __init__(self, keys_LPR2: Tensor, part: int) -> None:
        self._keys_LPR2 = keys_LPR2
        self._part = part
        self._by_count: dict[tuple[Place, int], tuple[Tensor, ...]] = {}
        self._by_index: dict[Place, tuple[Tensor, tuple[Tensor, ...]]] = {}

    def of_all(self, place: Place, rows: int) -> tuple[Tensor, ...]:
        """Per layer, keys of as many rows in each lane: int32 (R, N)."""
        if (place, rows) not in self._by_count:
            first = self._part * rows
            row_N = torch.arange(first, first + rows, dtype=torch.int32, device=self._keys_LPR2.device)
            keys_LRN = _hash32(row_N, self._keys_LPR2[:, place].unsqueeze(2))
            self._by_count[place, rows] = keys_LRN.unbind()
        return self._by_count[place, rows]

    def of_some(self, place: Place, lane_M: Tensor, row_M: Tensor) -> tuple[Tensor, ...]:
        """Per layer, keys of rows ``row_M`` (int32) of lanes ``lane_M``: int32 (M,)."""
        made = self._by_index.get(place)
        if made is None or made[0] is not row_M:
            # Of one lane, the rows that are asked for are all rows.
            counted_on_M = row_M + self._part * len(row_M) if self._part else row_M
            keys_LM = _hash32(counted_on_M, self._keys_LPR2[:, place].index_select(1, lane_M))
            made = self._by_index[place] = (row_M, keys_LM.unbind())
        return made[1]


class LayerRandomness:
    """Random numbers of one layer in one training step."""

    def __init__(self, layer: int, keys_PR2: Tensor, row_keys: RowKeys, progress_R: Tensor, part: int) -> None:
        self._part = part
        self._layer = layer
        self._keys_PR2 = keys_PR2
        self._row_keys = row_keys
        self.progress_R = progress_R
        """Part of its budget that a lane has behind it, 0 to 1."""

    def row_keys(self, place: Place, rows: int) -> Tensor:
        """Keys of as many rows in each lane, int32 (R, N); a row's key is the same whatever N is."""
        return self._row_keys.of_all(place, rows)[self._layer]

    def keys_of(self, place: Place, lane_M: Tensor, row_M: Tensor) -> Tensor:
        """Keys of rows ``row_M`` (int32) of lanes ``lane_M``: what `row_keys` has there, in any order, int32 (M,)."""
        return self._row_keys.of_some(place, lane_M, row_M)[self._layer]

    def normal(self, place: Place, rows: int, columns: int) -> Tensor:
        """Standard normal float32 numbers (R, N, E); an entry is the same whatever the sizes are."""
        assert columns <= _NOISE_COLUMNS
        device = self._keys_PR2.device
        first = self._part * rows
        row_N1 = torch.arange(first, first + rows, dtype=torch.int32, device=device).unsqueeze(1) * _NOISE_COLUMNS
        index_NE = row_N1 + torch.arange(columns, dtype=torch.int32, device=device)
        return torch.erfinv(_unit(_hash32(index_NE, self._keys_PR2[place][:, None, None]))) * math.sqrt(2)

    def uniform(self, place: Place, rows: int, columns: int) -> Tensor:
        """float32 numbers (R, N, J), uniform between -1 and 1; an entry is the same whatever the sizes are."""
        keys_RN = self.row_keys(place, rows)
        return _unit(_scramble(keys_RN.unsqueeze(-1) ^ _column_keys(columns, keys_RN.device)))


class DropoutRates:
    """Dropout probabilities of R lanes, in steps of 2^-16 (255/256 at most), and the masks that they give.

    An entry is dropped where its 8 random bits are below 256 times the probability, rounded up or down by the row's
    key in the right proportion: the probability of each entry is exact, and the scale makes the expectation exact.
    """

    def __init__(self, rates: Sequence[float], device: torch.device) -> None:
        drops = [min(round(rate * 2**16), 255 * 2**8) for rate in rates]
        self.any = any(drops)
        self.scale_R = torch.tensor([2**16 / (2**16 - drop) for drop in drops], device=device)
        # So that (this + a number of -128 … 127) >> 8 is the first kept of the 256 values, counted from -128.
        self._thresholds_R = torch.tensor([drop + 2**7 - 2**15 for drop in drops], dtype=torch.int32, device=device)

    def apply(self, x_RNC: Tensor, randomness: LayerRandomness | None, place: Place) -> Tensor:
        """Dropout on rows of each lane; without randomness, or where no lane drops, ``x_RNC`` itself."""
        if randomness is None or not self.any:
            return x_RNC
        _, N, C = x_RNC.shape
        return x_RNC * self.mask(randomness.row_keys(place, N), C).mul_(self.scale_R[:, None, None])

    def mask(self, keys_RN: Tensor, columns: int) -> Tensor:
        """float32 (R, N, J), not scaled: 0 where dropped, 1 elsewhere."""
        return _keep(keys_RN, self._thresholds_R.unsqueeze(1), columns)

    def mask_of(self, keys_M: Tensor, lane_M: Tensor, columns: int) -> Tensor:
        """The same for rows that belong to these lanes, float32 (M, J)."""
        return _keep(keys_M, self._thresholds_R.index_select(0, lane_M), columns)


def _unit(hashes: Tensor) -> Tensor:
    """int32 as float32 between -1 and 1."""
    # float32 rounds the outermost integers to +-1, where the inverse of a distribution is infinite.
    limit = 1 - 2.0**-24
    return ((hashes.float() + 0.5) * 2.0**-31).clamp_(-limit, limit)


def _keep(keys: Tensor, thresholds: Tensor, columns: int) -> Tensor:
    """1 where an entry is kept, float32 (*keys.shape, J)."""
    bits = _row_bits(keys, columns)
    first_kept = ((keys >> 24).add_(thresholds) >> 8).to(torch.int8)
    kept = torch.empty(bits.shape, device=bits.device)
    # Into a float at once: several times faster on a CPU than a comparison to bool and a conversion.
    torch.ge(bits, first_kept.unsqueeze(-1), out=kept)
    return kept[..., :columns]


def _row_bits(keys: Tensor, columns: int) -> Tensor:
    """Uniform 8-bit integers (*keys.shape, at least J) for rows with these keys."""
    return _scramble(keys.unsqueeze(-1) ^ _column_keys((columns + 3) // 4, keys.device)).view(torch.int8)


@lru_cache(maxsize=256)
def _column_keys(words: int, device: torch.device) -> Tensor:
    """Fixed, well mixed words, one per four columns."""
    with torch.inference_mode(False):
        return _hash32(
            torch.arange(words, dtype=torch.int32, device=device), torch.zeros(2, dtype=torch.int32, device=device)
        )


def _hash32(index: Tensor, keys: Tensor) -> Tensor:
    """Hash int32 indices under keys (…, 2) int32: the first word enters before the scrambling, the second within."""
    return _scramble((index * _word(_GOLDEN_32)) ^ keys[..., 0], keys[..., 1])


def _scramble(x: Tensor, key: Tensor | None = None) -> Tensor:
    """The rounds of lowbias32 that follow a first one, on int32 in place; ``x`` must already be well spread."""
    for multiplier in _LOWBIAS:
        x *= _word(multiplier)
        # The mask makes the shift a logical one: it takes the copies of the sign away.
        x ^= (x >> _word(16)).bitwise_and_(_word(0xFFFF))
        if key is not None:
            x, key = x.add_(key), None
    return x


def _mix64(x: Tensor) -> Tensor:
    """Finalizer of splitmix64: a bijection on int64 in which every input bit reaches every output bit."""
    for shift, multiplier in _SPLITMIX:
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * _signed(multiplier, 64)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


@lru_cache(maxsize=16)
def _word(value: int) -> Tensor:
    """A 32-bit constant as a tensor: with a plain number, torch makes and converts one in each operation."""
    with torch.inference_mode(False):
        return torch.tensor(_signed(value, 32), dtype=torch.int32)


def _signed(value: int, bits: int) -> int:
    """The two's-complement reading of an unsigned constant: torch multiplies signed integers, wrapping around."""
    return value - (1 << bits) if value >> (bits - 1) else value
