"""The sparse mixture-of-experts layer: route, run the chosen experts, sum. With one expert, a dense layer.

Shapes:  R lanes   N tokens of a lane, in sequences of ``context``   C model width
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moesearch.config.shape import expert_inner_dim, shared_inner_dim
from moesearch.config.trial import MoEConfig, TrialConfig
from moesearch.model.experts import ExpertBackend, PackedExperts
from moesearch.model.feed_forward import LaneFeedForward
from moesearch.model.lanes import LaneLayout
from moesearch.model.randomness import DropoutRates, LayerRandomness, Place
from moesearch.model.routers import Routing, TopKRouter

# How a lane of one expert routes beside lanes with more: nothing of its configuration is about routing.
_NO_CHOICE = MoEConfig(num_experts=1, top_k=1, noise=False)


class MoELayer(nn.Module):
    """Each token goes to its lane's top-k experts; an expert that a token does not choose costs it no arithmetic.

    Shared experts are for every token and have no gate (DeepSeekMoE 2024). Where each lane has one expert only there is
    no router. A lane of one expert beside others has no router parameters either: its logits are 0, so its gates are 1.
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
        first, layout = configs[0], LaneLayout.of(configs)
        lanes = [_NO_CHOICE if c.moe.is_dense else c.moe for c in configs]
        width, context = first.model.width, first.model.context
        self.router = None if layout.is_dense else TopKRouter(layout, width, lanes, context, device=device, dtype=dtype)
        self.experts = PackedExperts(
            layout.num_groups,
            width,
            expert_inner_dim(first),
            dropout,
            backend,
            first.moe.activation,
            device=device,
            dtype=dtype,
        )
        self.shared = None
        if first.moe.num_shared_experts:
            self.shared = LaneFeedForward(
                len(configs),
                width,
                shared_inner_dim(first),
                first.moe.activation,
                dropout,
                Place.SHARED_OUTPUT,
                device=device,
                dtype=dtype,
            )

    def forward(self, x_RNC: Tensor, context: int, randomness: LayerRandomness | None) -> tuple[Tensor, Routing | None]:
        routing: Routing | None = None if self.router is None else self.router(x_RNC, context, randomness)
        out_RNC: Tensor = self.experts(x_RNC, routing, randomness)
        if self.shared is not None:
            out_RNC = out_RNC + self.shared(x_RNC, randomness)
        return out_RNC, routing
