"""The one look at the test split: ``python -m moesearch.search.sealed``, a short process, started by the supervisor.

Nothing else in a study evaluates the test split. It needs torch, which the supervisor does without.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from moesearch.errors import CheckpointError


def test_losses(folders: Sequence[Path], device: str) -> list[tuple[float, float]]:
    """Loss in nats per token and bits per byte on the test split, of each model whose checkpoint is there."""
    from moesearch.data.tokens import Texts
    from moesearch.training.checkpoints import has_checkpoint, load_checkpoint
    from moesearch.training.trainer import LaneTrainer

    texts = Texts()
    results = []
    for folder in folders:
        if not has_checkpoint(folder):
            continue
        try:
            checkpoint = load_checkpoint(folder)
        except CheckpointError:
            continue
        trainer = LaneTrainer(texts.of(checkpoint.config.data), device=device)
        trainer.load(0, checkpoint.config, checkpoint)
        loss = trainer.evaluate(0, "test")
        results.append((loss.loss, loss.bits_per_byte))
    return results


def main() -> int:
    order = json.load(sys.stdin)
    folders = [Path(folder) for folder in order["folders"]]
    results = test_losses(folders, order["device"])
    json.dump(results, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
