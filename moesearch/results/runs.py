"""What a verdict is made from: confirmation runs, and the learning rates that they had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Rate:
    """A configuration's own learning rate."""

    lr: float
    searched_lr: float
    """At which it was searched."""
    tried: tuple[tuple[float, float | None], ...] = ()
    """Each learning rate that was tried, ascending, and its final loss in the study's unit; None where it diverged."""

    @property
    def loss_at_searched_lr(self) -> float | None:
        """Final loss on the fresh seed that rates were tried on, at the rate of the search."""
        return dict(self.tried).get(self.searched_lr)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        return cls(values["lr"], values["searched_lr"], tuple((lr, loss) for lr, loss in values["tried"]))


@dataclass(frozen=True)
class ConfirmRun:
    """One confirmation run that ended; ``val_loss`` is in the study's unit, NaN or infinite where it diverged."""

    fingerprint: str
    label: str
    params: Mapping[str, Any]
    seed_index: int
    val_loss: float
    search_value: float | None = None
    """Objective in the search, by which the configuration was chosen; None if it was not searched."""
    is_baseline: bool = False
    block_losses: tuple[float, ...] = ()
    is_control: bool = False
    """Whether it is the dense control."""
    rate: Rate | None = None
    """None if its learning rate is that of the search."""
