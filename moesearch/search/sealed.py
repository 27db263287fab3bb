"""The one look at the test split: ``python -m moesearch.search.sealed``, a short process, started by the supervisor.

Nothing else in a study evaluates the test split. It needs torch, which the supervisor does without.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from moesearch.errors import CheckpointError
from moesearch.search.checkpoint_files import checkpoints_at

SAMPLE_TOKENS = 300


def look(place: str, keys: Sequence[str], device: str) -> dict[str, Any]:
    """What the models say, of those whose checkpoint is there.

    ``losses`` holds nats per token and bits per byte of each on the test split, ``sample`` a text by the first one.
    """
    from moesearch.data.tokenizers import decode
    from moesearch.data.tokens import Texts
    from moesearch.model.generation import generate
    from moesearch.training.trainer import LaneTrainer

    texts, checkpoints = Texts(), checkpoints_at(place)
    losses: list[tuple[float, float]] = []
    sample = ""
    for key in keys:
        try:
            checkpoint = checkpoints.load(key)
        except CheckpointError:
            continue
        if checkpoint is None:
            continue
        tokens = texts.of(checkpoint.config.data)
        trainer = LaneTrainer(tokens, device=device)
        trainer.load(0, checkpoint.config, checkpoint)
        loss = trainer.evaluate(0, "test")
        losses.append((loss.loss, loss.bits_per_byte))
        if not sample:
            # It begins as the validation text does, by one token.
            ids = generate(trainer.model(0), 0, tokens.val[:1].tolist(), SAMPLE_TOKENS, checkpoint.config.seed)
            sample = decode(tokens.tokenizer, ids)
    return {"losses": losses, "sample": sample}


def main() -> int:
    order = json.load(sys.stdin)
    json.dump(look(order["place"], order["keys"], order["device"]), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
