"""The configuration of one trial: everything that decides what is trained, and nothing else.

Defaults are the makeMoE article's run, except for three that it would call quirks: attention is scaled by the
head's width, noise is off in evaluation, and the corpus needs no download.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from moesearch.config.section import LANE, WHOLE, Section

Init = Literal["kaiming_normal", "kaiming_uniform", "xavier_normal", "xavier_uniform", "normal"]
Schedule = Literal["constant", "cosine", "wsd"]
Router = Literal["softmax_after", "softmax_before", "sigmoid", "expert_choice"]
DropPolicy = Literal["score", "position"]
CorpusName = Literal["shakespeare", "tiny_shakespeare"]
TokenizerName = Literal["char", "byte", "bpe"]

# A later field is part of a fingerprint only where it is no default.
_FIRST_FIELDS: Mapping[str, frozenset[str]] = {
    "model": frozenset({"width", "num_layers", "num_heads", "context", "dropout", "attention_scale"}),
    "moe": frozenset(
        {
            "num_experts",
            "top_k",
            "expert_hidden_dim",
            "init",
            "init_std",
            "noise",
            "load_balancing_loss_weight",
            "router_z_loss_weight",
        }
    ),
    "optim": frozenset(
        {
            "lr",
            "weight_decay",
            "beta1",
            "beta2",
            "eps",
            "grad_clip",
            "schedule",
            "warmup_tokens",
            "final_lr_fraction",
            "decay_fraction",
        }
    ),
    "data": frozenset({"corpus", "text", "batch_size", "order_seed"}),
    "budget": frozenset({"steps", "tokens", "active_flops", "milestones"}),
}

BUDGET_UNITS = ("steps", "tokens", "active_flops")

SOMETIMES_UNREAD = frozenset({"data.vocab_size", "moe.init_std", "optim.decay_fraction", "optim.final_lr_fraction"})
"""Fields that some values of others leave unread, so that ``TrialConfig.fingerprint`` leaves them out."""

FEED_FORWARD_FIELDS = ("num_experts", "top_k", "expert_hidden_dim", "init", "init_std")
"""Fields of ``moe`` that a dense layer reads; the others are a router's."""


class ModelConfig(Section):
    """The transformer around the experts."""

    width: Annotated[int, Field(ge=1, le=65536), WHOLE] = 128
    """Width C of the residual stream: numbers per token between the blocks."""
    num_layers: Annotated[int, Field(ge=1, le=1024), WHOLE] = 8
    """Number of blocks, each of attention and experts (pre-norm: ``x + f(layer_norm(x))``)."""
    num_heads: Annotated[int, Field(ge=1, le=1024), WHOLE] = 8
    """Attention heads (Vaswani et al. 2017); they divide the width."""
    context: Annotated[int, Field(ge=1, le=1_048_576), WHOLE] = 32
    """Context length T in tokens; a token sees at most this many, itself included."""
    dropout: Annotated[float, Field(ge=0, lt=1), LANE] = 0.1
    """Dropout probability (Srivastava et al. 2014) on attention weights, after the attention projection and after each
    expert; in training only."""
    attention_scale: Literal["head", "width"] | Annotated[float, Field(gt=0, le=1000)] = "head"
    """Factor on the attention scores: ``head`` is head_width^-0.5, ``width`` is width^-0.5 (makeMoE), or a number."""

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        if self.width % self.num_heads:
            yield "", f"num_heads ({self.num_heads}) must divide width ({self.width})"


class MoEConfig(Section):
    """The sparse mixture-of-experts layer: experts, router, balance."""

    num_experts: Annotated[int, Field(ge=1, le=512), WHOLE, LANE] = 8
    """Experts E in each layer; at equal ``top_k``, more of them cost memory, and FLOPs in the router alone. 1 is a
    dense feed-forward layer: no router, no router loss."""
    top_k: Annotated[int, Field(ge=1, le=512), WHOLE, LANE] = 2
    """Experts K that each token passes through (Shazeer et al. 2017). At most ``num_experts``."""
    expert_hidden_dim: Annotated[int, Field(ge=1, le=1_048_576), WHOLE] | None = None
    """Hidden width F of an expert; null is 4 * width. Finer experts have less (Krajewski et al. 2024)."""
    init: Annotated[Init, LANE] = "kaiming_normal"
    """Initialisation of every linear weight: attention, router, experts, head. ``kaiming`` is of He et al. 2015 (fan
    in, gain sqrt 2), ``xavier`` of Glorot and Bengio 2010, ``normal`` of deviation ``init_std``."""
    init_std: Annotated[float, Field(gt=0, le=10), LANE] = 0.02
    """Standard deviation of init ``normal``; the other schemes do not read it."""
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
        unread = set()
        if self.init != "normal":
            unread.add("init_std")
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


