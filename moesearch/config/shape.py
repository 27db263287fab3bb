"""Sizes that follow from a trial's fields: widths of its feed-forward layers, and which of them route."""

from __future__ import annotations

from moesearch.config.moe import Activation
from moesearch.config.trial import TrialConfig


def inner_dim(hidden: int, activation: Activation) -> int:
    """Numbers between the maps of an expert of hidden width F.

    F itself, or two thirds of it for swiglu, whose first map is two (Shazeer 2020): then parameters are equal. From 80
    on a multiple of 8, which fast products want.
    """
    if activation != "swiglu":
        return hidden
    multiple = 8 if 2 * hidden >= 3 * 80 else 1
    return max(1, round(2 * hidden / (3 * multiple)) * multiple)


def first_map_outputs(activation: Activation, inner: int) -> int:
    """What the first map of an expert gives: those numbers, or for swiglu the gates and then the values."""
    return 2 * inner if activation == "swiglu" else inner


def expert_inner_dim(config: TrialConfig) -> int:
    """That of each expert."""
    return inner_dim(config.expert_hidden_dim, config.moe.activation)


def shared_inner_dim(config: TrialConfig) -> int:
    """That of the shared experts together; 0 without any."""
    return config.moe.num_shared_experts * expert_inner_dim(config)


def dense_inner_dim(config: TrialConfig) -> int:
    """That of a layer without experts, which costs what the experts of a token cost together."""
    return config.moe.num_active_experts * expert_inner_dim(config)


def has_experts(config: TrialConfig, layer: int) -> bool:
    """Whether a layer, counted from 0, has experts; else it is dense."""
    return (layer + 1) % config.moe.every == 0


def num_expert_layers(config: TrialConfig) -> int:
    """Layers that have experts."""
    return config.model.num_layers // config.moe.every
