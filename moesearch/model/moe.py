"""The sparse mixture-of-experts layer: route, run the chosen experts, sum.

Shapes:  R lanes   N = B*T tokens   C model width   S slots: (lane, token, rank below the lane's K)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moesearch.config.trial import TrialConfig
from moesearch.model.experts import PackedExperts
from moesearch.model.lanes import LaneLayout
from moesearch.model.randomness import DropoutRates, LayerRandomness, Place, row_bits16
from moesearch.model.routers import Routing, TopKRouter


class MoELayer(nn.Module):
    """Each token goes to its lane's top-k experts; what a lane does not choose costs no arithmetic."""

    def __init__(
        self, configs: Sequence[TrialConfig], dropout: DropoutRates, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__()
        layout = LaneLayout.of(configs)
        width, hidden = configs[0].model.width, configs[0].expert_hidden_dim
        self.dropout = dropout
        self.router = TopKRouter(layout, width, [c.moe for c in configs], device=device, dtype=dtype)
        self.experts = PackedExperts(layout.num_groups, width, hidden, device=device, dtype=dtype)

    def forward(self, x_RNC: Tensor, randomness: LayerRandomness | None) -> tuple[Tensor, Routing]:
        routing: Routing = self.router(x_RNC, randomness)
        mask_SC = None
        if randomness is not None and self.dropout.any:
            slots = routing.slots
            keys_S = randomness.row_keys(Place.EXPERT_OUTPUT, slots.lane_S, slots.row_S)
            mask_SC = self.dropout.row_mask(row_bits16(keys_S, x_RNC.shape[-1]), slots.lane_S)
        return self.experts(x_RNC, routing, mask_SC), routing