class OptimConfig(Section):
    """AdamW and its schedule."""

    lr: Annotated[float, Field(gt=0, le=100), LANE] = 1e-3
    """Peak learning rate of AdamW (Loshchilov and Hutter 2019)."""
    weight_decay: Annotated[float, Field(ge=0, le=100), LANE] = 0.01
    """Decoupled weight decay, on every parameter: each step takes off lr * weight_decay of it."""
    beta1: Annotated[float, Field(ge=0, lt=1), LANE] = 0.9
    """Decay of the running mean of gradients (Kingma and Ba 2015)."""
    beta2: Annotated[float, Field(ge=0, lt=1), LANE] = 0.999
    """Decay of the running mean of squared gradients."""
    eps: Annotated[float, Field(gt=0, le=1), LANE] = 1e-8
    """Added to the root of the squared gradients' mean."""
    grad_clip: Annotated[Annotated[float, Field(gt=0, le=1e6)] | None, LANE] = None
    """Largest global gradient norm of a trial (Pascanu et al. 2013); null does not clip."""
    schedule: Annotated[Schedule, LANE] = "constant"
    """Learning rate after the warm-up: constant, cosine (Loshchilov and Hutter 2017), or wsd (constant, then linear
    decay; Hu et al. 2024)."""
    warmup_tokens: Annotated[int, Field(ge=0, le=10**15), WHOLE, LANE] = 0
    """Tokens of linear warm-up; in tokens, so that trials with other batch sizes share one schedule."""
    final_lr_fraction: Annotated[float, Field(ge=0, le=1), LANE] = 0.1
    """Learning rate at the end of ``cosine`` and ``wsd``, as a fraction of ``lr``."""
    decay_fraction: Annotated[float, Field(gt=0, le=1), LANE] = 0.2
    """Last part of the budget, 0 to 1, in which ``wsd`` decays linearly."""


class DataConfig(Section):
    """The text and how it is cut."""

    corpus: CorpusName = "shakespeare"
    """A text that is built in; ``shakespeare`` comes with a package, ``tiny_shakespeare`` is downloaded once."""
    text: Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")] | None = None
    """Path of a UTF-8 file of your own; takes the place of ``corpus``."""
    tokenizer: TokenizerName = "char"
    """A token is a character of the corpus, a byte of UTF-8, or ``bpe``: byte-level byte-pair encoding (Sennrich et al.
    2016; Radford et al. 2019), trained on the training split alone. Nats per token mean another thing under each of
    them, so a study that searches this has ``objective: val_bpb``."""
    vocab_size: Annotated[int, Field(ge=257, le=65536), WHOLE] = 1024
    """Vocabulary of ``bpe``: the 256 bytes and the merges; the other tokenizers do not read it."""
    context_bytes: Annotated[int, Field(ge=1, le=16_777_216), WHOLE] | None = None
    """Context in bytes of text instead of ``model.context``: in tokens it is this over the tokenizer's mean bytes per
    token on the training split, rounded. So every tokenizer sees as far, and reads as much text in a step: a budget in
    ``steps`` is one in bytes of text, while ``tokens`` gives coarse tokenizers more text, and ``active_flops`` compares
    at equal compute."""
    batch_size: Annotated[int, Field(ge=1, le=65536), WHOLE] = 16
    """Sequences B per step; each has ``context`` tokens."""
    order_seed: Annotated[Annotated[int, Field(ge=0, lt=2**63), WHOLE] | None, LANE] = None
    """Seed of the order of batches; null follows ``seed``. Equal order seeds pair two trials' data."""


class BudgetConfig(Section):
    """How long a trial trains: exactly one of steps, tokens, active_flops; milestones are equal fractions of it."""

    steps: Annotated[Annotated[int, Field(ge=1, le=10**9), WHOLE] | None, LANE] = None
    """Optimiser steps; 5000 where no budget is given."""
    tokens: Annotated[Annotated[int, Field(ge=1, le=10**15), WHOLE] | None, LANE] = None
    """Training tokens, rounded up to whole steps."""
    active_flops: Annotated[Annotated[float, Field(gt=0, le=1e30)] | None, LANE] = None
    """Training FLOPs of the active parameters (forward and backward), rounded up to whole steps."""
    milestones: Annotated[int, Field(ge=1, le=10_000), WHOLE, LANE] = 10
    """Number of evaluations on the whole validation split, at equal fractions of the budget, the last one at the end.
    At most one a step."""

    @model_validator(mode="before")
    @classmethod
    def _default_is_the_article_run(cls, values: object) -> object:
        if isinstance(values, dict) and all(values.get(unit) is None for unit in BUDGET_UNITS):
            return {**values, "steps": 5000}
        return values

    @property
    def unit(self) -> str:
        """The unit that the budget is given in, one of BUDGET_UNITS."""
        return next(unit for unit in BUDGET_UNITS if getattr(self, unit) is not None)

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        given = [unit for unit in BUDGET_UNITS if getattr(self, unit) is not None]
        if len(given) != 1:
            yield "", f"give exactly one of {', '.join(BUDGET_UNITS)} (given: {', '.join(given)})"
        if self.steps is not None and self.steps < self.milestones:
            yield "", f"milestones ({self.milestones}) must be at most steps ({self.steps})"


