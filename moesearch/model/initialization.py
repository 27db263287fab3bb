"""Initial values of a lane: a pure function of its configuration and seed, whoever its neighbours are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import assert_never

import torch
from torch import Tensor

from moesearch.config.moe import Init, MoEConfig
from moesearch.config.trial import TrialConfig
from moesearch.model.parametrization import init_factor


def initialize_lane(tensors: Mapping[str, Tensor], config: TrialConfig) -> None:
    """Fill a lane's tensors (`MoETransformer.lane_tensors`) from a generator seeded with ``config.seed``.

    Every linear weight follows ``moe.init`` or its part's own, biases are uniform within +-fan_in^-0.5 as in torch,
    embeddings standard normal, norms the identity, balancing biases 0; routers are scaled by ``moe.router_init_gain``,
    maps to the residual stream by depth if asked, all by `parametrization` with ``optim.mup_base_width``. Numbers are
    drawn in float32 on the CPU: the same on every device.
    """
    generator = torch.Generator().manual_seed(config.seed)
    for name, tensor in tensors.items():
        tensor.copy_(_initial_values(name, tensors, config.moe, generator))
        if config.optim.mup_base_width is not None and (weight := _weight_of(name, tensors)) is not None:
            tensor *= init_factor(config, name, _fans(weight, tensors), _init_of(weight, config.moe))
        if ".router.logits." in name:
            tensor *= config.moe.router_init_gain
        if config.moe.init_depth_scaled and name.endswith(("attention.projection.weight", ".weight_out")):
            tensor *= (2 * config.model.num_layers) ** -0.5


def _weight_of(name: str, tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the weight of the linear map that a weight or bias belongs to; None for what is no linear map's."""
    owner, _, leaf = name.rpartition(".")
    weight = f"{owner}.{leaf.replace('bias', 'weight')}"
    return None if owner.endswith(("embedding", "norm")) or weight not in tensors else weight


def _initial_values(name: str, tensors: Mapping[str, Tensor], moe: MoEConfig, generator: torch.Generator) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    kind = owner.rpartition(".")[2]
    shape = tensors[name].shape
    if kind.endswith("embedding"):
        return torch.randn(shape, generator=generator)
    if kind == "balancing":
        return torch.zeros(shape)
    if kind.endswith("norm"):
        return torch.ones(shape) if leaf == "weight" else torch.zeros(shape)
    if leaf.startswith("bias"):
        fan_in, _ = _fans(f"{owner}.{leaf.replace('bias', 'weight')}", tensors)
        return torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
    fan_in, fan_out = _fans(name, tensors)
    return linear_weight(shape, fan_in, fan_out, _init_of(name, moe), moe, generator)


def _init_of(name: str, moe: MoEConfig) -> Init:
    """The scheme of a linear weight: that of its part of the model, or of all."""
    if ".router." in name:
        own = moe.init_router
    elif ".attention." in name:
        own = moe.init_attention
    else:
        own = None if name.startswith("head.") else moe.init_experts
    return own or moe.init


def _fans(name: str, tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """Inputs and outputs of the linear map (or of each of the stacked maps) that a weight holds."""
    owner, _, leaf = name.rpartition(".")
    if name not in tensors:  # the head's, which is the embedding's
        entries, width = tensors["token_embedding.weight"].shape
        return width, entries
    shape = tensors[name].shape
    if leaf == "weight_in":  # one map, or gates and values side by side, to as many numbers as the next map takes
        return shape[-2], tensors[f"{owner}.weight_out"].shape[-2]
    match owner.rpartition(".")[2]:
        case "qkv":  # three maps side by side
            return shape[0], shape[1] // 3
        case "logits" | "noise":  # a router's, stored output first
            return shape[1], shape[0]
        case _:
            return shape[-2], shape[-1]


def linear_weight(
    shape: torch.Size, fan_in: int, fan_out: int, init: Init, moe: MoEConfig, generator: torch.Generator
) -> Tensor:
    """Weights of linear maps: He et al. 2015 (gain sqrt 2, fan in), Glorot and Bengio 2010, or a given deviation."""
    weight = torch.empty(shape)
    kaiming_std = math.sqrt(2 / fan_in)
    xavier_std = math.sqrt(2 / (fan_in + fan_out))
    match init:
        case "kaiming_normal":
            return weight.normal_(0, kaiming_std, generator=generator)
        case "kaiming_uniform":
            return _uniform(weight, kaiming_std, generator)
        case "xavier_normal":
            return weight.normal_(0, xavier_std, generator=generator)
        case "xavier_uniform":
            return _uniform(weight, xavier_std, generator)
        case "normal":
            return weight.normal_(0, moe.init_std, generator=generator)
        case "truncated_normal":
            std = math.sqrt(moe.init_scale / fan_in)
            return torch.nn.init.trunc_normal_(weight, 0, std, -2 * std, 2 * std, generator=generator)
        case unknown:
            assert_never(unknown)


def _uniform(weight: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Uniform numbers of this standard deviation."""
    bound = math.sqrt(3) * std
    return weight.uniform_(-bound, bound, generator=generator)
