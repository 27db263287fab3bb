"""Tiny models and a tiny corpus: a training step takes milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from moesearch.config.resolve import resolve
from moesearch.config.trial import BudgetConfig, DataConfig, ModelConfig, MoEConfig, TrialConfig
from moesearch.data.corpora import Corpus
from moesearch.data.tokens import TokenData, tokenize
from moesearch.training.points import EvalPoint
from moesearch.training.trainer import LaneTrainer

_LINE = "to be or not to be that is the question whether tis nobler in the mind to suffer"

BASE = TrialConfig(
    model=ModelConfig(width=8, num_layers=2, num_heads=2, context=8, dropout=0.0),
    moe=MoEConfig(num_experts=4, top_k=2, noise=False),
    data=DataConfig(batch_size=4),
    budget=BudgetConfig(steps=20, milestones=4),
)

RANDOM: dict[str, object] = {"model.dropout": 0.2, "moe.noise": True}
"""Parameters that switch dropout and router noise on."""

DIVERGING: dict[str, object] = {"optim.lr": 100.0, "optim.weight_decay": 100.0}
"""Each step multiplies the parameters by -9999: they overflow within a dozen steps."""


def text(num_characters: int, seed: int) -> str:
    """Words in random order: a text that a tiny model can learn something about."""
    generator = torch.Generator().manual_seed(seed)
    words = _LINE.split()
    picks = torch.randint(len(words), (num_characters,), generator=generator).tolist()
    return " ".join(words[pick] for pick in picks)[:num_characters]


def tokens(name: str = "words") -> TokenData:
    return tokenize(Corpus(name, train=text(2000, 0), val=text(405, 1), test=text(305, 2), sha256=name))


TOKENS = tokens()


def trial(params: Mapping[str, object] | None = None, **seeds: int) -> TrialConfig:
    """BASE with some fields (dotted paths) changed."""
    return resolve(BASE, params or {}, **seeds)


def trainer_of(*configs: TrialConfig) -> LaneTrainer:
    """A trainer whose lanes hold these trials."""
    trainer = LaneTrainer(TOKENS, num_lanes=len(configs))
    for lane, config in enumerate(configs):
        trainer.load(lane, config)
    return trainer


def curve(config: TrialConfig) -> list[EvalPoint]:
    """All points of a trial that trains alone."""
    return run_to_end(trainer_of(config))[0]


def run_to_end(trainer: LaneTrainer) -> dict[int, list[EvalPoint]]:
    """Points of each lane until no lane trains on."""
    points: dict[int, list[EvalPoint]] = {}
    while reached := trainer.advance():
        for lane, point in reached:
            points.setdefault(lane, []).append(point)
    return points


def losses(points: list[EvalPoint]) -> list[tuple[Any, ...]]:
    """What of a curve must be reproducible: everything but the seconds."""
    return [
        (point.milestone, point.step, point.train_loss, point.val_loss, point.val_bpb, point.val_block_losses)
        for point in points
    ]


def stop_after(num_looks: int) -> Callable[[], bool]:
    """A ``should_stop`` that says yes from its look number ``num_looks`` (counted from 0) on."""
    looks = iter(range(num_looks))
    return lambda: next(looks, None) is None
