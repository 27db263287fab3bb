"""The random numbers of one training step, as a pure function of each lane's seed and step.

A number is a hash of (seed, step, place in the model, index within the lane): nothing is stored, so an exact resume
needs no generator state; nothing depends on a lane's place, on R or on its neighbours; and the same few integer
operations run on a CPU and inside a CUDA graph. Elements are hashed with 32-bit multiplications, which both have as
vector instructions, and each hash serves two elements as two 16-bit draws.

Shapes:  R lanes   P places   N tokens   S slots (token, rank)   E experts   M elements of a lane   J columns
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

# Weyl increments and multipliers: splitmix64 (Steele et al. 2014) for keys, lowbias32 (Wellons 2018) for elements.
_GOLDEN_64 = 0x9E3779B97F4A7C15
_GOLDEN_32 = 0x9E3779B1
_SPLITMIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LOWBIAS = ((16, 0x7FEB352D), (15, 0x846CA68B))
# A row of router noise has room for this many experts, so that a lane's numbers do not depend on its neighbours' E.
_NOISE_ROW = 512


class Place(IntEnum):
    """Where in a layer random numbers are drawn."""

    ATTENTION_WEIGHTS = 0
    ATTENTION_OUTPUT = 1
    EXPERT_OUTPUT = 2
    ROUTER_NOISE = 3


class StepRandomness:
    """Random numbers of one training step of R lanes; lane r's are decided by seeds_R[r] and steps_R[r]."""

    def __init__(self, seeds_R: Tensor, steps_R: Tensor) -> None:
        self._keys_R = _mix64(_mix64(seeds_R) + _signed(_GOLDEN_64, 64) * (steps_R + 1))

    def layers(self, num_layers: int) -> list[LayerRandomness]:
        """The randomness of each layer: all keys of a step in one go, since each is a handful of tiny operations."""
        places_P = torch.arange(num_layers * len(Place), device=self._keys_R.device)
        keys_PR = _mix64(self._keys_R + _signed(_GOLDEN_64, 64) * (places_P.unsqueeze(1) + 1))
        keys_PR2 = keys_PR.view(torch.int32).view(num_layers, len(Place), -1, 2)
        return [LayerRandomness(keys) for keys in keys_PR2.unbind()]


class LayerRandomness:
    """Random numbers of one layer in one training step."""

    def __init__(self, keys_PR2: Tensor) -> None:
        self._keys_PR2 = keys_PR2

    def bits16(self, place: Place, elements: int) -> Tensor:
        """Uniform 16-bit integers (R, M); element i of a lane is the same whatever M is."""
        index_M = torch.arange((elements + 1) // 2, dtype=torch.int32, device=self._keys_PR2.device)
        hash_RM = _hash32(index_M.mul_(_signed(_GOLDEN_32, 32)), self._keys_PR2[place].unsqueeze(1))
        return hash_RM.view(torch.int16)[:, :elements]

    def row_keys(self, place: Place, lane_S: Tensor, row_S: Tensor) -> Tensor:
        """A 32-bit key (S,) for row ``row_S`` of lane ``lane_S``, to be given to `row_bits16` in any order."""
        return _hash32(row_S * _signed(_GOLDEN_32, 32), self._keys_PR2[place].index_select(0, lane_S))

    def normal(self, place: Place, rows: int, columns: int) -> Tensor:
        """Standard normal float32 numbers (R, rows, columns); an entry is the same whatever the sizes are."""
        assert columns <= _NOISE_ROW
        device = self._keys_PR2.device
        row_N1 = torch.arange(rows, dtype=torch.int32, device=device).unsqueeze(1) * _NOISE_ROW
        index_NE = row_N1 + torch.arange(columns, dtype=torch.int32, device=device)
        hash_RNE = _hash32(index_NE.mul_(_signed(_GOLDEN_32, 32)), self._keys_PR2[place][:, None, None])
        uniform_RNE = (hash_RNE.float() + 0.5) * 2.0**-31
        # float32 rounds the outermost integers to +-1, where the inverse is infinite.
        limit = 1 - 2.0**-24
        return torch.erfinv(uniform_RNE.clamp_(-limit, limit)) * math.sqrt(2)


def row_bits16(row_keys_S: Tensor, columns: int) -> Tensor:
    """Uniform 16-bit integers (S, J) for rows with these keys."""
    index_J = torch.arange((columns + 1) // 2, dtype=torch.int32, device=row_keys_S.device)
    hash_SJ = index_J.mul_(_signed(_GOLDEN_32, 32)) ^ row_keys_S.unsqueeze(1)
    return _scramble32(hash_SJ).view(torch.int16)[:, :columns]


class DropoutRates:
    """Dropout probabilities of R lanes, in steps of 2^-16, and the mask that they give."""

    def __init__(self, rates: Sequence[float], device: torch.device) -> None:
        drops = [round(rate * 2**16) for rate in rates]
        self.any = any(drops)
        self._first_kept_R = torch.tensor([drop - 2**15 for drop in drops], dtype=torch.int32, device=device)
        # Scaled by the probability that the 16 bits really give: the expectation is exact.
        self._scale_R = torch.tensor([2**16 / (2**16 - drop) for drop in drops], device=device)

    def mask(self, bits_RM: Tensor) -> Tensor:
        """float32 (R, M): 0 where dropped, 1 / keep probability elsewhere."""
        kept_RM = bits_RM >= self._first_kept_R.unsqueeze(1)
        return kept_RM * self._scale_R.unsqueeze(1)

    def row_mask(self, bits_SJ: Tensor, lane_S: Tensor) -> Tensor:
        """The same for rows that belong to these lanes, float32 (S, J)."""
        kept_SJ = bits_SJ >= self._first_kept_R.index_select(0, lane_S).unsqueeze(1)
        return kept_SJ * self._scale_R.index_select(0, lane_S).unsqueeze(1)


def _signed(value: int, bits: int) -> int:
    """The two's-complement reading of an unsigned constant: torch multiplies signed integers, wrapping."""
    return value - (1 << bits) if value >> (bits - 1) else value


def _mix64(x: Tensor) -> Tensor:
    """Splitmix64's finalizer: int64 -> int64, a bijection in which every input bit reaches every output bit."""
    for shift, multiplier in _SPLITMIX:
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * _signed(multiplier, 64)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _hash32(index: Tensor, keys: Tensor) -> Tensor:
    """Hash int32 indices under keys (…, 2) int32: one word enters before the scrambling, one after it."""
    return _scramble32(_scramble32(index ^ keys[..., 0]) ^ keys[..., 1])


def _scramble32(x: Tensor) -> Tensor:
    """lowbias32 on int32, in place: shifts are made logical by masking the copies of the sign."""
    for shift, multiplier in _LOWBIAS:
        x ^= (x >> shift).bitwise_and_((1 << (32 - shift)) - 1)
        x *= _signed(multiplier, 32)
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    return x
