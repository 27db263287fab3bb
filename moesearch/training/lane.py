"""One trial in training, as the host sees it: where it stands, what comes next, what it has to tell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from moesearch.config.trial import TrialConfig
from moesearch.data.batches import BatchOrder
from moesearch.data.tokens import TokenData
from moesearch.model.cost import num_steps, training_flops_per_token
from moesearch.training.checkpoints import LaneCheckpoint, Progress
from moesearch.training.evaluation import SplitResult
from moesearch.training.optimizer import learning_rate
from moesearch.training.points import EvalPoint
from moesearch.training.step import LanePlan, LaneResult

_ASSUMED_STEPS = 1_000_000
"""Length of a trial by the clock, for the learning rate of its first step, before its pace is known."""


@dataclass(frozen=True, eq=False)
class LaneTensors:
    """What training changes, by the names of the parameters."""

    parameters: Mapping[str, Tensor]
    """And the biases that balance experts, which have no moments."""
    exp_avg: Mapping[str, Tensor]
    exp_avg_sq: Mapping[str, Tensor]

    def copy(self) -> Self:
        """Tensors of their own, which further training leaves alone."""
        groups = (self.parameters, self.exp_avg, self.exp_avg_sq)
        return type(self)(*({name: tensor.clone() for name, tensor in group.items()} for group in groups))


class Lane:
    """A trial that is loaded into a trainer."""

    def __init__(self, config: TrialConfig, tokens: TokenData, checkpoint: LaneCheckpoint | None = None) -> None:
        self.config = config
        self._num_steps = num_steps(config, tokens.vocab_size)
        self.step = 0
        """Optimizer steps done."""
        self.points: list[EvalPoint] = []
        self.tensors: LaneTensors | None = None
        """None until the trial is in a model for the first time."""
        self.is_diverged = False
        self.train_loss_sum = 0.0
        self.train_seconds = 0.0
        self.eval_seconds = 0.0
        self._corpus_sha256 = tokens.corpus_sha256
        self._step_flops = training_flops_per_token(config, tokens.vocab_size) * config.tokens_per_step
        self._order = BatchOrder(config.order_seed, len(tokens.train), config.data.batch_size, config.model.context)
        if checkpoint is not None:
            self._restore(checkpoint)

    def _restore(self, checkpoint: LaneCheckpoint) -> None:
        self.step = checkpoint.step
        self.points = list(checkpoint.points)
        self.tensors = LaneTensors(checkpoint.parameters, checkpoint.exp_avg, checkpoint.exp_avg_sq)
        self.train_loss_sum = checkpoint.progress.train_loss_sum
        self.train_seconds = checkpoint.progress.train_seconds
        self.eval_seconds = checkpoint.progress.eval_seconds

    @property
    def milestone(self) -> int:
        """The last milestone that was evaluated; 0 before the first."""
        return self.points[-1].milestone if self.points else 0

    @property
    def share_due(self) -> float:
        """Share of the validation split on which the next milestone is evaluated."""
        return self.config.budget.share_at(self.milestone + 1)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to train or to report."""
        return self.milestone == self.config.budget.milestones or (bool(self.points) and self.points[-1].is_diverged)

    @property
    def num_steps(self) -> int:
        """Steps of the whole trial; for a budget in seconds, as many as the pace so far promises."""
        if self._num_steps is not None:
            return self._num_steps
        seconds = self.config.budget.seconds
        assert seconds is not None, "every other budget has a number of steps"
        return max(self.step + 1, self.step + self._steps_until(seconds)) if self.step else _ASSUMED_STEPS

    @property
    def steps_to_milestone(self) -> int:
        """Steps until the next evaluation is due; for a budget in seconds, none if it is, else as many as seem to fit.

        A milestone has one step at least.
        """
        num_milestones, milestone = self.config.budget.milestones, self.milestone + 1
        if self._num_steps is not None:
            return milestone_step(milestone, num_milestones, self._num_steps) - self.step
        seconds = self.config.budget.seconds
        assert seconds is not None, "every other budget has a number of steps"
        due = milestone * seconds / num_milestones
        has_trained = self.step > (self.points[-1].step if self.points else 0)
        return 0 if has_trained and self.train_seconds >= due else max(1, self._steps_until(due))

    def _steps_until(self, seconds: float) -> int:
        """Whole steps that fit before so many seconds of training, at the pace so far."""
        left = seconds - self.train_seconds
        return int(left * self.step / self.train_seconds) if self.train_seconds else 0

    def plan(self, num_steps: int) -> LanePlan:
        """The next steps."""
        last = self.step + num_steps
        return LanePlan(
            starts_SB=self._order.window_starts_range(self.step, last),
            first_step=self.step,
            total_steps=self.num_steps,
            learning_rates=[learning_rate(self.config, step, self.num_steps) for step in range(self.step, last)],
            train_loss_sum=self.train_loss_sum,
        )

    def absorb(self, result: LaneResult, train_seconds: float) -> None:
        """Book what a plan's steps did."""
        self.step += result.num_applied
        self.train_loss_sum = result.train_loss_sum
        self.train_seconds += train_seconds
        self.is_diverged = not result.is_alive

    def report(self, val: SplitResult | None) -> EvalPoint:
        """The point of the next milestone, which becomes the last one; None says that the trial diverged."""
        steps_since = self.step - (self.points[-1].step if self.points else 0)
        loss = math.nan if val is None else val.loss
        is_diverged = not math.isfinite(loss)
        point = EvalPoint(
            milestone=self.milestone + 1,
            num_milestones=self.config.budget.milestones,
            step=self.step,
            tokens=self.step * self.config.tokens_per_step,
            active_flops=float(self.step * self._step_flops),
            train_loss=self.train_loss_sum / steps_since if steps_since else math.nan,
            val_loss=loss,
            val_bpb=math.nan if val is None else val.bits_per_byte,
            val_block_losses=() if val is None else val.block_losses,
            train_seconds=self.train_seconds,
            eval_seconds=self.eval_seconds,
            is_diverged=is_diverged,
            router_health=None if val is None or is_diverged else val.router_health,
        )
        self.points.append(point)
        self.train_loss_sum = 0.0
        return point

    def checkpoint(self) -> LaneCheckpoint:
        """A snapshot on the host of all that an exact resume needs."""
        assert self.tensors is not None, "a lane has tensors once it was packed"
        return LaneCheckpoint(
            config=self.config,
            corpus_sha256=self._corpus_sha256,
            step=self.step,
            progress=Progress(self.train_loss_sum, self.train_seconds, self.eval_seconds),
            points=tuple(self.points),
            parameters=_on_host(self.tensors.parameters),
            exp_avg=_on_host(self.tensors.exp_avg),
            exp_avg_sq=_on_host(self.tensors.exp_avg_sq),
        )


def milestone_step(milestone: int, num_milestones: int, num_steps: int) -> int:
    """Steps done at a milestone (1 .. num_milestones): equal fractions of the budget, rounded to whole steps."""
    return round(milestone * num_steps / num_milestones)


def _on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
