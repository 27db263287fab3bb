"""One training step of R lanes as a function of device tensors.

What changes from step to step (window starts, step numbers, learning rates) lies in tables that the host fills for many
steps ahead; whether a lane's step counts is a flag on the device. So nothing in a step waits for the host, and the same
code runs eagerly on a CPU and as a captured CUDA graph.

Shapes:  R lanes   B batch   T context   N training tokens   S steps planned ahead
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from moesearch.config.trial import TrialConfig
from moesearch.model.losses import LossWeights, training_losses
from moesearch.model.randomness import StepRandomness
from moesearch.model.transformer import MoETransformer
from moesearch.training.optimizer import LaneOptimizer
from moesearch.training.peers import Peers

MAX_PLANNED_STEPS = 64
"""Steps between two looks of the host at a CUDA device: well under a second, and a small part of a transfer each."""


@dataclass(frozen=True)
class LanePlan:
    """A lane's next S steps, made on the host."""

    starts_SB: Tensor
    """Window starts, int64."""
    first_step: int
    total_steps: int
    """Steps of the lane's whole budget."""
    learning_rates: Sequence[float]
    train_loss_sum: float
    """Sum of the losses since the last milestone, to be continued: so a resumed run adds in the same order."""


@dataclass(frozen=True)
class LaneResult:
    """What became of a lane in the steps of a plan."""

    num_applied: int
    """Steps that its parameters took; the lane stopped before the first whose loss or gradient was not finite."""
    train_loss_sum: float
    is_alive: bool