class TrialConfig(Section):
    """Everything that decides one training run."""

    model: ModelConfig = ModelConfig()
    moe: MoEConfig = MoEConfig()
    optim: OptimConfig = OptimConfig()
    data: DataConfig = DataConfig()
    budget: BudgetConfig = BudgetConfig()
    seed: Annotated[int, Field(ge=0, lt=2**63), WHOLE, LANE] = 0
    """Decides initialisation, dropout, router noise and, unless ``data.order_seed`` is set, the order of batches."""

    @property
    def expert_hidden_dim(self) -> int:
        """Hidden width F of an expert, with the default of 4 * width filled in."""
        return 4 * self.model.width if self.moe.expert_hidden_dim is None else self.moe.expert_hidden_dim

    def spelled_out(self) -> TrialConfig:
        """The same trial with its derived width written down, so that a reader need not know the rule."""
        moe = self.moe.model_copy(update={"expert_hidden_dim": self.expert_hidden_dim})
        return self.model_copy(update={"moe": moe})

    def fitted(self, bytes_per_token: float) -> TrialConfig:
        """The same trial with the context that ``data.context_bytes`` makes in tokens of this mean length."""
        if self.data.context_bytes is None:
            return self
        context = max(1, round(self.data.context_bytes / bytes_per_token))
        return self.model_copy(update={"model": self.model.model_copy(update={"context": context})})

    @property
    def order_seed(self) -> int:
        """Seed of the order of batches."""
        return self.seed if self.data.order_seed is None else self.data.order_seed

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimiser step trains on."""
        return self.data.batch_size * self.model.context

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        if self.data.context_bytes is not None:
            return  # What a step holds in tokens is known with the tokenizer.
        budget, per_step = self.budget, self.tokens_per_step
        if budget.tokens is not None and budget.tokens < budget.milestones * per_step:
            yield (
                "budget",
                f"tokens ({budget.tokens}) must be at least milestones ({budget.milestones}) "
                f"* batch_size * context ({per_step})",
            )
        tokens = budget.tokens if budget.steps is None else budget.steps * per_step
        if tokens is not None and 0 < tokens <= self.optim.warmup_tokens:
            yield "optim", f"warmup_tokens ({self.optim.warmup_tokens}) must be less than the budget's {tokens} tokens"

    def _dump_for_fingerprint(self) -> dict[str, Any]:
        """All values as JSON has them, without fields of later versions that hold their defaults.

        So a trial that was stored before a field existed keeps its name.
        """
        values = self.model_dump(mode="json")
        for section, first_fields in _FIRST_FIELDS.items():
            for name, info in type(getattr(self, section)).model_fields.items():
                if name not in first_fields and getattr(getattr(self, section), name) == info.default:
                    del values[section][name]
        return values

    def fingerprint(self) -> str:
        """Sixteen hex digits that name the configuration, whatever its seeds are.

        Fields that the others leave unread do not count, so that two trials which train alike have one name.
        """
        values = self._dump_for_fingerprint()
        del values["seed"], values["data"]["order_seed"]
        values["moe"]["expert_hidden_dim"] = self.expert_hidden_dim
        for name in self.moe.unread_fields():
            values["moe"].pop(name, None)
        if self.optim.schedule != "wsd":
            del values["optim"]["decay_fraction"]
        if self.optim.schedule == "constant":
            del values["optim"]["final_lr_fraction"]
        if self.data.text is not None:
            del values["data"]["corpus"]
        if self.data.tokenizer != "bpe":
            values["data"].pop("vocab_size", None)
        if self.data.context_bytes is not None:
            del values["model"]["context"]
        if self.moe.is_dense:
            values["moe"] = {name: value for name, value in values["moe"].items() if name in FEED_FORWARD_FIELDS}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
