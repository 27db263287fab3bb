"""Feed-forward layers that every token of a lane passes through: dense layers and shared experts.

Shapes:  R lanes   N tokens of a lane   G groups   C model width   F hidden width
         I outputs of the first map (activations.py)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moesearch.config.moe import Activation
from moesearch.config.shape import first_map_outputs
from moesearch.model.activations import activate
from moesearch.model.layers import full_precision, parameter_dtype
from moesearch.model.randomness import DropoutRates, LayerRandomness, Place


class FeedForwardWeights(nn.Module):
    """Abstract: weights of linear - activation - linear for G groups; stored input first, biases are (G, outputs)."""

    def __init__(
        self,
        num_groups: int,
        width: int,
        hidden: int,
        activation: Activation,
        dropout: DropoutRates,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.activation = activation
        self.dropout = dropout
        empty = torch.empty(0, device=device, dtype=parameter_dtype(dtype))
        inputs = first_map_outputs(activation, hidden)
        self.weight_in = nn.Parameter(empty.new_empty(num_groups, width, inputs))
        self.bias_in = nn.Parameter(empty.new_empty(num_groups, inputs))
        self.weight_out = nn.Parameter(empty.new_empty(num_groups, hidden, width))
        self.bias_out = nn.Parameter(empty.new_empty(num_groups, width))

    def parameters_in_dtype(self) -> list[Tensor]:
        """Weight and bias of the first map, then of the second, as the products take them."""
        return [p.to(self.dtype) for p in (self.weight_in, self.bias_in, self.weight_out, self.bias_out)]

    def dense(self, x_RNC: Tensor, randomness: LayerRandomness | None, place: Place) -> Tensor:
        """All tokens of lane r through group r, with dropout; (R, N, C) in full precision."""
        out_RNC = feed_forward(x_RNC.to(self.dtype), self.parameters_in_dtype(), self.activation)
        return self.dropout.apply(out_RNC, randomness, place)


class LaneFeedForward(FeedForwardWeights):
    """Linear - activation - linear - dropout of each lane."""

    def __init__(
        self,
        num_lanes: int,
        width: int,
        hidden: int,
        activation: Activation,
        dropout: DropoutRates,
        place: Place,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(num_lanes, width, hidden, activation, dropout, device=device, dtype=dtype)
        self.place = place

    def forward(self, x_RNC: Tensor, randomness: LayerRandomness | None) -> Tensor:
        """(R, N, C) in full precision."""
        return self.dense(x_RNC, randomness, self.place)


def feed_forward(x_RNC: Tensor, parameters: Sequence[Tensor], activation: Activation) -> Tensor:
    """Both maps of each lane over all of its tokens, without dropout; (R, N, C) in full precision."""
    weight_in_RCI, bias_in_RI, weight_out_RFC, bias_out_RC = parameters
    hidden_RNF = activate(activation, torch.baddbmm(bias_in_RI.unsqueeze(1), x_RNC, weight_in_RCI))
    return full_precision(torch.baddbmm(bias_out_RC.unsqueeze(1), hidden_RNF, weight_out_RFC))
