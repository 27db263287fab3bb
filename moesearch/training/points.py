"""What the trainer hands over at a milestone."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class EvalPoint:
    """One exact evaluation of one trial at a milestone.

    ``val_loss`` is nats per token of the language model alone over the whole validation split, dropout and router
    noise off; ``train_loss`` is the mean over the steps since the last milestone, dropout and noise on.
    ``val_block_losses`` are means over consecutive equal blocks of the split, for paired comparisons.
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
    is_diverged: bool = False
    """A loss or gradient of this trial was not finite; it stopped training there."""

    @property
    def is_last(self) -> bool:
        return self.milestone == self.num_milestones
