"""Causal multi-head self-attention of R lanes.

Shapes:  R lanes   B batch   T context   N = B*T tokens   C model width   H heads   D = C/H head width
         M = R*B*H heads of sequences
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moesearch.config.trial import ModelConfig
from moesearch.model.layers import LaneLinear, LaneRMSNorm, full_precision, parameter_dtype
from moesearch.model.randomness import DropoutRates, LayerRandomness, Place


def score_scale(model: ModelConfig) -> float:
    """Factor on the attention scores: by head width (Vaswani et al. 2017), by model width (makeMoE), or as given."""
    match model.attention_scale:
        case "head":
            return float(model.head_width**-0.5)
        case "width":
            return float(model.width**-0.5)
        case scale:
            return scale


class CausalSelfAttention(nn.Module):
    """Queries, keys and values without bias in one product; dropout on the weights and after the projection.

    Queries and keys may be normed per head and rotated by their position.
    """

    def __init__(
        self, num_lanes: int, model: ModelConfig, dropout: DropoutRates, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.num_heads = model.num_heads
        self.scale = score_scale(model)
        self.dropout = dropout
        self.qkv = LaneLinear(num_lanes, model.width, 3 * model.width, bias=False, device=device, dtype=dtype)
        self.projection = LaneLinear(num_lanes, model.width, model.width, bias=True, device=device, dtype=dtype)
        self.query_norm = self.key_norm = None
        if model.qk_norm:
            self.query_norm = LaneRMSNorm(num_lanes, model.head_width, device=device, dtype=dtype)
            self.key_norm = LaneRMSNorm(num_lanes, model.head_width, device=device, dtype=dtype)
        self.rotation = None
        if model.positions == "rotary":
            self.rotation = Rotation(model.context, model.head_width, device=device, dtype=parameter_dtype(dtype))

    def forward(self, x_RNC: Tensor, context: int, randomness: LayerRandomness | None) -> Tensor:
        R, N, C = x_RNC.shape
        B, T, H = N // context, context, self.num_heads
        qkv_RBT3HD: Tensor = self.qkv(x_RNC).view(R * B, T, 3, H, C // H)
        qkv_3RBHTD = qkv_RBT3HD.permute(2, 0, 3, 1, 4)
        if self.query_norm is not None or self.rotation is not None:
            qkv_3RBHTD = self._prepared(qkv_3RBHTD, R)
        if randomness is None or not self.dropout.any:
            q_RBHTD, k_RBHTD, v_RBHTD = qkv_3RBHTD.unbind()
            out_RBHTD = F.scaled_dot_product_attention(q_RBHTD, k_RBHTD, v_RBHTD, is_causal=True, scale=self.scale)
        else:
            keys_RM = randomness.row_keys(Place.ATTENTION_WEIGHTS, B * H)
            mask_RMTT = self.dropout.mask(keys_RM, T * T).mul_(self.dropout.scale_R[:, None, None])
            qkv_3MTD = qkv_3RBHTD.reshape(3, R * B * H, T, C // H)
            out_MTD = attention_with_dropout(qkv_3MTD, mask_RMTT.view(R * B * H, T, T), self.scale)
            out_RBHTD = out_MTD.view(R * B, H, T, C // H)
        out_RNC: Tensor = self.projection(out_RBHTD.transpose(1, 2).reshape(R, N, C))
        return self.dropout.apply(out_RNC, randomness, Place.ATTENTION_OUTPUT)

    def _prepared(self, qkv_3RBHTD: Tensor, num_lanes: int) -> Tensor:
        """Queries and keys normed and rotated, in full precision; the values as they are."""
        q_RBHTD, k_RBHTD, v_RBHTD = qkv_3RBHTD.unbind()
        qk = []
        for x_RBHTD, norm in ((q_RBHTD, self.query_norm), (k_RBHTD, self.key_norm)):
            if norm is not None:
                flat_RND = full_precision(x_RBHTD).reshape(num_lanes, -1, x_RBHTD.shape[-1])
                x_RBHTD = norm(flat_RND).view(x_RBHTD.shape)
            if self.rotation is not None:
                x_RBHTD = self.rotation(full_precision(x_RBHTD))
            qk.append(x_RBHTD.to(v_RBHTD.dtype))
        return torch.stack([*qk, v_RBHTD])


class Rotation(nn.Module):
    """Rotary positions (Su et al. 2021): the pair (i, i + D/2) of a head turns by position * 10000^(-2i/D).

    The product of a query and a key then depends on how far apart they are, and not on where they stand.
    """

    def __init__(self, context: int, head_width: int, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        half = head_width // 2
        speed = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        angle_TD2 = torch.arange(context, dtype=torch.float64).unsqueeze(1) * speed
        self.register_buffer("cos_TD2", angle_TD2.cos().to(device, dtype), persistent=False)
        self.register_buffer("sin_TD2", angle_TD2.sin().to(device, dtype), persistent=False)
        self.cos_TD2: Tensor
        self.sin_TD2: Tensor

    def forward(self, x_RBHTD: Tensor) -> Tensor:
        T = x_RBHTD.shape[-2]
        cos_TD2, sin_TD2 = self.cos_TD2[:T], self.sin_TD2[:T]
        first, second = x_RBHTD.chunk(2, -1)
        return torch.cat([first * cos_TD2 - second * sin_TD2, second * cos_TD2 + first * sin_TD2], -1)


def attention_with_dropout(qkv_3MTD: Tensor, mask_MTT: Tensor, scale: float) -> Tensor:
    """Causal attention of M heads written out, its weights multiplied by a dropout mask of our own: (M, T, D)."""
    q_MTD, k_MTD, v_MTD = qkv_3MTD.unbind()
    T = q_MTD.shape[1]
    future_TT = torch.full((T, T), float("-inf"), dtype=q_MTD.dtype, device=q_MTD.device).triu_(1)
    scores_MTT = full_precision(torch.baddbmm(future_TT, q_MTD, k_MTD.mT, alpha=scale))
    weights_MTT = torch.softmax(scores_MTT, -1) * mask_MTT
    return torch.bmm(weights_MTT.to(v_MTD.dtype), v_MTD)
