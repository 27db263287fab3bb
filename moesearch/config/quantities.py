"""What is measured of a trial, by the names that files, charts and tables use; and what a study wants of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
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

CURVE_FIELDS = (
    "milestone",
    "step",
    "tokens",
    "active_flops",
    "train_loss",
    "val_loss",
    "val_bpb",
    "train_seconds",
    "eval_seconds",
)
"""What a curve says of each milestone beside router health, wherever it is written: fields of EvalPoint."""

Size = Literal["active_params", "total_params", "flops_per_token"]
"""What follows from a configuration, before any training."""
SIZES: tuple[Size, ...] = get_args(Size)

Quantity = Literal["val_loss", "val_bpb", Size, "tokens_per_second", RouterQuantity]
"""What an objective or a constraint may be about."""
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)

Loss = Literal["val_loss", "val_bpb"]
LOSSES: tuple[Quantity, ...] = get_args(Loss)

RAISED: frozenset[Quantity] = frozenset({"tokens_per_second", "load_entropy", "top1_probability"})
"""Objectives of which more is better; of all others, less is."""


def curve_of(objective: Quantity) -> Loss:
    """The loss that a study's curves show, by which trials are stopped early: its leading objective if that is one."""
    return "val_bpb" if objective == "val_bpb" else "val_loss"


_CONSTRAINT = re.compile(r"\s*([a-z0-9_]+)\s*(<=|>=)\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*")


@dataclass(frozen=True)
class Constraint:
    """What a trial must keep to be a candidate: a quantity and the bound of it."""

    text: str
    quantity: Quantity
    is_upper: bool
    bound: float

    def violation(self, value: float) -> float:
        """By how much the value lies beyond the bound; 0 or less where it keeps it."""
        return value - self.bound if self.is_upper else self.bound - value


def parse_constraint(text: str) -> Constraint:
    """``dead_experts <= 0``: a quantity, ``<=`` or ``>=``, and a number.

    Raises:
        ValueError: the text is none; the message says what is wrong with it.
    """
    match = _CONSTRAINT.fullmatch(text)
    if match is None:
        raise ValueError("must be a quantity, <= or >=, and a number, such as dead_experts <= 0")
    name, comparison, number = match.groups()
    quantity = next((quantity for quantity in QUANTITIES if quantity == name), None)
    if quantity is None:
        raise ValueError(f"{name} is no quantity; known here: {', '.join(QUANTITIES)}")
    try:
        bound = float(number)
    except ValueError:
        raise ValueError(f"{number} is no number") from None
    return Constraint(text, quantity, comparison == "<=", bound)
