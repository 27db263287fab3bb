"""Expert feed-forward networks over packed weights.

Shapes:  R lanes   N = B*T tokens   C model width   F expert hidden width   G = sum of E over lanes
         S slots: (lane, token, rank below the lane's K)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moesearch.model.layers import parameter_dtype
from moesearch.model.routers import Routing


class PackedExperts(nn.Module):
    """The experts of all lanes, Linear - ReLU - Linear each, packed along one axis of groups; a lane's are neighbours.

    Weights are stored input first, biases are (G, outputs).
    """

    def __init__(self, num_groups: int, width: int, hidden: int, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        empty = torch.empty(0, device=device, dtype=parameter_dtype(dtype))
        self.weight_in = nn.Parameter(empty.new_empty(num_groups, width, hidden))
        self.bias_in = nn.Parameter(empty.new_empty(num_groups, hidden))
        self.weight_out = nn.Parameter(empty.new_empty(num_groups, hidden, width))
        self.bias_out = nn.Parameter(empty.new_empty(num_groups, width))

    def forward(self, x_RNC: Tensor, routing: Routing, mask_SC: Tensor | None) -> Tensor:
        """Sum over each token's experts, weighted by the gates; ``mask_SC`` is dropout, in the order of the slots."""
        order_S = routing.order_S
        token_S = routing.slots.token_S.index_select(0, order_S)
        rows_SC = x_RNC.flatten(0, 1).index_select(0, token_S)
        ends = routing.ends_G.tolist()
        starts = [0, *ends[:-1]]
        out_SC = torch.cat(
            [
                F.relu(rows_SC[a:b] @ self.weight_in[g] + self.bias_in[g]) @ self.weight_out[g] + self.bias_out[g]
                for g, (a, b) in enumerate(zip(starts, ends, strict=True))
            ]
        )
        if mask_SC is not None:
            out_SC = out_SC * mask_SC.index_select(0, order_S)
        out_SC = out_SC * routing.gates_S.index_select(0, order_S).unsqueeze(1)
        zeros_NC = torch.zeros_like(x_RNC).flatten(0, 1)
        return zeros_NC.index_add(0, token_S, out_SC).view_as(x_RNC)
