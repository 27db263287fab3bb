"""Maximal-update parametrisation: what learning rate and initial scale become as the width grows.

With ``optim.mup_base_width`` a trial of any width trains as one of that width does, as far as the theory goes: every
activation, and its change in a step, keeps its size. Yang et al. 2022 ("Tensor Programs V", table 3) give the rules for
Adam; Małaśnicki et al. 2025 (arXiv 2508.09752) and Jiang et al. 2026 (arXiv 2601.20205) carry them to mixtures of
experts: experts are hidden weights, the router is an output weight. With m = width / base width:

    role                           learning rate   initial deviation
    hidden: attention, experts     1 / m           that at base width / sqrt(m)
    output: router, head           1 / m           that at base width / m
    input: embeddings; norms       1               1
    biases                         1               that at base width

Heads must keep their width, experts their width relative to the model's, and top_k / num_experts its value. Decay is
applied as a part of the weights per step that does not depend on m (Wortsman et al. 2024), so it is multiplied by m
where the learning rate is divided by it. Muon's updates have a spectral norm that grows with the width as sqrt(m), not
as m, so its rate goes as 1 / sqrt(m) (Yang et al. 2023, "A spectral condition for feature learning").
"""

from __future__ import annotations

import math
from typing import Literal, assert_never

from torch import Tensor

from moesearch.config.moe import Init
from moesearch.config.trial import TrialConfig

Role = Literal["input", "hidden", "output", "norm", "bias"]


def role(name: str) -> Role:
    """What a parameter of a lane (`MoETransformer.lane_parameters`) is to the rules."""
    owner, _, leaf = name.rpartition(".")
    kind = owner.rpartition(".")[2]
    if kind.endswith("embedding"):
        return "input"
    if kind.endswith("norm"):
        return "norm"
    if leaf.startswith("bias"):
        return "bias"
    return "output" if kind in ("head", "logits", "noise") else "hidden"


def width_multiple(config: TrialConfig) -> float:
    """m: the width over the base width; 1 where no rules are asked for."""
    base = config.optim.mup_base_width
    return 1.0 if base is None else config.model.width / base


def lr_factor(config: TrialConfig, name: str, tensor: Tensor) -> float:
    """What a parameter's learning rate is multiplied by."""
    match role(name):
        case "input" | "norm" | "bias":
            return 1.0
        case "hidden" if tensor.ndim == 3 and config.optim.expert_optimizer == "muon":
            return 1 / math.sqrt(width_multiple(config))
        case "hidden" | "output":
            return 1 / width_multiple(config)
        case unknown:
            assert_never(unknown)


def init_factor(config: TrialConfig, name: str, fans: tuple[int, int], init: Init) -> float:
    """What a parameter's initial values are multiplied by.

    ``fans`` are inputs and outputs of its linear map, ``init`` is the scheme by which it was drawn.
    """
    m = width_multiple(config)
    match role(name):
        case "input" | "norm":
            return 1.0
        case "bias":
            return math.sqrt(m)
        case "hidden":
            return _growth(init, fans, (fans[0] / m, fans[1] / m)) / math.sqrt(m)
        case "output":
            return _growth(init, fans, (fans[0] / m, fans[1])) / m
        case unknown:
            assert_never(unknown)


def _growth(init: Init, fans: tuple[float, float], base_fans: tuple[float, float]) -> float:
    """The deviation that an init scheme gives at base width, over the one that it gives at this width."""
    match init:
        case "normal":
            return 1.0
        case "xavier_normal" | "xavier_uniform":
            return math.sqrt(sum(fans) / sum(base_fans))
        case "kaiming_normal" | "kaiming_uniform" | "truncated_normal":
            return math.sqrt(fans[0] / base_fans[0])
        case unknown:
            assert_never(unknown)
