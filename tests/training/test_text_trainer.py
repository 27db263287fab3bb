from __future__ import annotations

from pathlib import Path

import pytest

from moesearch.config.trial import TrialConfig
from moesearch.data.tokens import Texts
from moesearch.training.text_trainer import TextTrainer
from moesearch.training.trainer import LaneTrainer
from tests.training.tiny import BASE, losses, text


@pytest.fixture
def configs(tmp_path: Path) -> dict[str, TrialConfig]:
    """A trial per tokenizer on one text, each of which sees 12 bytes."""
    (tmp_path / "words.txt").write_text(text(6000, 3))
    data = {"text": str(tmp_path / "words.txt"), "context_bytes": 12, "vocab_size": 270, "batch_size": 4}

    def config(tokenizer: str) -> TrialConfig:
        section = type(BASE.data).model_validate({**data, "tokenizer": tokenizer})
        return BASE.model_copy(update={"data": section})

    return {tokenizer: config(tokenizer) for tokenizer in ("char", "byte", "bpe")}


def test_trials_of_any_tokenizer_train_one_after_the_other(configs: dict[str, TrialConfig], tmp_path: Path) -> None:
    texts = Texts(tmp_path / "cache")
    trainer = TextTrainer(texts, texts.of(configs["char"].data))
    for config in configs.values():
        trainer.load(0, config)
        points = [point for _, point in trainer.advance()]
        assert trainer.checkpoint(0).config.model.context == (7 if config.data.tokenizer == "bpe" else 12)
        trainer.free(0)
        alone = LaneTrainer(texts.of(config.data))
        alone.load(0, config)
        assert losses(points) == losses([point for _, point in alone.advance()])
        # An untrained or hardly trained model spreads its guesses over all ids, whatever these stand for.
        assert 2 < points[0].val_bpb < 9
        assert len(points[0].val_block_losses) == 64


def test_trials_of_two_tokenizers_do_not_train_side_by_side(configs: dict[str, TrialConfig], tmp_path: Path) -> None:
    texts = Texts(tmp_path / "cache")
    trainer = TextTrainer(texts, texts.of(configs["char"].data), num_lanes=2)
    trainer.load(0, configs["char"])
    with pytest.raises(ValueError, match="lanes must share one tokenizer, this one has byte"):
        trainer.load(1, configs["byte"])
