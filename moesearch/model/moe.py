"""The sparse mixture-of-experts layer: route, run the chosen experts, sum. With one expert, a dense layer.

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
    """Each token goes to its lane's top-k experts; an expert that a token does not choose costs it no arithmetic.

    Where each lane has one expert only there is no router. A lane of one expert beside others has no router parameters
    either: its logits are 0, so its gates are 1.
    """

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
        noise = [c.moe.noise and not c.moe.is_dense for c in configs]
        self.router = None if layout.is_dense else TopKRouter(layout, width, noise, device=device, dtype=dtype)
        self.experts = PackedExperts(layout.num_groups, width, hidden, dropout, backend, device=device, dtype=dtype)

    def forward(self, x_RNC: Tensor, randomness: LayerRandomness | None) -> tuple[Tensor, Routing | None]:
        routing: Routing | None = None if self.router is None else self.router(x_RNC, randomness)
        return self.experts(x_RNC, routing, randomness), routing
