"""What the trainer hands over at a milestone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, Self

from moesearch.config.quantities import ROUTER_QUANTITIES

DEAD_LOAD = 0.01
"""Part of the fair share, the routed slots over E, under which an expert counts as dead."""


@dataclass(frozen=True)
class LayerHealth:
    """How one router used its experts over a whole split, dropout and router noise off."""

    load: tuple[float, ...] = field(repr=False)
    """Fraction of the layer's routed slots (token, rank) that chose each expert; sums to 1."""
    load_entropy: float
    """Entropy of the load over log E: 1 at perfect balance, 0 where one expert has all."""
    max_vio: float
    """Load of the busiest expert over its fair share, minus 1 (Wang et al. 2024, "MaxVio"): 0 at perfect balance."""
    dead_experts: int
    """Experts with under DEAD_LOAD of their fair share."""
    dropped_fraction: float
    """Part of the routed slots that no expert took, for want of capacity."""
    router_entropy: float
    """Mean entropy of a token's router probabilities, in nats: log E if the router does not care, 0 if it is sure."""
    top1_probability: float
    """Mean probability of a token's likeliest expert."""
    router_logit_rms: float
    """Root mean square of the router logits."""
    bias_range: float
    """Largest minus smallest balancing bias of an expert; 0 for a router without such biases."""


@dataclass(frozen=True)
class RouterHealth:
    """The routers of a model at an evaluation: each quantity as one number over the MoE layers, and by layers.

    The reductions let no layer hide: where a single sick layer spoils the model, the worst one counts; where layers
    differ for good reasons and what matters is the model as a whole, they are added or averaged.
    """

    load_entropy: float
    """Minimum: one collapsed layer is a collapse, however even the others are."""
    max_vio: float
    """Maximum: the worst layer sets the capacity, or the slowest device, that balance is meant to bound."""
    dead_experts: float
    """Sum: each is an expert whose parameters were paid for in vain, wherever it is."""
    dropped_fraction: float
    """Mean, which is the part of all slots: every layer routes equally many."""
    router_entropy: float
    """Mean: early and late layers differ in how sure they are, and neither end is a fault of itself."""
    top1_probability: float
    """Mean, as the entropy, of which it is the plainer reading."""
    router_logit_rms: float
    """Maximum: logits that run away in one layer make the loss spike (Zoph et al. 2022)."""
    bias_range: float
    """Maximum: one layer whose biases run away is no longer balanced by them."""
    layers: tuple[LayerHealth, ...] = field(default=(), repr=False)
    """By MoE layers, first to last; empty where only the numbers above were kept."""

    @classmethod
    def of(cls, layers: Sequence[LayerHealth]) -> Self:
        """The summary of these layers, at least one, together with them."""
        return cls(
            load_entropy=min(layer.load_entropy for layer in layers),
            max_vio=max(layer.max_vio for layer in layers),
            dead_experts=float(sum(layer.dead_experts for layer in layers)),
            dropped_fraction=fmean(layer.dropped_fraction for layer in layers),
            router_entropy=fmean(layer.router_entropy for layer in layers),
            top1_probability=fmean(layer.top1_probability for layer in layers),
            router_logit_rms=max(layer.router_logit_rms for layer in layers),
            bias_range=max(layer.bias_range for layer in layers),
            layers=tuple(layers),
        )

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """What ``dataclasses.asdict`` made, back from JSON."""
        layers = tuple(LayerHealth(**{**layer, "load": tuple(layer["load"])}) for layer in record["layers"])
        return cls(**{**record, "layers": layers})

    def summary(self) -> dict[str, float]:
        """The numbers over all layers, by name."""
        return {name: getattr(self, name) for name in ROUTER_QUANTITIES}


@dataclass(frozen=True)
class EvalPoint:
    """One exact evaluation of one trial at a milestone.

    ``val_loss`` is nats per token of the language model alone over the whole validation split, dropout and router
    noise off; before the last milestone over ``budget.milestone_share`` of it. ``train_loss`` is the mean over the
    steps since the last milestone, dropout and noise on. ``val_block_losses`` are nats per byte of consecutive equal
    parts of the split's text, for paired comparisons; empty for a share of it.
    """

    milestone: int
    """1 .. num_milestones."""
    num_milestones: int
    step: int
    tokens: int
    active_flops: float
    """Training FLOPs spent so far."""
    train_loss: float
    val_loss: float
    val_bpb: float
    """Bits per byte of the validation text."""
    val_block_losses: tuple[float, ...] = field(repr=False)
    train_seconds: float
    """Seconds of training so far, evaluation apart; shared evenly among the lanes of a step."""
    eval_seconds: float
    """Seconds of evaluation so far, likewise shared among the lanes that were evaluated together."""
    is_diverged: bool = False
    """A loss or gradient of this trial was not finite; it stopped training there."""
    router_health: RouterHealth | None = None
    """The routers over the validation split; None for a model without routers, and where it diverged."""

    @property
    def is_last(self) -> bool:
        return self.milestone == self.num_milestones

    def brief(self) -> EvalPoint:
        """The point without what is kept of a trial's last milestone alone: losses by block, router health by layer."""
        health = self.router_health
        return replace(self, val_block_losses=(), router_health=None if health is None else replace(health, layers=()))

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> EvalPoint:
        """What ``dataclasses.asdict`` made, back from JSON; records of before there was router health have none."""
        health = record.get("router_health")
        return cls(
            **{
                **record,
                "val_block_losses": tuple(record["val_block_losses"]),
                "router_health": None if health is None else RouterHealth.from_record(health),
            }
        )
