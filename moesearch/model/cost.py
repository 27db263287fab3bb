"""What a trial costs, from its configuration alone: parameters, FLOPs, steps.

FLOPs count matrix products, two per multiply-add, as torch's FlopCounterMode does; norms, softmax and embedding
lookups are left out. The attention product is counted in full, as the kernels compute or count it, not as its causal
half.
"""

from __future__ import annotations

import math

from moesearch.config.trial import TrialConfig


def _router_params(config: TrialConfig) -> int:
    """One layer's router, and the second one of noisy routing."""
    return _router_maps(config) * (config.model.width + 1) * config.moe.num_experts


def _router_maps(config: TrialConfig) -> int:
    """Linear maps to logits in one layer."""
    return 0 if config.moe.is_dense else 2 if config.moe.noise else 1


def expert_params(config: TrialConfig) -> int:
    """One expert: two linear maps with biases."""
    width, hidden = config.model.width, config.expert_hidden_dim
    return width * hidden + hidden + hidden * width + width


def total_params(config: TrialConfig, vocab_size: int) -> int:
    """All trained numbers of a trial."""
    return _params(config, vocab_size, config.moe.num_experts)


def active_params(config: TrialConfig, vocab_size: int) -> int:
    """Those that one token passes through: of the experts, top_k."""
    return _params(config, vocab_size, config.moe.top_k)


def _params(config: TrialConfig, vocab_size: int, experts: int) -> int:
    """Parameters of a model, so many experts counted in each layer."""
    width, model = config.model.width, config.model
    norm = 2 * width
    attention = 3 * width * width + width * width + width
    layer = attention + 2 * norm + _router_params(config) + experts * expert_params(config)
    embeddings = (vocab_size + model.context) * width
    return embeddings + model.num_layers * layer + norm + (width + 1) * vocab_size


def router_flops_per_token(config: TrialConfig) -> int:
    """Forward FLOPs per token of all routers, the noise logits included."""
    return config.model.num_layers * _router_maps(config) * 2 * config.model.width * config.moe.num_experts


def flops_per_token(config: TrialConfig, vocab_size: int) -> int:
    """Forward FLOPs per token in training, at full context."""
    width, context = config.model.width, config.model.context
    projections = 2 * 4 * width * width
    attention = 2 * 2 * context * width
    experts = config.moe.top_k * 2 * 2 * width * config.expert_hidden_dim
    layers = config.model.num_layers * (projections + attention + experts)
    return layers + router_flops_per_token(config) + 2 * width * vocab_size


def training_flops_per_token(config: TrialConfig, vocab_size: int) -> int:
    """Forward and backward: each product once forward, twice backward."""
    return 3 * flops_per_token(config, vocab_size)


def num_steps(config: TrialConfig, vocab_size: int) -> int:
    """Steps that the budget pays for, rounded up to whole steps, and at least one per milestone."""
    budget = config.budget
    if budget.steps is not None:
        return budget.steps
    if budget.tokens is not None:
        steps = math.ceil(budget.tokens / config.tokens_per_step)
    else:
        assert budget.active_flops is not None
        steps = math.ceil(budget.active_flops / (training_flops_per_token(config, vocab_size) * config.tokens_per_step))
    return max(steps, budget.milestones)
