"""AdamW, Muon for experts where asked, and the schedule, for one lane."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import assert_never

import torch
from torch import Tensor

from moesearch.config.trial import OptimConfig, TrialConfig
from moesearch.training.muon import ExpertMuon, expert_matrices


def learning_rate(config: TrialConfig, step: int, num_steps: int) -> float:
    """Learning rate of a step, counted from 0, of a run of ``num_steps``.

    Linear warm-up times one of three shapes: ``constant``; ``cosine`` from the end of the warm-up to the last step;
    ``wsd`` (warm-up, stable, decay; Hu et al. 2024), constant and linear over the last ``decay_fraction`` of the run.
    The last step of the latter two has exactly ``final_lr_fraction``.
    """
    optim = config.optim
    return optim.lr * _warmup_factor(config, step) * _decay_factor(config, step, num_steps)


def _warmup_factor(config: TrialConfig, step: int) -> float:
    # Warm-up is counted in tokens, so trials with different batch sizes share one schedule. The tokens of the step
    # itself count, so that the first step is not lost to a learning rate of 0.
    if config.optim.warmup_tokens == 0:
        return 1.0
    return min(1.0, (step + 1) * config.tokens_per_step / config.optim.warmup_tokens)


def _decay_factor(config: TrialConfig, step: int, num_steps: int) -> float:
    optim = config.optim
    last_step = num_steps - 1
    match optim.schedule:
        case "constant":
            return 1.0
        case "cosine":
            first_step = optim.warmup_tokens // config.tokens_per_step
            progress = _fraction(step, first_step, last_step)
            return optim.final_lr_fraction + (1 - optim.final_lr_fraction) * (1 + math.cos(math.pi * progress)) / 2
        case "wsd":
            first_step = last_step - round(optim.decay_fraction * num_steps)
            return 1 - (1 - optim.final_lr_fraction) * _fraction(step, first_step, last_step)
        case schedule:
            assert_never(schedule)


def _fraction(step: int, first_step: int, last_step: int) -> float:
    """How far a step is from the first (0) to the last (1)."""
    if step >= last_step:
        return 1.0
    return max(0, step - first_step) / (last_step - first_step)


class LaneOptimizer:
    """Fused AdamW over one lane's views, with the lane's own step counter, betas, eps and weight decay.

    Where the lane asks for it, Muon has the experts' matrices. Whether and how strongly a step is applied comes in
    tensors, so that a captured CUDA graph needs no host decision. The kernel is called directly: ``torch.optim.AdamW``
    around it keeps a counter per parameter, sorts the parameters anew in each step, and imports torch's compiler when
    it is made, which takes over a second.
    """

    def __init__(
        self, optim: OptimConfig, parameters: Mapping[str, Tensor], lr_factors: Mapping[str, float] | None = None
    ) -> None:
        """``lr_factors`` multiply the learning rates of some parameters, by name; the others have 1."""
        self.parameters = parameters
        self._optim = optim
        lr_factors = {} if lr_factors is None else lr_factors
        matrices = expert_matrices(parameters) if optim.expert_optimizer == "muon" else {}
        self._muon = ExpertMuon(optim, matrices, lr_factors) if matrices else None
        self.exp_avg = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        """First moments by the names of the parameters; Muon's momentum, where it has them."""
        if self._muon is not None:
            self.exp_avg |= self._muon.momentum
        by_adamw = [name for name in parameters if name not in matrices]
        self.exp_avg_sq = {name: torch.zeros_like(parameters[name]) for name in by_adamw}
        """Second moments of AdamW likewise."""
        self._names_by_lr_factor: dict[float, list[str]] = {}
        for name in by_adamw:
            self._names_by_lr_factor.setdefault(lr_factors.get(name, 1.0), []).append(name)
        self._step = torch.zeros((), device=next(iter(parameters.values())).device)
        self.configure(optim)

    def configure(self, optim: OptimConfig) -> None:
        """Take over what a captured step reads from tensors: see ``cuda_graph.captured_part``."""
        if self._muon is not None:
            self._muon.configure(optim)

    def reset(self) -> None:
        """Go back to step 0."""
        for tensor in (self._step, *self.exp_avg.values(), *self.exp_avg_sq.values()):
            tensor.zero_()

    def load(self, step: int, exp_avg: Mapping[str, Tensor], exp_avg_sq: Mapping[str, Tensor]) -> None:
        """Continue from a step, with these moments; they are copied."""
        self._step.fill_(step)
        for own, loaded in ((self.exp_avg, exp_avg), (self.exp_avg_sq, exp_avg_sq)):
            for name, tensor in own.items():
                tensor.copy_(loaded[name])

    def step(self, gradients: Mapping[str, Tensor], *, lr: Tensor, grad_scale: Tensor, skip: Tensor) -> None:
        """Apply one step on gradients divided by ``grad_scale``; where ``skip`` is 1.0, change nothing at all.

        All three are float32 scalars on the lane's device. The gradients are used up.
        """
        self._step += 1 - skip
        for factor, names in self._names_by_lr_factor.items():
            # What torch.amp.GradScaler hands to fused optimizers: the kernel itself divides by the one and does nothing
            # where the other is set, which costs no pass over the gradients.
            torch._fused_adamw_(
                [self.parameters[name] for name in names],
                [gradients[name] for name in names],
                [self.exp_avg[name] for name in names],
                [self.exp_avg_sq[name] for name in names],
                [],
                [self._step] * len(names),
                lr=lr if factor == 1.0 else lr * factor,
                beta1=self._optim.beta1,
                beta2=self._optim.beta2,
                # Decay is a part of the weights per step, lr * weight_decay, that no factor changes.
                weight_decay=self._optim.weight_decay / factor,
                eps=self._optim.eps,
                amsgrad=False,
                maximize=False,
                grad_scale=grad_scale,
                found_inf=skip,
            )
        if self._muon is not None:
            self._muon.step(gradients, lr=lr, grad_scale=grad_scale, skip=skip)
