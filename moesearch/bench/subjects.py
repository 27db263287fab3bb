"""What is timed of ours: the trainer's own steps and evaluations, and the model's forward and backward pass.

Shapes:  R lanes   B batch   T context   N tokens
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from moesearch.config.trial import TrialConfig
from moesearch.data.batches import BatchOrder
from moesearch.data.tokens import TokenData
from moesearch.model.losses import LossWeights, training_losses
from moesearch.model.randomness import StepRandomness
from moesearch.model.transformer import MoETransformer
from moesearch.training.trainer import LaneTrainer


class TrainerSteps:
    """Training steps as a study runs them: ``LaneTrainer`` with every lane loaded with one configuration."""

    def __init__(self, config: TrialConfig, tokens: TokenData, *, num_lanes: int = 1, device: str) -> None:
        self.trainer = LaneTrainer(tokens, num_lanes=num_lanes, device=device)
        self.num_lanes = num_lanes
        for lane in range(num_lanes):
            self.trainer.load(lane, config.model_copy(update={"seed": lane}))

    def steps(self, num_steps: int) -> None:
        """Train all lanes for so many steps, which must end before their next milestone."""
        points = self.trainer.advance(should_stop=after(num_steps))
        assert not points, "a timed step ran into a milestone"

    def milestone(self) -> None:
        """Train all lanes to their next milestone and evaluate them there."""
        points = self.trainer.advance()
        assert len(points) == len({lane for lane, _ in points}) > 0, "the lanes have come to their end"

    def evaluate(self) -> None:
        """One exact evaluation of all lanes on the validation split, as at a milestone that they reach together."""
        self.trainer.evaluate_together(range(self.num_lanes), "val")


class ForwardBackward:
    """Forward and backward pass of the model alone, no optimizer, on a model of one lane."""

    def __init__(self, model: MoETransformer, tokens: TokenData) -> None:
        (config,), device = model.configs, model.device
        self.model = model
        self.weights = LossWeights.of([config], device)
        order = BatchOrder(config.order_seed, len(tokens.train), config.data.batch_size, config.model.context)
        windows_B1 = order.window_starts(0).unsqueeze(1)
        window_BT1 = tokens.train[windows_B1 + torch.arange(config.model.context + 1)].to(device)
        self.inputs_RBT, self.targets_RBT = window_BT1[None, :, :-1], window_BT1[None, :, 1:]
        self.seeds_R = torch.tensor([config.seed], device=device)
        self.num_passes = 0

    def __call__(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None
        randomness = StepRandomness(self.seeds_R, torch.full_like(self.seeds_R, self.num_passes))
        output = self.model(self.inputs_RBT, randomness)
        torch.autograd.backward(training_losses(output, self.targets_RBT, self.weights).total_R.sum())
        self.num_passes += 1


def after(num_steps: int) -> Callable[[], bool]:
    """A ``should_stop`` that says so once it was asked before each of so many steps."""
    times_asked = 0

    def should_stop() -> bool:
        nonlocal times_asked
        times_asked += 1
        return times_asked > num_steps

    return should_stop
