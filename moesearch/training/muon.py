"""Muon for the experts' weight matrices of one lane, all experts of a tensor at once.

torch.optim.Muon takes one matrix at a time, reads its learning rate on the host, and steps whatever the gradient is.
This is its algorithm for stacks of matrices, with rate, scale and skipping as tensors, as a captured step needs them.

Shapes:  E experts   I inputs   O outputs
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from moesearch.config.trial import OptimConfig

# A quintic whose slope at 0 is as large as it can be, so that five rounds lift small singular values: they end between
# about 0.7 and 1.2 rather than at 1 (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5
_EPS = 1e-7


def expert_matrices(names_and_tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of one lane that Muon is for: stacks of matrices, which experts alone have."""
    return {name: tensor for name, tensor in names_and_tensors.items() if tensor.ndim == 3}


class ExpertMuon:
    """Momentum (Nesterov's), orthogonalised, in place of the gradient (Jordan et al. 2024).

    An update is scaled by 0.2 sqrt(max(I, O)), which gives its entries the size of AdamW's (Liu et al. 2025, "Muon is
    scalable for LLM training", eq. 4): one learning rate and one weight decay serve both.
    """

    def __init__(self, optim: OptimConfig, parameters: Mapping[str, Tensor], lr_factors: Mapping[str, float]) -> None:
        self.parameters = parameters
        self.momentum = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        self._optim = optim
        self._lr_factors = lr_factors
        self._lr_ratio = torch.ones((), device=next(iter(parameters.values())).device)

    def configure(self, optim: OptimConfig) -> None:
        """Take over the learning rate of a configuration that differs in nothing else that is read here."""
        self._lr_ratio.fill_(1.0 if optim.muon_lr is None else optim.muon_lr / optim.lr)

    def step(self, gradients: Mapping[str, Tensor], *, lr: Tensor, grad_scale: Tensor, skip: Tensor) -> None:
        """One step, as ``LaneOptimizer.step``; ``lr`` is AdamW's, of which Muon's is a fixed multiple."""
        decay, beta = self._optim.weight_decay, self._optim.muon_momentum
        is_kept = skip > 0
        for name, parameter_EIO in self.parameters.items():
            gradient_EIO = gradients[name] / grad_scale
            momentum_EIO = self.momentum[name].lerp(gradient_EIO, 1 - beta)
            update_EIO = orthogonalized(gradient_EIO.lerp(momentum_EIO, beta)).to(parameter_EIO.dtype)
            factor = self._lr_factors.get(name, 1.0)
            rate = lr * self._lr_ratio
            size = 0.2 * math.sqrt(max(parameter_EIO.shape[1:]))
            stepped_EIO = parameter_EIO * (1 - rate * decay) - rate * (factor * size) * update_EIO
            # A gradient that is not finite must leave no trace, so the old values are chosen, not added to.
            parameter_EIO.copy_(torch.where(is_kept, parameter_EIO, stepped_EIO))
            self.momentum[name].copy_(torch.where(is_kept, self.momentum[name], momentum_EIO))


def orthogonalized(matrices_EIO: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Each matrix with its singular values brought near 1, by Newton-Schulz rounds.

    ``dtype`` is that of the products: bfloat16, which suffices, on CUDA, and float32 where bfloat16 is slow.
    """
    if dtype is None:
        dtype = torch.bfloat16 if matrices_EIO.device.type == "cuda" else torch.float32
    is_tall = matrices_EIO.shape[1] > matrices_EIO.shape[2]
    x_EAB = (matrices_EIO.mT if is_tall else matrices_EIO).to(dtype)
    # The norm bounds the largest singular value, and the rounds converge from 1 down.
    x_EAB = x_EAB / x_EAB.norm(dim=(1, 2), keepdim=True).clamp(min=_EPS)
    a, b, c = _COEFFICIENTS
    for _ in range(_ROUNDS):
        gram_EAA = torch.bmm(x_EAB, x_EAB.mT)
        polynomial_EAA = torch.baddbmm(gram_EAA, gram_EAA, gram_EAA, beta=b, alpha=c)
        x_EAB = torch.baddbmm(x_EAB, polynomial_EAA, x_EAB, beta=a)
    return x_EAB.mT if is_tall else x_EAB
