"""The dense model that a sparse one is weighed against."""

from __future__ import annotations

from moesearch.config.trial import FEED_FORWARD_FIELDS, MoEConfig, TrialConfig


def dense_control(config: TrialConfig) -> TrialConfig:
    """The same trial with each MoE layer replaced by one feed-forward layer of equal active FLOPs, and no router.

    It is as wide as the experts of one token together. Seeds, data, optimiser and budget stay; a router's fields go
    back to their defaults, since nothing reads them.
    """
    kept = {name: getattr(config.moe, name) for name in FEED_FORWARD_FIELDS}
    shape = {"num_experts": 1, "top_k": 1, "expert_hidden_dim": config.moe.top_k * config.expert_hidden_dim}
    return config.model_copy(update={"moe": MoEConfig.model_validate({**kept, **shape})})
