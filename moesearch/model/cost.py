"""What a trial costs, from its configuration alone: parameters, FLOPs, steps.

FLOPs count matrix products, two per multiply-add, as torch's FlopCounterMode does; norms, softmax and embedding
lookups are left out. The attention product is counted in full, as the kernels compute or count it, not as its causal
half.
"""

from __future__ import annotations

import math

from moesearch.config.shape import (
    dense_inner_dim,
    expert_inner_dim,
    first_map_outputs,
    num_expert_layers,
    shared_inner_dim,
)
from moesearch.config.trial import TrialConfig


def total_params(config: TrialConfig, vocab_size: int) -> int:
    """All trained numbers of a trial."""
    return _params(config, vocab_size, config.moe.num_experts)


def active_params(config: TrialConfig, vocab_size: int) -> int:
    """Those that one token passes through: of the experts, top_k and the shared ones."""
    return _params(config, vocab_size, config.moe.top_k)


def expert_params(config: TrialConfig) -> int:
    """One expert: two linear maps with biases, or three in two for swiglu."""
    return _feed_forward_params(config, expert_inner_dim(config))


def _params(config: TrialConfig, vocab_size: int, experts: int) -> int:
    """Parameters of a model, so many experts counted in each layer that has any."""
    width, model = config.model.width, config.model
    norm = 2 * width if model.norm == "layer_norm" else width
    attention = 3 * width * width + width * width + width + (2 * model.head_width if model.qk_norm else 0)
    embeddings = (vocab_size + (model.context if model.positions == "learned" else 0)) * width
    head = vocab_size if model.tied_head else (width + 1) * vocab_size
    with_experts = _router_params(config) + experts * expert_params(config)
    with_experts += _feed_forward_params(config, shared_inner_dim(config))
    num_routed = num_expert_layers(config)
    dense = (model.num_layers - num_routed) * _feed_forward_params(config, dense_inner_dim(config))
    layers = model.num_layers * (attention + 2 * norm) + num_routed * with_experts + dense
    return embeddings + layers + norm + head


def _feed_forward_params(config: TrialConfig, inner: int) -> int:
    """Both maps of a feed-forward layer with so many numbers between them; 0 for none."""
    width, first = config.model.width, first_map_outputs(config.moe.activation, inner)
    return (width + 1) * first + (inner + 1) * width if inner else 0


def _router_params(config: TrialConfig) -> int:
    """One layer's router, and the second one of noisy routing."""
    return _router_maps(config) * (config.model.width + 1) * config.moe.num_experts


def _router_maps(config: TrialConfig) -> int:
    """Linear maps to logits in one layer."""
    return 0 if config.moe.is_dense else 2 if config.moe.noise else 1


def router_flops_per_token(config: TrialConfig) -> int:
    """Forward FLOPs per token of all routers, the noise logits included."""
    return num_expert_layers(config) * _router_maps(config) * 2 * config.model.width * config.moe.num_experts


def flops_per_token(config: TrialConfig, vocab_size: int) -> int:
    """Forward FLOPs per token in training, at full context."""
    width, context = config.model.width, config.model.context
    projections = 2 * 4 * width * width
    attention = 2 * 2 * context * width
    # Layers without experts cost what the experts of a token do.
    inner = dense_inner_dim(config)
    feed_forward = 2 * width * (inner + first_map_outputs(config.moe.activation, inner))
    layers = config.model.num_layers * (projections + attention + feed_forward)
    return layers + router_flops_per_token(config) + 2 * width * vocab_size


def training_flops_per_token(config: TrialConfig, vocab_size: int) -> int:
    """Forward and backward: each product once forward, twice backward."""
    return 3 * flops_per_token(config, vocab_size)


def num_steps(config: TrialConfig, vocab_size: int) -> int | None:
    """Steps that the budget pays for, rounded up to whole steps, and at least one per milestone.

    None for a budget in seconds, which shows only in training how many steps it pays for.
    """
    budget = config.budget
    if budget.seconds is not None:
        return None
    if budget.steps is not None:
        return budget.steps
    if budget.tokens is not None:
        steps = math.ceil(budget.tokens / config.tokens_per_step)
    else:
        assert budget.active_flops is not None
        steps = math.ceil(budget.active_flops / (training_flops_per_token(config, vocab_size) * config.tokens_per_step))
    return max(steps, budget.milestones)