class TrainStep:
    """Forward, backward, clip and AdamW of R lanes; calling it does the next step of the plan."""

    def __init__(
        self,
        model: MoETransformer,
        optimizers: Sequence[LaneOptimizer],
        train_tokens_N: Tensor,
        peers: Peers | None = None,
    ) -> None:
        """With ``peers``, a step trains on this process' part of the batch, and its result is that of the whole."""
        device, R = model.device, model.layout.num_lanes
        B, T = model.configs[0].data.batch_size, model.configs[0].model.context
        if peers is not None:
            B //= peers.count
        self._peers = peers
        self._model = model
        self._parameters = tuple(model.parameters())
        self._optimizers = tuple(optimizers)
        self._tokens_N = train_tokens_N
        self._offsets_T1 = torch.arange(T + 1, device=device)
        self._seeds_R = torch.zeros(R, dtype=torch.int64, device=device)
        self._max_norm_R = torch.zeros(R, device=device)
        self._weights = LossWeights.of(model.configs, device)
        self._starts_SRB = torch.zeros(MAX_PLANNED_STEPS, R, B, dtype=torch.int64, device=device)
        self._steps_SR = torch.zeros(MAX_PLANNED_STEPS, R, dtype=torch.int64, device=device)
        self._progress_SR = torch.zeros(MAX_PLANNED_STEPS, R, device=device)
        self._lr_SR = torch.zeros(MAX_PLANNED_STEPS, R, device=device)
        self._cursor_1 = torch.zeros(1, dtype=torch.int64, device=device)
        self._is_alive_R = torch.ones(R, dtype=torch.bool, device=device)
        self._num_applied_R = torch.zeros(R, dtype=torch.int64, device=device)
        self._loss_sum_R = torch.zeros(R, dtype=torch.float64, device=device)
        for position, config in enumerate(model.configs):
            self.set_lane(position, config)

    def set_lane(self, position: int, config: TrialConfig) -> None:
        """Take over what a captured step reads from tensors of a configuration: see ``cuda_graph.captured_part``."""
        self._seeds_R[position] = config.seed
        # No clipping is an infinite bound, so that one formula serves lanes with and without.
        self._max_norm_R[position] = float("inf") if config.optim.grad_clip is None else config.optim.grad_clip

    def begin(self, plans: Sequence[LanePlan]) -> None:
        """Plan the next steps of all lanes; at most MAX_PLANNED_STEPS, equally many for each."""
        num_steps = len(plans[0].learning_rates)
        steps_S = torch.arange(num_steps)
        starts_SRB = torch.stack([plan.starts_SB for plan in plans], 1)
        self._starts_SRB[:num_steps] = starts_SRB if self._peers is None else self._peers.part(starts_SRB)
        self._steps_SR[:num_steps] = torch.stack([plan.first_step + steps_S for plan in plans], 1)
        progress = [(plan.first_step + steps_S).double() / plan.total_steps for plan in plans]
        self._progress_SR[:num_steps] = torch.stack(progress, 1)
        self._lr_SR[:num_steps] = torch.tensor([plan.learning_rates for plan in plans]).T
        self._loss_sum_R.copy_(torch.tensor([plan.train_loss_sum for plan in plans], dtype=torch.float64))
        self._cursor_1.zero_()
        self._num_applied_R.zero_()
        self._is_alive_R.fill_(True)

    def __call__(self) -> None:
        """Do the next planned step."""
        starts_RB = self._starts_SRB.index_select(0, self._cursor_1).squeeze(0)
        steps_R = self._steps_SR.index_select(0, self._cursor_1).squeeze(0)
        progress_R = self._progress_SR.index_select(0, self._cursor_1).squeeze(0)
        lr_R = self._lr_SR.index_select(0, self._cursor_1).squeeze(0)
        tokens_RBT1 = self._tokens_N[starts_RB.unsqueeze(2) + self._offsets_T1]
        part = 0 if self._peers is None else self._peers.rank
        output = self._model(tokens_RBT1[..., :-1], StepRandomness(self._seeds_R, steps_R, progress_R, part))
        losses = training_losses(output, tokens_RBT1[..., 1:], self._weights)
        # Lanes share no parameter, so the gradient of the sum is each lane's own, whatever the others' losses are.
        torch.autograd.backward(losses.total_R.sum())
        total_R, language_model_R = losses.total_R.detach(), losses.language_model_R.detach()
        if self._peers is None:
            self._apply(lr_R, total_R, language_model_R)
            self._model.balance_experts(output.routings, self._is_alive_R)
        else:
            gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
            self._peers.average([*gradients, total_R, language_model_R])
            self._apply(lr_R, total_R, language_model_R)
            self._model.balance_experts(output.routings, self._is_alive_R, self._peers.average)
        # Without a gradient to add to, autograd hands its own buffer over: no clearing, no addition. And until the next
        # backward pass gradients take no memory.
        for parameter in self._parameters:
            parameter.grad = None
        self._cursor_1 += 1

    def _apply(self, lr_R: Tensor, total_loss_R: Tensor, train_loss_R: Tensor) -> None:
        """Clip and step each lane whose loss and gradient are finite; the others stay as they are, from now on."""
        gradients = [self._model.lane_gradients(position) for position in range(len(self._optimizers))]
        norm_R = torch.stack([get_total_norm(list(lane.values())) for lane in gradients])
        self._is_alive_R &= norm_R.isfinite() & total_loss_R.isfinite()
        grad_scales = (norm_R / self._max_norm_R).clamp(min=1).unbind()
        skips = (~self._is_alive_R).float().unbind()
        lane_parts = zip(self._optimizers, gradients, lr_R.unbind(), grad_scales, skips, strict=True)
        for optimizer, lane_gradients, lr, grad_scale, skip in lane_parts:
            optimizer.step(lane_gradients, lr=lr, grad_scale=grad_scale, skip=skip)
        self._loss_sum_R += train_loss_R.double().where(self._is_alive_R, 0.0)
        self._num_applied_R += self._is_alive_R

    def all_alive(self) -> bool:
        """Whether no lane has diverged; waits for a CUDA device."""
        return bool(self._is_alive_R.all())

    def results(self) -> list[LaneResult]:
        """What became of each lane since `begin`; waits for a CUDA device."""
        columns = zip(self._num_applied_R.tolist(), self._loss_sum_R.tolist(), self._is_alive_R.tolist(), strict=True)
        return [LaneResult(num_applied, loss_sum, is_alive) for num_applied, loss_sum, is_alive in columns]

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Within it steps run in full but change nothing: for warming kernels up and capturing them."""
        self._is_alive_R.fill_(False)
        yield
        self._cursor_1.zero_()
        self._is_alive_R.fill_(True)
