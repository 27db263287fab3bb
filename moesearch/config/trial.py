"""The configuration of one trial: everything that decides what is trained, and nothing else.

Defaults are the makeMoE article's run, except for three that it would call quirks: attention is scaled by the
head's width, noise is off in evaluation, and the corpus needs no download.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

# A lane knob changes no tensor shape of another lane, so trials that differ in it train side by side in one model.
# A shape knob starts another shape family. The mark is read by `is_lane_field`, `--dry-run` and the reference.
LANE = {"lane": True}

Init = Literal["kaiming_normal", "kaiming_uniform", "xavier_normal", "xavier_uniform", "normal"]
Schedule = Literal["constant", "cosine", "wsd"]
CorpusName = Literal["shakespeare", "tiny_shakespeare"]


class Section(BaseModel):
    """Base of all sections: frozen, and a misspelt field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Section):
    """The transformer around the experts."""

    width: Annotated[int, Field(ge=1, le=65536)] = 128
    """Width C of the residual stream."""
    num_layers: Annotated[int, Field(ge=1, le=1024)] = 8
    num_heads: Annotated[int, Field(ge=1, le=1024)] = 8
    context: Annotated[int, Field(ge=1, le=1_048_576)] = 32
    """Context length T in tokens."""
    dropout: Annotated[float, Field(ge=0, lt=1, json_schema_extra=LANE)] = 0.1
    """Dropout probability on attention weights, after the attention projection and after each expert."""
    attention_scale: Literal["head", "width"] | Annotated[float, Field(gt=0)] = "head"
    """Factor on the attention scores: ``head`` is head_width^-0.5, ``width`` is width^-0.5 (makeMoE), or a number."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must divide width ({self.width})")
        return self


class MoEConfig(Section):
    """The sparse mixture-of-experts layer: experts, router, balance."""

    num_experts: Annotated[int, Field(ge=1, le=512, json_schema_extra=LANE)] = 8
    top_k: Annotated[int, Field(ge=1, le=512, json_schema_extra=LANE)] = 2
    """Experts active per token."""
    expert_hidden_dim: Annotated[int, Field(ge=1, le=1_048_576)] | None = None
    """Hidden width F of an expert; null is 4 * width."""
    init: Annotated[Init, Field(json_schema_extra=LANE)] = "kaiming_normal"
    """Initialisation of every linear weight: attention, router, experts, head."""
    init_std: Annotated[float, Field(gt=0, le=10, json_schema_extra=LANE)] = 0.02
    """Standard deviation of init ``normal``; the other schemes do not read it."""
    noise: Annotated[bool, Field(json_schema_extra=LANE)] = True
    """Noisy top-k routing (Shazeer et al. 2017) in training; never in evaluation."""
    load_balancing_loss_weight: Annotated[float, Field(ge=0, le=1000, json_schema_extra=LANE)] = 0.0
    router_z_loss_weight: Annotated[float, Field(ge=0, le=1000, json_schema_extra=LANE)] = 0.0

    @model_validator(mode="after")
    def _experts_suffice(self) -> Self:
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k ({self.top_k}) must be at most num_experts ({self.num_experts})")
        return self


class OptimConfig(Section):
    """AdamW and its schedule."""

    lr: Annotated[float, Field(gt=0, le=100, json_schema_extra=LANE)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, le=100, json_schema_extra=LANE)] = 0.01
    beta1: Annotated[float, Field(ge=0, lt=1, json_schema_extra=LANE)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1, json_schema_extra=LANE)] = 0.999
    eps: Annotated[float, Field(gt=0, le=1, json_schema_extra=LANE)] = 1e-8
    grad_clip: Annotated[float, Field(gt=0, json_schema_extra=LANE)] | None = None
    """Largest global gradient norm of a trial; null does not clip."""
    schedule: Annotated[Schedule, Field(json_schema_extra=LANE)] = "constant"
    warmup_tokens: Annotated[int, Field(ge=0, json_schema_extra=LANE)] = 0
    """Tokens of linear warm-up; in tokens, so that trials with other batch sizes share one schedule."""
    final_lr_fraction: Annotated[float, Field(ge=0, le=1, json_schema_extra=LANE)] = 0.1
    """Learning rate at the end of ``cosine`` and ``wsd``, as a fraction of ``lr``."""
    decay_fraction: Annotated[float, Field(gt=0, le=1, json_schema_extra=LANE)] = 0.2
    """Last part of the budget in which ``wsd`` decays linearly."""


class DataConfig(Section):
    """The text and how it is cut."""

    corpus: CorpusName = "shakespeare"
    text: str | None = None
    """Path of a UTF-8 file of your own; takes the place of ``corpus``."""
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 16
    """Sequences per step."""
    order_seed: Annotated[int, Field(ge=0, lt=2**63, json_schema_extra=LANE)] | None = None
    """Seed of the order of batches; null follows ``seed``. Equal order seeds pair two trials' data."""


class BudgetConfig(Section):
    """How long a trial trains: exactly one of steps, tokens, active_flops; milestones are equal fractions of it."""

    steps: Annotated[int, Field(ge=1, le=10**9, json_schema_extra=LANE)] | None = None
    tokens: Annotated[int, Field(ge=1, json_schema_extra=LANE)] | None = None
    active_flops: Annotated[float, Field(gt=0, json_schema_extra=LANE)] | None = None
    """Training FLOPs of the active parameters (forward and backward)."""
    milestones: Annotated[int, Field(ge=1, le=10_000, json_schema_extra=LANE)] = 10
    """Number of evaluations, the last one at the end."""

    @model_validator(mode="before")
    @classmethod
    def _default_is_the_article_run(cls, values: object) -> object:
        if isinstance(values, dict) and not any(
            values.get(name) is not None for name in ("steps", "tokens", "active_flops")
        ):
            return {**values, "steps": 5000}
        return values

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in ("steps", "tokens", "active_flops") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of steps, tokens, active_flops (given: {', '.join(given)})")
        if self.steps is not None and self.steps < self.milestones:
            raise ValueError(f"milestones ({self.milestones}) must be at most steps ({self.steps})")
        return self


class TrialConfig(Section):
    """Everything that decides one training run."""

    model: ModelConfig = ModelConfig()
    moe: MoEConfig = MoEConfig()
    optim: OptimConfig = OptimConfig()
    data: DataConfig = DataConfig()
    budget: BudgetConfig = BudgetConfig()
    seed: Annotated[int, Field(ge=0, lt=2**63, json_schema_extra=LANE)] = 0
    """Decides initialisation, dropout, router noise and, unless ``data.order_seed`` is set, the order of batches."""

    @property
    def expert_hidden_dim(self) -> int:
        """Hidden width F of an expert, with the default of 4 * width filled in."""
        return 4 * self.model.width if self.moe.expert_hidden_dim is None else self.moe.expert_hidden_dim

    @property
    def order_seed(self) -> int:
        """Seed of the order of batches."""
        return self.seed if self.data.order_seed is None else self.data.order_seed

    @property
    def tokens_per_step(self) -> int:
        return self.data.batch_size * self.model.context

    def fingerprint(self) -> str:
        """Sixteen hex digits that name the configuration, whatever its seeds are."""
        values = self.model_dump(mode="json")
        del values["seed"], values["data"]["order_seed"]
        values["moe"]["expert_hidden_dim"] = self.expert_hidden_dim
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
