"""Weights of some milestones of a run, for early stopping and for averages."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from moesearch.training.checkpoints import save_weights


@dataclass(frozen=True)
class MilestoneWeights:
    """One file per milestone, by its step."""

    folder: Path

    def save(self, step: int, weights: Mapping[str, Tensor]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        save_weights(weights, self._path(step))

    def keep(self, steps: Collection[int]) -> None:
        """Remove all but these."""
        kept = {self._path(step).name for step in steps}
        for path in self.folder.glob("step-*.safetensors"):
            if path.name not in kept:
                path.unlink(missing_ok=True)

    def has(self, step: int) -> bool:
        return self._path(step).is_file()

    def load(self, step: int) -> dict[str, Tensor]:
        return safetensors.torch.load_file(self._path(step))

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}.safetensors"


def mean_weights(several: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each tensor, taken in float64."""
    return {
        name: torch.stack([weights[name].double() for weights in several]).mean(0).to(tensor.dtype)
        for name, tensor in several[0].items()
    }
