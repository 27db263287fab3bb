"""One trial trained for its full budget in a folder of its own: continued if it is there, written out when done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from moesearch.config.resolve import field_names, resolve
from moesearch.config.trial import TrialConfig
from moesearch.data.tokenizers import decode, sha256_of
from moesearch.data.tokens import TokenData
from moesearch.errors import CheckpointError, InputError
from moesearch.model.cost import num_steps
from moesearch.model.generation import generate
from moesearch.model.transformer import MoETransformer
from moesearch.training.checkpoints import has_checkpoint, load_checkpoint, save_checkpoint
from moesearch.training.evaluation import evaluate_split
from moesearch.training.milestone_weights import MilestoneWeights, mean_weights
from moesearch.training.model_card import model_card
from moesearch.training.model_folder import config_yaml, curve_row, write_model_folder
from moesearch.training.peers import Peers
from moesearch.training.points import EvalPoint
from moesearch.training.trainer import LaneTrainer

CHECKPOINT_SECONDS = 600.0
"""Longest time between two checkpoints, where milestones are rarer."""

SAMPLE_TOKENS = 500


class FullRun:
    """A trial alone in a trainer, with its folder."""

    def __init__(
        self,
        config: TrialConfig,
        tokens: TokenData,
        device: str,
        folder: Path,
        *,
        patience: int | None = None,
        average: int = 1,
        peers: Peers | None = None,
    ) -> None:
        """Start the trial, or take it up from the folder's newest checkpoint.

        Args:
            config: What to train.
            tokens: Its text.
            device: A device as torch names it.
            folder: Where all of the run lies.
            patience: Stop after so many milestones without a new lowest validation loss, and keep the lowest's weights.
                All milestones are then evaluated on the whole validation split, so that any of them may be the result.
            peers: The processes that train it together; None where this is the only one.
            average: Keep the mean of the weights at the last so many milestones (Kaddour 2022, "Stop wasting my time").

        Raises:
            InputError: the batch cannot be shared out, or the folder holds another run, or no intact checkpoint among
                those that it has.
        """
        if peers is not None and config.data.batch_size % peers.count:
            raise InputError(
                f"data.batch_size ({config.data.batch_size}) must be a multiple of the {peers.count} processes that "
                "torchrun starts; set it so, or start others"
            )
        self._peers = peers
        self._patience = patience
        self._average = average
        self._weights = MilestoneWeights(folder / "milestones")
        if patience is not None:
            config = resolve(config, {"budget.milestone_share": 1.0})
        self._config = config = config.fitted(tokens.facts.bytes_per_token)
        self.tokens = tokens
        self._folder = folder
        self._checkpoints = folder / "checkpoints"
        self._device = device
        self._trainer = LaneTrainer(tokens, device=device, peers=peers)
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
        """Whether it was trained to its end, or early stopping says that this is enough."""
        return self.is_stopped_early or any(point.is_last and not point.is_diverged for point in self.points)

    @property
    def is_stopped_early(self) -> bool:
        """Whether the last ``patience`` milestones brought no new lowest validation loss."""
        if self._patience is None or not self.points or self.points[-1].is_diverged:
            return False
        return self.points[-1].milestone - self.best.milestone >= self._patience

    @property
    def best(self) -> EvalPoint:
        """The milestone of the lowest validation loss."""
        return min((point for point in self.points if not point.is_diverged), key=lambda point: point.val_loss)

    def train(self, should_stop: Callable[[], bool]) -> Iterator[EvalPoint]:
        """Train to the end, to divergence or until stopped; a milestone is in a checkpoint before it is handed over."""
        is_over = self.is_complete
        while not is_over and not self._agreed(should_stop()):
            due = time.monotonic() + CHECKPOINT_SECONDS
            reached = [point for _, point in self._trainer.advance(partial(self._is_to_pause, should_stop, due))]
            has_diverged = any(point.is_diverged for point in reached)
            if not has_diverged and (self._peers is None or self._peers.is_first):
                checkpoint = self._trainer.checkpoint(0)
                if reached and (self._average > 1 or self._patience is not None):
                    self._weights.save(checkpoint.step, checkpoint.parameters)
                    self._weights.keep(self._wanted_steps())
                save_checkpoint(checkpoint, self._checkpoints)
            is_over = self._agreed(has_diverged or self.is_complete)
            yield from reached

    def _is_to_pause(self, should_stop: Callable[[], bool], due: float) -> bool:
        """Whether to stop, or to write a checkpoint, which is due at that time."""
        return self._agreed(should_stop() or time.monotonic() > due)

    def _agreed(self, flag: bool) -> bool:
        """What all processes go by: yes if one of them says so."""
        return flag if self._peers is None else self._peers.any(flag)

    def _wanted_steps(self) -> list[int]:
        """The milestones whose weights are, or may become, part of the result."""
        if self._patience is not None:
            return [self.best.step]
        return [point.step for point in self.points[-self._average :]]

    def write_results(self) -> str:
        """Write RESULT_FILES; returns the text that the trained model generates."""
        tokens, last = self.tokens, self.points[-1]
        # Runs that were begun without patience have their last weights alone.
        point = self.best if self._patience is not None and self._weights.has(self.best.step) else last
        weights, sentence = self._result_weights(point)
        model = self._trainer.model(0)
        model.load_lane(0, weights)
        found = curve_row(point)
        if self._average > 1 and len(self._wanted_steps()) > 1:
            results = evaluate_split(model, tokens.val.to(model.device), tokens.bytes_per_id_V)
            assert results is not None
            loss, bits = results[0].loss, results[0].bits_per_byte
            found |= {"averaged_val_loss": loss, "averaged_val_bpb": bits}
            sentence += f" Their loss is {loss:.4f} nats per token, {bits:.4f} bits per byte."
        sample = self._sample(model)
        provenance = {
            "corpus": tokens.corpus_name,
            "corpus_sha256": tokens.corpus_sha256,
            "tokenizer_sha256": sha256_of(tokens.tokenizer),
        }
        texts = {
            "config.yaml": config_yaml(self._config, provenance, found),
            "tokenizer.json": tokens.tokenizer.to_json(),
            "sample.txt": sample,
            "README.md": model_card(self._config, tokens, point, weights=sentence, device=self._device),
        }
        write_model_folder(self._folder, weights, texts, self.points)
        return sample

    def _result_weights(self, point: EvalPoint) -> tuple[Mapping[str, Tensor], str]:
        """The weights to hand over, on the host, and what they are in a sentence."""
        held = {step: self._weights.load(step) for step in self._wanted_steps() if self._weights.has(step)}
        if self._patience is not None and point.step in held:
            how = "the lowest of the run" if self.is_stopped_early else "the lowest of a run that went to its end"
            return held[point.step], f"The weights are those of step {point.step:,}, whose validation loss was {how}."
        if self._average > 1 and len(held) > 1:
            steps = ", ".join(f"{step:,}" for step in held)
            sentence = f"That is the loss of the last step; the weights are the mean of those at steps {steps}."
            return mean_weights(list(held.values())), sentence
        return self._trainer.checkpoint(0).parameters, f"The weights are those of the last step, {self.step:,}."

    def _sample(self, model: MoETransformer) -> str:
        """Text from a line break or, in a tokenizer without one, from the training split's first token."""
        tokenizer = self.tokens.tokenizer
        prompt = [tokenizer.pieces.index(b"\n")] if b"\n" in tokenizer.pieces else self.tokens.train[:1].tolist()
        return decode(tokenizer, generate(model, 0, prompt, SAMPLE_TOKENS, seed=self._config.seed)).strip()


def _differences(theirs: TrialConfig, ours: TrialConfig) -> str:
    pairs = [(path, _value(theirs, path), _value(ours, path)) for path in field_names()]
    return ", ".join(f"{path} is {there} there and {here} here" for path, there, here in pairs if there != here)


def _value(config: TrialConfig, path: str) -> object:
    value: object = config
    for part in path.split("."):
        value = getattr(value, part)
    return value
