"""A trainer for trials that may differ in their tokenizer: those that train side by side share one."""

from __future__ import annotations

from collections.abc import Callable

from moesearch.config.trial import TrialConfig
from moesearch.data.tokens import Texts, TokenData
from moesearch.training.checkpoints import LaneCheckpoint
from moesearch.training.evaluation import never
from moesearch.training.points import EvalPoint
from moesearch.training.trainer import LaneTrainer


class TextTrainer:
    """A LaneTrainer over the text, in the tokens of the trials that are loaded; empty, it takes trials of any other."""

    def __init__(self, texts: Texts, tokens: TokenData, *, num_lanes: int = 1, device: str = "cpu") -> None:
        """``tokens`` are those of the first trials, most likely."""
        self._texts = texts
        self._tokens = tokens
        self._num_lanes = num_lanes
        self._device = device
        self._trainer = LaneTrainer(tokens, num_lanes=num_lanes, device=device)

    @property
    def free_lanes(self) -> tuple[int, ...]:
        return self._trainer.free_lanes

    def load(self, lane: int, config: TrialConfig, checkpoint: LaneCheckpoint | None = None) -> None:
        """As LaneTrainer.load; ValueError too if the trials that are training have another tokenizer."""
        tokens = self._texts.of(config.data)
        if tokens is not self._tokens:
            if len(self.free_lanes) < self._num_lanes:
                raise ValueError(f"lanes must share one tokenizer, this one has {config.data.tokenizer}")
            self._tokens = tokens
            self._trainer = LaneTrainer(tokens, num_lanes=self._num_lanes, device=self._device)
        self._trainer.load(lane, config, checkpoint)

    def free(self, lane: int) -> None:
        self._trainer.free(lane)

    def advance(self, should_stop: Callable[[], bool] = never) -> list[tuple[int, EvalPoint]]:
        return self._trainer.advance(should_stop)

    def checkpoint(self, lane: int) -> LaneCheckpoint:
        return self._trainer.checkpoint(lane)
