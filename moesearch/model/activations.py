"""What stands between an expert's two linear maps, forward and backward.

The first map gives P rows of I numbers: I = F, save for swiglu, whose rows hold the F gates and then the F values.

Shapes:  P rows   F hidden width of an expert   I outputs of its first map
"""

from __future__ import annotations

from typing import assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

from moesearch.config.moe import Activation


def activate(activation: Activation, x_I: Tensor) -> Tensor:
    """Hidden numbers (…, F) from the first map's; differentiable by autograd."""
    match activation:
        case "relu":
            return torch.relu(x_I)
        case "relu_squared":
            return torch.relu(x_I).square()
        case "gelu":
            return F.gelu(x_I)
        case "swiglu":
            gates, values = x_I.chunk(2, -1)
            return F.silu(gates) * values
        case unknown:
            assert_never(unknown)


def activate_rows(activation: Activation, x_PI: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden numbers, and what the backward pass wants of ``x_PI``, which this may overwrite; no autograd.

    Both are one tensor for relu, which needs no more than its own output.
    """
    match activation:
        case "relu":
            return x_PI.clamp_min_(0), x_PI
        case "relu_squared":
            return x_PI.clamp_min_(0).square(), x_PI
        case "gelu" | "swiglu":
            return activate(activation, x_PI), x_PI
        case unknown:
            assert_never(unknown)


def activation_gradient(activation: Activation, grad_PF: Tensor, kept_PI: Tensor) -> Tensor:
    """Gradient of the first map's outputs (P, I) from that of the hidden numbers, which this may overwrite."""
    match activation:
        case "relu":
            torch.ops.aten.threshold_backward.grad_input(grad_PF, kept_PI, 0, grad_input=grad_PF)
            return grad_PF
        case "relu_squared":
            return grad_PF.mul_(kept_PI).mul_(2)
        case "gelu":
            grad_PI: Tensor = torch.ops.aten.gelu_backward(grad_PF, kept_PI)
            return grad_PI
        case "swiglu":
            gates_PF, values_PF = kept_PI.chunk(2, -1)
            grad_gates_PF = torch.ops.aten.silu_backward(grad_PF * values_PF, gates_PF)
            return torch.cat([grad_gates_PF, grad_PF * F.silu(gates_PF)], -1)
        case unknown:
            assert_never(unknown)
