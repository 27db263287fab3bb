from __future__ import annotations

from pathlib import Path

import pytest
import torch
from optuna.trial import TrialState, create_trial

from moesearch.config.trial import TrialConfig
from moesearch.errors import DiskCapError
from moesearch.results.records import FINGERPRINT, REPLICATE
from moesearch.search.disk import DiskCap, DiskCheckpoints, losers_first, used_bytes
from moesearch.training.checkpoints import LaneCheckpoint, Progress, load_checkpoint

NUMBERS = 30_000
"""Of a checkpoint's tensors, three groups of a third: 4 bytes each, beside which the record is small."""


def checkpoint(step: int) -> LaneCheckpoint:
    groups = ({"w": torch.full((NUMBERS // 3,), step + share)} for share in (0.1, 0.2, 0.3))
    return LaneCheckpoint(TrialConfig(), "ab" * 32, step, Progress(), (), *groups)


def store_in(folder: Path, num_checkpoints: float, *dispensable: str) -> DiskCheckpoints:
    """Checkpoints under a cap of so many of them."""
    max_bytes = int(num_checkpoints * (4 * NUMBERS + 2500))
    root = folder / "study"
    cap = DiskCap(root, max_bytes, lambda: [root / name for name in dispensable])
    return DiskCheckpoints(root, cap)


def held(store: DiskCheckpoints) -> set[str]:
    return {path.name for path in store.root.iterdir() if store.load(path.name) is not None}


def test_without_a_cap_everything_is_kept(tmp_path: Path) -> None:
    store = DiskCheckpoints(tmp_path)
    for key in ("a-0", "b-0", "c-0"):
        store.save(key, checkpoint(1))
    assert held(store) == {"a-0", "b-0", "c-0"}


def test_losers_go_first_and_no_byte_is_over_the_cap(tmp_path: Path) -> None:
    store = store_in(tmp_path, 3, "worst-0", "bad-0", "fair-0")
    for key in ("fair-0", "bad-0", "worst-0", "new-0"):
        store.save(key, checkpoint(1))
        assert store.cap is not None
        assert used_bytes(store.root) <= store.cap.max_bytes
    assert held(store) == {"fair-0", "bad-0", "new-0"}


def test_spares_of_trials_in_training_go_before_a_save_is_refused(tmp_path: Path) -> None:
    store = store_in(tmp_path, 3)
    for step in (1, 2, 3):
        store.save("a-0", checkpoint(step))
    store.save("b-0", checkpoint(1))
    assert held(store) == {"a-0", "b-0"}
    assert load_checkpoint(store.root / "a-0").step == 3


def test_the_only_checkpoint_of_a_trial_in_training_is_never_deleted_for_another(tmp_path: Path) -> None:
    store = store_in(tmp_path, 1.5)
    store.save("a-0", checkpoint(1))
    with pytest.raises(DiskCapError, match=r"does not fit run\.max_disk_gb"):
        store.save("b-0", checkpoint(1))
    with pytest.raises(DiskCapError):  # while it is written, the one before must stay
        store.save("a-0", checkpoint(2))
    assert load_checkpoint(store.root / "a-0").step == 1
    assert store.cap is not None
    assert used_bytes(store.root) <= store.cap.max_bytes


def test_what_nobody_asks_for_goes_before_stopped_ones_models_and_those_that_wait(tmp_path: Path) -> None:
    states = {
        "wait": (TrialState.WAITING, 2.0),
        "waitbad": (TrialState.WAITING, 3.0),
        "model": (TrialState.COMPLETE, 1.0),
        "stopped": (TrialState.PRUNED, 4.0),
        "runs": (TrialState.RUNNING, 9.0),
        "failed": (TrialState.FAIL, 1.0),
    }
    trials = [
        create_trial(
            state=state,
            value=loss if state is TrialState.COMPLETE else None,
            user_attrs={FINGERPRINT: name, REPLICATE: 0},
            intermediate_values={1: loss},
        )
        for name, (state, loss) in states.items()
    ]
    for name in (*states, "orphan"):
        (tmp_path / f"{name}-0").mkdir()
    (tmp_path / "confirm").mkdir()
    order = [path.name.removesuffix("-0") for path in losers_first(tmp_path, trials)]
    assert set(order[:2]) == {"orphan", "failed"}
    assert order[2:] == ["stopped", "model", "waitbad", "wait"]
