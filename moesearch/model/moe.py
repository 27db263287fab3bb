"""The sparse mixture-of-experts layer: route, run the chosen experts, sum.

Shapes:  R lanes   N tokens of a lane   C model width
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moesearch.config.trial import TrialConfig
from moesearch.model.experts import ExpertBackend, PackedExperts
from moesearch.model.lanes import LaneLayout
from moesearch.model.randomness import DropoutRates, LayerRandomness
from moesearch.model.routers import Routing, TopKRouter


class MoELayer(nn.Module):
    """Each token goes to its lane's top-k experts; an expert that a token does not choose costs it no arithmetic."""

    def __init__(
        self,
        configs: Sequence[TrialConfig],
        dropout: DropoutRates,
        backend: ExpertBackend,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        layout, width, hidden = LaneLayout.of(configs), configs[0].model.width, configs[0].expert_hidden_dim
        self.router = TopKRouter(layout, width, [c.moe.noise for c in configs], device=device, dtype=dtype)
        self.experts = PackedExperts(layout.num_groups, width, hidden, dropout, backend, device=device, dtype=dtype)

    def forward(self, x_RNC: Tensor, randomness: LayerRandomness | None) -> tuple[Tensor, Routing]:
        routing: Routing = self.router(x_RNC, randomness)
        return self.experts(x_RNC, routing, randomness), routing
