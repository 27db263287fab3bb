"""The loop with the real trainer: what lanes may not change, on models of a few thousand parameters."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from moesearch.config.study import StudyConfig
from moesearch.results.records import FINGERPRINT, OUTCOME, SEED
from moesearch.search.worker import run_worker
from moesearch.training.checkpoints import LaneCheckpoint
from moesearch.training.points import EvalPoint
from moesearch.training.trainer import LaneTrainer
from tests.search.stand_ins import begin, new_job, study_config
from tests.training.tiny import BASE, DIVERGING, TOKENS

LANE_KNOBS: dict[str, Any] = {
    "moe.num_experts": {"type": "categorical", "choices": [2, 4]},
    "moe.top_k": {"type": "categorical", "choices": [1, 2]},
    "optim.lr": {"type": "categorical", "choices": [1e-3, 1e-2]},
}
GRANULARITY: dict[str, Any] = {
    "moe.num_experts": {"type": "categorical", "choices": [4, 8]},
    "moe.top_k": {"type": "categorical", "choices": [1, 2, 4]},
}
SHAPE_KNOBS: dict[str, Any] = {
    "model.width": {"type": "categorical", "choices": [16, 32]},
    "data.batch_size": {"type": "categorical", "choices": [2, 4]},
    "moe.num_experts": {"type": "categorical", "choices": [2, 4]},
}


class MemoryCheckpoints:
    def __init__(self) -> None:
        self.saved: dict[str, LaneCheckpoint] = {}

    def save(self, key: str, checkpoint: LaneCheckpoint) -> None:
        self.saved[key] = checkpoint

    def load(self, key: str) -> LaneCheckpoint | None:
        return self.saved.get(key)

    def delete(self, key: str) -> None:
        self.saved.pop(key, None)


class StoppedTrainer(LaneTrainer):
    """Asks for a stop two steps after the first milestone."""

    def __init__(self, num_lanes: int, stop: threading.Event) -> None:
        super().__init__(TOKENS, num_lanes=num_lanes)
        self._stop = stop

    def advance(self, should_stop: Callable[[], bool] = lambda: False) -> list[tuple[int, EvalPoint]]:
        is_first, looks = not self.points(0), itertools.count()

        def look() -> bool:
            if not is_first and next(looks) == 2:
                self._stop.set()
            return should_stop()

        return super().advance(look)


def _config(search: dict[str, Any], **changes: Any) -> StudyConfig:
    base = BASE.model_dump(exclude={"seed"})
    return study_config(**{"search": search, "num_trials": 8, "base": base, **changes})


def _work(
    config: StudyConfig,
    folder: Path,
    num_lanes: int,
    *,
    trainer: LaneTrainer | None = None,
    checkpoints: MemoryCheckpoints | None = None,
    stop: threading.Event | None = None,
) -> optuna.Study:
    folder.mkdir(exist_ok=True)
    study = begin(config, folder)
    run_worker(
        new_job(config, folder),
        LaneTrainer(TOKENS, num_lanes=num_lanes) if trainer is None else trainer,
        MemoryCheckpoints() if checkpoints is None else checkpoints,
        threading.Event() if stop is None else stop,
    )
    return study


def _values(study: optuna.Study) -> dict[tuple[str, int], float | None]:
    return {(trial.user_attrs[FINGERPRINT], trial.user_attrs[SEED]): trial.value for trial in study.trials}


@pytest.fixture(scope="module")
def solo(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], float | None]:
    """What each trial of the lane knobs comes to with one lane."""
    return _values(_work(_config(LANE_KNOBS), tmp_path_factory.mktemp("solo"), 1))


def test_four_lanes_find_what_one_lane_finds(solo: dict[tuple[str, int], float | None], tmp_path: Path) -> None:
    values = _values(_work(_config(LANE_KNOBS), tmp_path, 4))
    assert len(values) == 8
    assert values == pytest.approx(solo, abs=1e-4)


def test_lanes_that_were_stopped_between_milestones_find_what_one_lane_finds(
    solo: dict[tuple[str, int], float | None], tmp_path: Path
) -> None:
    config, checkpoints, stop = _config(LANE_KNOBS), MemoryCheckpoints(), threading.Event()
    study = _work(config, tmp_path, 4, trainer=StoppedTrainer(4, stop), checkpoints=checkpoints, stop=stop)
    assert [trial.state.name for trial in study.trials] == ["WAITING"] * 4
    assert [checkpoint.step for checkpoint in checkpoints.saved.values()] == [7] * 4
    study = _work(config, tmp_path, 4, checkpoints=checkpoints)
    assert _values(study) == pytest.approx(solo, abs=1e-4)


def test_a_diverging_neighbour_changes_no_other_trial(
    solo: dict[tuple[str, int], float | None], tmp_path: Path
) -> None:
    # Another search of the same points, whose first trial overflows.
    weight_decay = {"type": "categorical", "choices": [BASE.optim.weight_decay, DIVERGING["optim.weight_decay"]]}
    rates = {"type": "categorical", "choices": [1e-3, 1e-2, DIVERGING["optim.lr"]]}
    search = {**LANE_KNOBS, "optim.lr": rates, "optim.weight_decay": weight_decay}
    config = _config(search, enqueue=(DIVERGING, *_points()))
    study = _work(config, tmp_path, 4)
    assert [trial.user_attrs[OUTCOME] for trial in study.trials] == ["diverged", *["complete"] * 8]
    values = _values(study)
    assert {key: values[key] for key in solo} == pytest.approx(solo, abs=1e-4)


def _points() -> list[dict[str, object]]:
    return [
        {"moe.num_experts": experts, "moe.top_k": top_k, "optim.lr": lr, "optim.weight_decay": BASE.optim.weight_decay}
        for experts in (2, 4)
        for top_k in (1, 2)
        for lr in (1e-3, 1e-2)
    ]


def test_a_search_over_shapes_trains_one_family_at_a_time(tmp_path: Path) -> None:
    study = _work(_config(SHAPE_KNOBS), tmp_path, 4)
    # The trainer refuses lanes of two families, so none was mixed.
    assert [trial.user_attrs[OUTCOME] for trial in study.trials] == ["complete"] * 8
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 8


def test_a_search_over_granularity_trains_one_width_of_experts_at_a_time(tmp_path: Path) -> None:
    config = _config(GRANULARITY, num_trials=6)
    base = config.base.model_copy(update={"moe": config.base.moe.model_copy(update={"iso_flops": True})})
    study = _work(config.model_copy(update={"base": base}), tmp_path, 4)
    assert [trial.user_attrs[OUTCOME] for trial in study.trials] == ["complete"] * 6
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 6
