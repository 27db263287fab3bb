"""Expert feed-forward networks of all lanes over packed weights.

Shapes:  R lanes   N tokens of a lane   C model width   F expert hidden width   G = sum of E over lanes
         S slots: (lane, token, rank below the lane's K)   P rows of a product: the slots in its order, and padding
         I outputs of the first map (activations.py)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moesearch.config.moe import Activation
from moesearch.model.activations import activate, activate_rows, activation_gradient
from moesearch.model.feed_forward import FeedForwardWeights
from moesearch.model.layers import full_precision
from moesearch.model.products import RowBackend, RowProduct, lay_out, sum_bags
from moesearch.model.randomness import DropoutRates, LayerRandomness, Place
from moesearch.model.routers import Routing

ExpertBackend = Literal["loop"] | RowBackend


class PackedExperts(FeedForwardWeights):
    """The experts of all lanes, linear - activation - linear - dropout, along one axis of groups.

    A lane's groups are neighbours.
    """

    def __init__(
        self,
        num_groups: int,
        width: int,
        hidden: int,
        dropout: DropoutRates,
        backend: ExpertBackend,
        activation: Activation = "relu",
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(num_groups, width, hidden, activation, dropout, device=device, dtype=dtype)
        self.backend = backend

    def forward(self, x_RNC: Tensor, routing: Routing | None, randomness: LayerRandomness | None) -> Tensor:
        """Sum over each token's experts, weighted by the gates; (R, N, C) in full precision.

        Without a routing each lane has one group, which all of its tokens pass through.
        """
        if routing is None:
            return self.dense(x_RNC, randomness, Place.EXPERT_OUTPUT)
        parameters = self.parameters_in_dtype()
        x_NC = x_RNC.flatten(0, 1).to(self.dtype)
        gates_S = routing.gates_S()
        keys_S = None
        if randomness is not None and self.dropout.any:
            slots = routing.slots
            keys_S = randomness.keys_of(Place.EXPERT_OUTPUT, slots.lane_S, slots.row_S)
            # A gate carries its lane's dropout scale: one number per slot instead of one per entry.
            gates_S = gates_S * self.dropout.scale_R.index_select(0, slots.lane_S)
        if self.backend == "loop":
            mask_SC = self._mask(routing, keys_S, torch.arange(len(gates_S), device=gates_S.device))
            return expert_loop(x_NC, gates_S, parameters, self.activation, mask_SC, routing).view(x_RNC.shape)
        product = lay_out(self.backend, routing)
        mask_PC = self._mask(routing, keys_S, product.slot_P)
        # torch declares no types for `apply`.
        y_NC: Tensor = _ExpertRows.apply(x_NC, gates_S, *parameters, self.activation, mask_PC, product, routing)  # type: ignore[no-untyped-call]
        return y_NC.view(x_RNC.shape)

    def _mask(self, routing: Routing, keys_S: Tensor | None, slot_P: Tensor) -> Tensor | None:
        """Dropout mask of rows that hold these slots, unscaled; None without dropout."""
        if keys_S is None:
            return None
        lane_P = routing.slots.lane_S.index_select(0, slot_P)
        return self.dropout.mask_of(keys_S.index_select(0, slot_P), lane_P, self.weight_in.shape[1])


def expert_loop(
    x_NC: Tensor,
    gates_S: Tensor,
    parameters: Sequence[Tensor],
    activation: Activation,
    mask_SC: Tensor | None,
    routing: Routing,
) -> Tensor:
    """One expert after the other on its own tokens, as the article does it: the oracle of all other backends."""
    weight_in_GCI, bias_in_GI, weight_out_GFC, bias_out_GC = parameters
    y_NC = torch.zeros_like(x_NC, dtype=gates_S.dtype)
    starts = [0, *routing.ends_G.tolist()]
    for group, (start, end) in enumerate(pairwise(starts)):
        slots = routing.order_S[start:end]
        tokens = routing.slots.token_S[slots]
        hidden = activate(activation, x_NC[tokens] @ weight_in_GCI[group] + bias_in_GI[group])
        out = full_precision(hidden @ weight_out_GFC[group] + bias_out_GC[group])
        if mask_SC is not None:
            out = out * mask_SC[slots]
        y_NC = y_NC.index_add(0, tokens, out * gates_S[slots].unsqueeze(1))
    return y_NC


class _ExpertRows(torch.autograd.Function):
    """All experts at once over the rows of a `RowProduct`, with a backward pass by the same products.

    Written out because autograd would scatter bias gradients row by row and keep arrays that this does not need.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_NC: Tensor,
        gates_S: Tensor,
        weight_in_GCI: Tensor,
        bias_in_GI: Tensor,
        weight_out_GFC: Tensor,
        bias_out_GC: Tensor,
        activation: Activation,
        mask_PC: Tensor | None,
        product: RowProduct,
        routing: Routing,
    ) -> Tensor:
        token_P = routing.slots.token_S.index_select(0, product.slot_P)
        x_PC = x_NC.index_select(0, token_P)
        hidden_PF, kept_PI = activate_rows(activation, product.forward(x_PC, weight_in_GCI, bias_in_GI))
        out_PC = full_precision(product.forward(hidden_PF, weight_out_GFC, bias_out_GC))
        if mask_PC is not None:
            out_PC *= mask_PC
        ctx.save_for_backward(
            x_PC, kept_PI, hidden_PF, out_PC, mask_PC, gates_S, weight_in_GCI, weight_out_GFC, token_P
        )
        ctx.activation, ctx.product, ctx.routing = activation, product, routing
        return sum_bags(out_PC, product.row_S, routing.slots.bag_starts, gates_S)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NC: Tensor) -> tuple[Tensor | None, ...]:
        x_PC, kept_PI, hidden_PF, out_PC, mask_PC, gates_S, weight_in_GCI, weight_out_GFC, token_P = ctx.saved_tensors
        product: RowProduct = ctx.product
        grad_PC = grad_NC.index_select(0, token_P)
        grad_gates_S = torch.linalg.vecdot(grad_PC, out_PC).index_select(0, product.row_S)
        gates_P1 = gates_S.index_select(0, product.slot_P).unsqueeze(1)
        grad_PC *= gates_P1 if product.is_real_P1 is None else gates_P1 * product.is_real_P1
        if mask_PC is not None:
            grad_PC *= mask_PC
        grad_PC = grad_PC.to(x_PC.dtype)
        grad_weight_out, grad_bias_out = product.backward_weights(hidden_PF, grad_PC)
        grad_PF = product.backward_input(grad_PC, weight_out_GFC)
        grad_PI = activation_gradient(ctx.activation, grad_PF, kept_PI)
        grad_weight_in, grad_bias_in = product.backward_weights(x_PC, grad_PI)
        grad_x_PC = product.backward_input(grad_PI, weight_in_GCI)
        routing: Routing = ctx.routing
        is_kept_S = None if routing.kept_S is None else routing.kept_S.to(grad_x_PC.dtype)
        grad_x_NC = sum_bags(grad_x_PC, product.row_S, routing.slots.bag_starts, is_kept_S)
        grads = (grad_x_NC, grad_gates_S, grad_weight_in, grad_bias_in, grad_weight_out, grad_bias_out)
        return *grads, None, None, None, None
