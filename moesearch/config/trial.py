"""The configuration of one trial: everything that decides what is trained, and nothing else.

Defaults are the makeMoE article's run, except for three that it would call quirks: attention is scaled by the
head's width, noise is off in evaluation, and the corpus needs no download.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from moesearch.config.budget import BUDGET_UNITS as BUDGET_UNITS
from moesearch.config.budget import BudgetConfig as BudgetConfig  # offered here beside the other sections
from moesearch.config.moe import FEED_FORWARD_FIELDS
from moesearch.config.moe import MoEConfig as MoEConfig
from moesearch.config.section import LANE, WHOLE, Section

Positions = Literal["learned", "rotary"]
Norm = Literal["layer_norm", "rms_norm"]
Schedule = Literal["constant", "cosine", "wsd"]
CorpusName = Literal["shakespeare", "tiny_shakespeare"]
ExpertOptimizer = Literal["adamw", "muon"]
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

SOMETIMES_UNREAD = frozenset(
    {
        "data.vocab_size",
        "optim.decay_fraction",
        "optim.final_lr_fraction",
        "moe.iso_flops",
        "moe.every",
        "moe.init_std",
        "moe.init_scale",
        "moe.init_router",
        "moe.init_experts",
        "moe.init_attention",
        "moe.router",
        "moe.route_norm",
        "moe.noise_decay_fraction",
        "moe.eval_capacity_factor",
        "moe.drop_policy",
        "optim.muon_lr",
        "optim.muon_momentum",
    }
)
"""Fields that some values of others leave unread, so that ``TrialConfig.fingerprint`` leaves them out."""


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
    positions: Positions = "learned"
    """Where a token stands: ``learned`` adds a vector per place (makeMoE), ``rotary`` turns queries and keys by angles
    that grow with the place (Su et al. 2021, base 10000) and has no parameters."""
    norm: Norm = "layer_norm"
    """Norm before attention, experts and head: ``layer_norm`` (Ba et al. 2016) or ``rms_norm``, which neither centres
    nor has a bias (Zhang and Sennrich 2019)."""
    qk_norm: bool = False
    """RMS norm over each head's queries and keys, with a learned weight for each (Henry et al. 2020; Dehghani et al.
    2023), before any rotation."""
    tied_head: bool = False
    """Whether the head's weights are the token embedding's (Press and Wolf 2017). The logits are then divided by the
    root of ``width``, since embeddings start with a deviation of 1 (Chowdhery et al. 2022)."""

    @property
    def head_width(self) -> int:
        """Width D of an attention head."""
        return self.width // self.num_heads

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        if self.width % self.num_heads:
            yield "", f"num_heads ({self.num_heads}) must divide width ({self.width})"
        elif self.positions == "rotary" and self.head_width % 2:
            yield (
                "",
                f"positions (rotary) turns numbers in pairs, so width / num_heads ({self.head_width}) must be even",
            )


class OptimConfig(Section):
    """The optimiser and its schedule."""

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
    expert_optimizer: Annotated[ExpertOptimizer, LANE] = "adamw"
    """Optimiser of the experts' weight matrices: ``muon`` (Jordan et al. 2024) orthogonalises their momentum, scaled to
    updates of AdamW's size (Liu et al. 2025), and halves their state. All else stays with AdamW. Its arithmetic, 15
    products of each matrix in a step, is in no count of FLOPs."""
    muon_lr: Annotated[Annotated[float, Field(gt=0, le=100)] | None, LANE] = None
    """Peak learning rate of ``muon``, on the same schedule; null is ``lr``."""
    muon_momentum: Annotated[float, Field(ge=0, lt=1), LANE] = 0.95
    """Decay of the running mean of gradients under ``muon`` (Nesterov's form)."""
    mup_base_width: Annotated[Annotated[int, Field(ge=1, le=65536), WHOLE] | None, LANE] = None
    """Width at which learning rate and init were chosen. If given, maximal-update rules (Yang et al. 2022; for experts
    Małaśnicki et al. 2025, Jiang et al. 2026) carry them to ``model.width``: the rate of attention, experts, router and
    head goes as 1 / width, and their init with it. Null leaves them as they are, at every width."""


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
        """Hidden width F of an expert, with the default of 4 * width filled in, and divided under ``iso_flops``."""
        hidden = self._given_hidden_dim
        return hidden // self.moe.num_active_experts if self.moe.iso_flops else hidden

    @property
    def _given_hidden_dim(self) -> int:
        return 4 * self.model.width if self.moe.expert_hidden_dim is None else self.moe.expert_hidden_dim

    def spelled_out(self) -> TrialConfig:
        """The same trial with its derived width written down, so that a reader need not know the rule."""
        moe = self.moe.model_copy(update={"expert_hidden_dim": self.expert_hidden_dim, "iso_flops": False})
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
        if self.optim.mup_base_width is not None and self.model.tied_head:
            yield (
                "optim",
                f"mup_base_width ({self.optim.mup_base_width}) needs a head of its own, since embeddings and a head go "
                "by different rules; set model.tied_head to false",
            )
        if self.data.context_bytes is not None:
            return  # What a step holds in tokens is known with the tokenizer.
        budget, per_step = self.budget, self.tokens_per_step
        if budget.tokens is not None and budget.tokens < budget.milestones * per_step:
            yield (
                "budget",
                f"tokens ({budget.tokens}) must be at least milestones ({budget.milestones}) "
                f"* batch_size * context ({per_step})",
            )
        hidden, num_active = self._given_hidden_dim, self.moe.num_active_experts
        if self.moe.iso_flops and hidden % num_active:
            yield (
                "moe",
                f"iso_flops divides expert_hidden_dim ({hidden}) among top_k ({self.moe.top_k}) + num_shared_experts "
                f"({self.moe.num_shared_experts}) experts; make it a multiple of {num_active}, such as "
                f"{hidden + -hidden % num_active}",
            )
        if self.moe.every > self.model.num_layers:
            yield (
                "moe",
                f"every ({self.moe.every}) must be at most model.num_layers ({self.model.num_layers}); "
                "for a model without experts set num_experts to 1",
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

    def reads(self, path: str) -> bool:
        """Whether a field, named by its dotted path, says anything of this configuration.

        A single expert is no choice among experts: such a model is dense, and has nothing to route.
        """
        section, _, name = path.partition(".")
        return section != "moe" or not self.moe.is_dense or (name in FEED_FORWARD_FIELDS and name != "top_k")

    def fingerprint(self) -> str:
        """Sixteen hex digits that name the configuration, whatever its seeds are.

        Fields that the others leave unread do not count, so that two trials which train alike have one name.
        """
        values = self._dump_for_fingerprint()
        del values["seed"], values["data"]["order_seed"]
        values["budget"].pop("milestone_share", None)  # It decides what is seen on the way, not what is trained.
        values["moe"]["expert_hidden_dim"] = self.expert_hidden_dim
        for name in self.moe.unread_fields():
            values["moe"].pop(name, None)
        if self.optim.schedule != "wsd":
            del values["optim"]["decay_fraction"]
        if self.optim.schedule == "constant":
            del values["optim"]["final_lr_fraction"]
        if self.optim.expert_optimizer != "muon":
            values["optim"].pop("muon_lr", None)
            values["optim"].pop("muon_momentum", None)
        if self.data.text is not None:
            del values["data"]["corpus"]
        if self.data.tokenizer != "bpe":
            values["data"].pop("vocab_size", None)
        if self.data.context_bytes is not None:
            del values["model"]["context"]
        if self.moe.is_dense:
            values["moe"] = {name: value for name, value in values["moe"].items() if name in FEED_FORWARD_FIELDS}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
