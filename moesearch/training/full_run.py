"""One trial trained for its full budget in a folder of its own: continued if it is there, written out when done."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from moesearch.config.dumper import dump_yaml
from moesearch.config.quantities import ROUTER_QUANTITIES
from moesearch.config.resolve import field_names
from moesearch.config.trial import TrialConfig
from moesearch.data.tokenizers import decode, sha256_of
from moesearch.data.tokens import TokenData
from moesearch.errors import CheckpointError, InputError
from moesearch.model.cost import num_steps
from moesearch.model.generation import generate
from moesearch.training.checkpoints import (
    has_checkpoint,
    load_checkpoint,
    save_checkpoint,
    save_weights,
    write_durably,
)
from moesearch.training.points import EvalPoint
from moesearch.training.trainer import LaneTrainer

RESULT_FILES = ("model.safetensors", "config.yaml", "tokenizer.json", "curves.csv", "sample.txt")

CHECKPOINT_SECONDS = 600.0
"""Longest time between two checkpoints, where milestones are rarer."""

SAMPLE_TOKENS = 500

_CURVE_COLUMNS = (
    "milestone",
    "step",
    "tokens",
    "active_flops",
    "train_loss",
    "val_loss",
    "val_bpb",
    "train_seconds",
    "eval_seconds",
    *ROUTER_QUANTITIES,
)


class FullRun:
    """A trial alone in a trainer, with its folder."""

    def __init__(self, config: TrialConfig, tokens: TokenData, device: str, folder: Path) -> None:
        """Start the trial, or take it up from the folder's newest checkpoint.

        Raises:
            InputError: the folder holds another run, or no intact checkpoint among those that it has.
        """
        self._config = config = config.fitted(tokens.facts.bytes_per_token)
        self._tokens = tokens
        self._folder = folder
        self._checkpoints = folder / "checkpoints"
        self._trainer = LaneTrainer(tokens, device=device)
        self.num_steps = num_steps(config, tokens.vocab_size)
        if not has_checkpoint(self._checkpoints):
            self._trainer.load(0, config)
            return
        try:
            checkpoint = load_checkpoint(self._checkpoints)
            if checkpoint.config != config:
                raise InputError(
                    f"{folder}: holds a run of another configuration ({_differences(checkpoint.config, config)}); "
                    "give --out another folder, or remove this one"
                )
            self._trainer.load(0, config, checkpoint)
        except CheckpointError as error:
            raise InputError(f"{folder}: {error}") from None

    @property
    def step(self) -> int:
        return self._trainer.step(0)

    @property
    def points(self) -> tuple[EvalPoint, ...]:
        """All milestones so far."""
        return self._trainer.points(0)

    @property
    def is_complete(self) -> bool:
        return any(point.is_last and not point.is_diverged for point in self.points)

    def train(self, should_stop: Callable[[], bool]) -> Iterator[EvalPoint]:
        """Train to the end, to divergence or until stopped; a milestone is in a checkpoint before it is handed over."""
        is_over = self.is_complete
        while not is_over and not should_stop():
            due = time.monotonic() + CHECKPOINT_SECONDS
            reached = [point for _, point in self._trainer.advance(lambda: should_stop() or time.monotonic() > due)]  # noqa: B023
            has_diverged = any(point.is_diverged for point in reached)
            if not has_diverged:
                save_checkpoint(self._trainer.checkpoint(0), self._checkpoints)
            is_over = has_diverged or self.is_complete
            yield from reached

    def write_results(self) -> str:
        """Write RESULT_FILES; returns the text that the trained model generates."""
        tokens, points, sample = self._tokens, self.points, self._sample()
        provenance = {
            "corpus": tokens.corpus_name,
            "corpus_sha256": tokens.corpus_sha256,
            "tokenizer_sha256": sha256_of(tokens.tokenizer),
        }
        values = {"trial": self._config.model_dump(mode="json"), "data": provenance, "result": _row(points[-1])}
        texts = {
            "config.yaml": dump_yaml(values),
            "tokenizer.json": tokens.tokenizer.to_json(),
            "curves.csv": _curve_csv(points),
            "sample.txt": sample,
        }
        save_weights(self._trainer.checkpoint(0).parameters, self._folder / "model.safetensors")
        for name, text in texts.items():
            write_durably(self._folder / name, text.encode())
        return sample

    def _sample(self) -> str:
        """Text from a line break or, in a tokenizer without one, from the training split's first token."""
        tokenizer = self._tokens.tokenizer
        prompt = [tokenizer.pieces.index(b"\n")] if b"\n" in tokenizer.pieces else self._tokens.train[:1].tolist()
        ids = generate(self._trainer.model(0), 0, prompt, SAMPLE_TOKENS, seed=self._config.seed)
        return decode(tokenizer, ids).strip()


def _differences(theirs: TrialConfig, ours: TrialConfig) -> str:
    pairs = [(path, _value(theirs, path), _value(ours, path)) for path in field_names()]
    return ", ".join(f"{path} is {there} there and {here} here" for path, there, here in pairs if there != here)


def _value(config: TrialConfig, path: str) -> object:
    value: object = config
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _row(point: EvalPoint) -> dict[str, object]:
    health = {} if point.router_health is None else point.router_health.summary()
    return {name: health.get(name, getattr(point, name, None)) for name in _CURVE_COLUMNS}


def _curve_csv(points: Sequence[EvalPoint]) -> str:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, _CURVE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(_row, points))
    return stream.getvalue()
