"""Numbers as a reader wants them: thousands separated, losses with four decimals, large counts in few characters."""

from __future__ import annotations

import pandas as pd

from moesearch.config.quantities import ROUTER_QUANTITIES, Quantity

OBJECTIVES: dict[Quantity, str] = {
    **{name: name.replace("_", " ") for name in ROUTER_QUANTITIES},
    "val_loss": "validation loss (nats per token)",
    "val_bpb": "validation bits per byte",
    "active_params": "active parameters",
    "total_params": "total parameters",
    "flops_per_token": "forward FLOPs per token",
    "tokens_per_second": "training tokens per second",
}
"""Objective of a study -> what stands beside an axis."""

MISSING = "\N{EN DASH}"

_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def compact(count: float) -> str:
    """Three significant digits and a prefix: ``8.99 M``, ``512``."""
    for size, prefix in _PREFIXES:
        if abs(count) >= size * 0.9995:
            return f"{_three_digits(count / size)} {prefix}"
    return _three_digits(count)


def exact(count: float | None) -> str:
    """Every digit, thousands separated."""
    return MISSING if pd.isna(count) else f"{count:,.0f}"


def loss(value: float | None) -> str:
    """Four decimals."""
    return MISSING if pd.isna(value) else f"{value:.4f}"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"


def duration(seconds: float | None) -> str:
    """``58 s``, ``9 min 12 s``, ``3 h 5 min``."""
    if pd.isna(seconds):
        return MISSING
    if seconds < 59.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 or seconds == 0 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes} min" if minutes else f"{hours:,} h"


def _three_digits(value: float) -> str:
    text = f"{value:.3g}"
    return f"{value:.0f}" if "e" in text else text
