"""Layers of R lanes at once: every parameter has a leading lane axis, and no lane touches another's numbers.

Parameters are float32 (float64 in tests); ``dtype`` of a layer is that of its products, so bfloat16 casts on the way.

Shapes:  R lanes   N = B*T tokens   C model width   I inputs   O outputs   V entries of a table
"""

from __future__ import annotations

from typing import assert_never

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moesearch.config.trial import Norm

_NORM_EPS = 1e-5
"""Added to the mean square: what torch's layer norm adds to the variance."""


_NARROW = 16


def parameter_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type of the stored weights for products of a type: bfloat16 products keep float32 master weights."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def full_precision(x: Tensor) -> Tensor:
    """The same numbers as float32, or float64 where they are that already: for softmax, router and loss."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def softmax(x: Tensor) -> Tensor:
    """Softmax over the last dimension.

    Along rows of fewer entries than a vector register holds, torch's CPU kernel takes one entry at a time. Across rows
    it is four to eight times faster there, backward pass included (docs/benchmarks.md).
    """
    if x.device.type == "cpu" and x.shape[-1] < _NARROW:
        return torch.softmax(x.mT.contiguous(), -2).mT
    return torch.softmax(x, -1)


class LaneLinear(nn.Module):
    """One linear map per lane, x @ weight + bias; the weight is stored input first."""

    def __init__(
        self, num_lanes: int, inputs: int, outputs: int, *, bias: bool, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.dtype = dtype
        empty = torch.empty(0, device=device, dtype=parameter_dtype(dtype))
        self.weight = nn.Parameter(empty.new_empty(num_lanes, inputs, outputs))
        self.bias = nn.Parameter(empty.new_empty(num_lanes, outputs)) if bias else None

    def forward(self, x_RNI: Tensor) -> Tensor:
        weight_RIO = self.weight.to(self.dtype)
        if self.bias is None:
            return torch.bmm(x_RNI.to(self.dtype), weight_RIO)
        return torch.baddbmm(self.bias.to(self.dtype).unsqueeze(1), x_RNI.to(self.dtype), weight_RIO)


class LaneLayerNorm(nn.Module):
    """Layer norm with a weight and a bias per lane."""

    def __init__(self, num_lanes: int, width: int, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_lanes, width, device=device, dtype=parameter_dtype(dtype)))
        self.bias = nn.Parameter(torch.zeros(num_lanes, width, device=device, dtype=parameter_dtype(dtype)))

    def forward(self, x_RNC: Tensor) -> Tensor:
        width = x_RNC.shape[-1]
        if len(self.weight) == 1:
            return F.layer_norm(x_RNC, (width,), self.weight[0], self.bias[0])
        return torch.addcmul(self.bias.unsqueeze(1), F.layer_norm(x_RNC, (width,)), self.weight.unsqueeze(1))


class LaneRMSNorm(nn.Module):
    """RMS norm with a weight per lane (Zhang and Sennrich 2019)."""

    def __init__(self, num_lanes: int, width: int, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_lanes, width, device=device, dtype=parameter_dtype(dtype)))

    def forward(self, x_RNC: Tensor) -> Tensor:
        width = x_RNC.shape[-1]
        if len(self.weight) == 1:
            return F.rms_norm(x_RNC, (width,), self.weight[0], _NORM_EPS)
        return F.rms_norm(x_RNC, (width,), eps=_NORM_EPS) * self.weight.unsqueeze(1)


def lane_norm(
    kind: Norm, num_lanes: int, width: int, *, device: torch.device, dtype: torch.dtype
) -> LaneLayerNorm | LaneRMSNorm:
    """The norm that a configuration names."""
    match kind:
        case "layer_norm":
            return LaneLayerNorm(num_lanes, width, device=device, dtype=dtype)
        case "rms_norm":
            return LaneRMSNorm(num_lanes, width, device=device, dtype=dtype)
        case unknown:
            assert_never(unknown)


class TiedLaneHead(nn.Module):
    """Logits from the token embedding's own weights and a bias.

    They are divided by the root of the width, since embeddings start standard normal (Chowdhery et al. 2022).
    """

    def __init__(self, num_lanes: int, entries: int, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.bias = nn.Parameter(torch.empty(num_lanes, entries, device=device, dtype=parameter_dtype(dtype)))

    def forward(self, x_RNC: Tensor, embedding_RVC: Tensor) -> Tensor:
        x_RNC = (x_RNC * x_RNC.shape[-1] ** -0.5).to(self.dtype)
        return torch.baddbmm(self.bias.to(self.dtype).unsqueeze(1), x_RNC, embedding_RVC.to(self.dtype).mT)


class LaneEmbedding(nn.Module):
    """One table of V rows per lane."""

    def __init__(self, num_lanes: int, entries: int, width: int, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_lanes, entries, width, device=device, dtype=parameter_dtype(dtype)))
        first_rows = torch.arange(num_lanes, device=device).unsqueeze(1) * entries
        self.register_buffer("first_row_R1", first_rows, persistent=False)
        self.first_row_R1: Tensor

    def forward(self, index_RN: Tensor) -> Tensor:
        return F.embedding(index_RN + self.first_row_R1, self.weight.flatten(0, 1))
