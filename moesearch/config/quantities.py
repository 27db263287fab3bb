"""What is measured of the routers of a trial at each milestone, by the names that files, charts and tables use."""

from __future__ import annotations

from typing import Literal, get_args

RouterQuantity = Literal[
    "load_entropy",
    "max_vio",
    "dead_experts",
    "dropped_fraction",
    "router_entropy",
    "top1_probability",
    "router_logit_rms",
    "bias_range",
]
"""Each is one number over all MoE layers; ``training.points.RouterHealth`` says what it is, and how it is reduced."""

ROUTER_QUANTITIES: tuple[RouterQuantity, ...] = get_args(RouterQuantity)
