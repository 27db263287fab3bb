"""The dense model that a sparse one is weighed against."""

from __future__ import annotations

from moesearch.config.moe import FEED_FORWARD_FIELDS, MoEConfig
from moesearch.config.shape import dense_inner_dim
from moesearch.config.trial import TrialConfig


def dense_control(config: TrialConfig) -> TrialConfig:
    """The same trial with each MoE layer replaced by one feed-forward layer of equal active FLOPs, and no router.

    It is as wide as the experts of one token together, shared ones included (with swiglu, as nearly as its rounding
    allows). Seeds, data, optimiser and budget stay; a router's fields go back to their defaults, since nothing reads
    them.
    """
    kept = {name: getattr(config.moe, name) for name in FEED_FORWARD_FIELDS}
    inner = dense_inner_dim(config)
    shape = {
        "num_experts": 1,
        "top_k": 1,
        "expert_hidden_dim": round(3 * inner / 2) if config.moe.activation == "swiglu" else inner,
        "num_shared_experts": 0,
        "every": 1,
    }
    return config.model_copy(update={"moe": MoEConfig.model_validate({**kept, **shape})})
