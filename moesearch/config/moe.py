"""The section ``moe`` of a trial: shape and initialisation of the experts, routing, balance, capacity."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from moesearch.config.section import LANE, WHOLE, Section

Activation = Literal["relu", "relu_squared", "gelu", "swiglu"]
Init = Literal["kaiming_normal", "kaiming_uniform", "xavier_normal", "xavier_uniform", "normal", "truncated_normal"]
Router = Literal["softmax_after", "softmax_before", "sigmoid", "expert_choice"]
DropPolicy = Literal["score", "position"]

FEED_FORWARD_FIELDS = (
    "num_experts",
    "top_k",
    "expert_hidden_dim",
    "num_shared_experts",
    "every",
    "activation",
    "init",
    "init_std",
    "init_scale",
    "init_depth_scaled",
    "init_experts",
    "init_attention",
)
"""Fields of ``moe`` that a dense layer reads; the others are a router's."""


class MoEConfig(Section):
    """The sparse mixture-of-experts layer: experts, router, balance."""

    num_experts: Annotated[int, Field(ge=1, le=512), WHOLE, LANE] = 8
    """Experts E in each layer; at equal ``top_k``, more of them cost memory, and FLOPs in the router alone. 1 is a
    dense feed-forward layer: no router, no router loss."""
    top_k: Annotated[int, Field(ge=1, le=512), WHOLE, LANE] = 2
    """Experts K that each token passes through (Shazeer et al. 2017). At most ``num_experts``."""
    expert_hidden_dim: Annotated[int, Field(ge=1, le=1_048_576), WHOLE] | None = None
    """Hidden width F of an expert; null is 4 * width. Finer experts have less (Krajewski et al. 2024)."""
    iso_flops: bool = False
    """Finer experts at equal active FLOPs: ``expert_hidden_dim`` is divided equally among the ``top_k`` experts of a
    token and the shared ones. So top_k * F stays as ``top_k``, the granularity (Krajewski et al. 2024), moves; and
    ``top_k`` is a shape knob."""
    num_shared_experts: Annotated[int, Field(ge=0, le=64), WHOLE] = 0
    """Experts that every token passes through, beside its ``top_k`` and without a gate (DeepSeekMoE 2024); computed as
    one layer of as many times their width. They add to the active FLOPs, unless ``iso_flops`` shares those out."""
    every: Annotated[int, Field(ge=1, le=1024), WHOLE] = 1
    """Experts in every n-th layer alone, the last of each n (Fedus et al. 2021: 2); the others have a dense layer as
    wide as a token's experts together (DeepSeek-V3 2024), so active FLOPs stay. Above 1, ``top_k`` is a shape knob."""
    activation: Activation = "relu"
    """Between the two maps of an expert: ``relu``, ``relu_squared`` (So et al. 2021), ``gelu`` (Hendrycks and Gimpel
    2016), or ``swiglu`` (Shazeer 2020), whose three maps are two thirds as wide, so that parameters and FLOPs are equal
    (to the nearest multiple of 8 from 80 on, to the nearest whole number below)."""
    init: Annotated[Init, LANE] = "kaiming_normal"
    """Initialisation of every linear weight: attention, router, experts, head. ``kaiming`` is of He et al. 2015 (fan
    in, gain sqrt 2), ``xavier`` of Glorot and Bengio 2010, ``normal`` of deviation ``init_std``; ``truncated_normal``
    has deviation sqrt(init_scale / fan in) before all beyond two of it is drawn again (Fedus et al. 2021, section
    2.4)."""
    init_std: Annotated[float, Field(gt=0, le=10), LANE] = 0.02
    """Standard deviation of init ``normal``; the other schemes do not read it."""
    init_scale: Annotated[float, Field(gt=0, le=100), LANE] = 0.1
    """Scale of init ``truncated_normal``: 1.0 was usual before Switch Transformers took 0.1 (Fedus et al. 2021)."""
    init_depth_scaled: Annotated[bool, LANE] = False
    """Whether weights that write to the residual stream (attention's projection, an expert's second map) start smaller
    by the root of 2 * num_layers, the number of such maps (GPT-2, Radford et al. 2019)."""
    init_router: Annotated[Init | None, LANE] = None
    """Initialisation of the router's weights; null follows ``init``."""
    init_experts: Annotated[Init | None, LANE] = None
    """Initialisation of the experts' weights, and of dense layers'; null follows ``init``."""
    init_attention: Annotated[Init | None, LANE] = None
    """Initialisation of attention's weights; null follows ``init``."""
    router: Annotated[Router, LANE] = "softmax_after"
    """How the K experts of a token and their gates follow from its router logits, always in float32. All but the last
    choose the K largest. ``softmax_after`` is a softmax over those K (Shazeer et al. 2017), ``softmax_before`` one over
    all experts (Fedus et al. 2021; OLMoE), ``sigmoid`` a sigmoid of each logit (DeepSeek-V3 2024). ``expert_choice``
    (Zhou et al. 2022), where experts choose tokens, is refused: it looks at later tokens."""
    route_norm: Annotated[bool, LANE] = True
    """Whether the gates of ``softmax_before`` and ``sigmoid`` are divided by their sum over the K chosen. With it
    ``softmax_before`` is ``softmax_after``, whose gates always sum to 1."""
    route_scale: Annotated[float, Field(gt=0, le=100), LANE] = 1.0
    """Factor on all gates, after ``route_norm`` (DeepSeek-V3: 2.5)."""
    router_init_gain: Annotated[float, Field(gt=0, le=100), LANE] = 1.0
    """Factor on the router's initial weights and biases, and so on its first logits. Switch Transformers draw all
    weights at a tenth of the usual scale (Fedus et al. 2021, table 3)."""
    noise: Annotated[bool, LANE] = True
    """Noisy top-k routing (Shazeer et al. 2017, eq. 4) in training, by a second linear map of the router; never in
    evaluation."""
    noise_std: Annotated[float, Field(ge=0, le=100), LANE] = 0.0
    """Standard deviation of normal noise on the router logits, not learned, in training only. Riquelme et al. 2021
    take 1 / ``num_experts``."""
    noise_decay_fraction: Annotated[Annotated[float, Field(gt=0, le=1)] | None, LANE] = 1.0
    """Part of the budget, 0 to 1, over which ``noise_std`` falls linearly to 0; null keeps it as it is."""
    input_jitter: Annotated[float, Field(ge=0, lt=1), LANE] = 0.0
    """Largest relative change of the router's input in training: each number of it is multiplied by a uniform one of
    1 - input_jitter to 1 + input_jitter (Fedus et al. 2021, section 2.4: 0.01). Experts see the input as it is."""
    load_balancing_loss_weight: Annotated[float, Field(ge=0, le=1000), LANE] = 0.0
    """Weight of the load-balancing loss in training (Fedus et al. 2021, eq. 4), a mean over layers. It is 1 at perfect
    balance for every E and K; 0.01 is usual."""
    router_z_loss_weight: Annotated[float, Field(ge=0, le=1000), LANE] = 0.0
    """Weight of the router z-loss in training (Zoph et al. 2022, eq. 5), a mean over layers; 0.001 is usual."""
    bias_update_speed: Annotated[float, Field(ge=0, le=1), LANE] = 0.0
    """Balance without a loss (Wang et al. 2024, algorithm 1; DeepSeek-V3: 0.001): each expert has a bias that is added
    to its score (the probability, or the sigmoid) when experts are chosen, never to a gate. After each step it moves by
    this much, up where the expert got less than the mean load, down where more. 0 is off."""
    capacity_factor: Annotated[Annotated[float, Field(gt=0, le=1000)] | None, LANE] = None
    """Places of an expert in each sequence, as a multiple of its fair share context * top_k / num_experts, rounded up
    (Fedus et al. 2021, eq. 3, per batch there). A token that finds its expert full passes by it on the residual stream.
    null is dropless (Gale et al. 2022): every token reaches its experts."""
    eval_capacity_factor: Annotated[Literal["train"] | Annotated[float, Field(gt=0, le=1000)] | None, LANE] = "train"
    """The same in evaluation and generation; ``train`` is that of training, null is dropless. Zoph et al. 2022 train
    with 1.25 and evaluate with 2."""
    drop_policy: Annotated[DropPolicy, LANE] = "position"
    """Who gets an expert's places: ``position`` the first tokens of the sequence that ask for it; ``score`` those of
    them whose score is, at their position, among the best that the places so far would hold. No decision looks at a
    later token or at another sequence; see docs/decisions/0011-causal-capacity.md."""

    @property
    def num_active_experts(self) -> int:
        """Experts that a token passes through: those it chooses, and the shared ones."""
        return self.top_k + self.num_shared_experts

    @property
    def is_dense(self) -> bool:
        """Whether there is nothing to choose: one expert, which every token passes through."""
        return self.num_experts == 1

    @property
    def capacity_factors(self) -> tuple[float | None, float | None]:
        """The factors of training and of evaluation; None is dropless."""
        in_evaluation = self.capacity_factor if self.eval_capacity_factor == "train" else self.eval_capacity_factor
        return self.capacity_factor, in_evaluation

    def unread_fields(self) -> frozenset[str]:
        """Fields that the others of the section leave without an effect."""
        unread = {"iso_flops"}  # It is known by the width that it gives.
        parts = (
            ("init_experts", "init_attention") if self.is_dense else ("init_router", "init_experts", "init_attention")
        )
        own_inits = {name: getattr(self, name) for name in parts}
        unread |= {name for name, init in own_inits.items() if init == self.init}
        inits = {self.init, *own_inits.values()}
        if "normal" not in inits:
            unread.add("init_std")
        if "truncated_normal" not in inits:
            unread.add("init_scale")
        if self.is_dense and not self.num_shared_experts:
            unread.add("every")
        if self.router == "softmax_before" and self.route_norm:
            unread.add("router")  # By another name, since a softmax over some is that over all, divided by their sum.
        if self.router == "softmax_after":
            unread.add("route_norm")
        if self.noise_std == 0:
            unread.add("noise_decay_fraction")
        in_training, in_evaluation = self.capacity_factors
        if in_training == in_evaluation:
            unread.add("eval_capacity_factor")
        if in_training is None and in_evaluation is None:
            unread.add("drop_policy")
        return frozenset(unread)

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        if self.top_k > self.num_experts:
            yield "", f"top_k ({self.top_k}) must be at most num_experts ({self.num_experts})"
        if self.router == "expert_choice":
            yield (
                "",
                "router (expert_choice) lets an expert compare a token with later ones, so its loss is no causal "
                "language model's; choose softmax_after, softmax_before or sigmoid, and balance the load with "
                "bias_update_speed or load_balancing_loss_weight",
            )
