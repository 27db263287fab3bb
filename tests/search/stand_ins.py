"""A trainer of recorded curves and what goes with it, so that the real loop runs in milliseconds."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any

import optuna
from optuna.storages import RDBStorage

from moesearch.config.study import StudyConfig
from moesearch.config.trial import TrialConfig
from moesearch.search.claims import requeue_stale
from moesearch.search.confirm import queue_due_runs
from moesearch.search.job import Job
from moesearch.search.storage import open_storage
from moesearch.search.study import join_study, open_claims, open_study
from moesearch.search.view import RunView, Tracker
from moesearch.search.worker import run_worker
from moesearch.training.points import EvalPoint

MILESTONES = 4


def study_config(**changes: Any) -> StudyConfig:
    """Twelve points, ten of them feasible, and 4 milestones."""
    values: dict[str, Any] = {
        "name": "toy",
        "num_trials": 6,
        "pruner": {"type": "none"},
        "base": {"budget": {"steps": 40, "milestones": MILESTONES}},
        "search": {
            "moe.num_experts": {"type": "categorical", "choices": [2, 4, 8]},
            "moe.top_k": {"type": "categorical", "choices": [1, 4]},
            "moe.noise": {"type": "categorical", "choices": [True, False]},
        },
        "confirm": {"top": 0},
        "control": "none",
    }
    return StudyConfig.model_validate({**values, **changes})


def curve(config: TrialConfig) -> list[float]:
    """A loss per milestone, a pure function of the configuration and its seed."""
    noise = int.from_bytes(hashlib.sha256(str(config.seed).encode()).digest()[:4], "big") / 2**32
    final = 2.0 + 0.1 * config.moe.top_k - 0.01 * config.moe.num_experts + 0.05 * config.moe.noise + 0.001 * noise
    return [final + (MILESTONES - milestone) for milestone in range(1, MILESTONES + 1)]


@dataclass(frozen=True)
class TableCheckpoint:
    points: tuple[EvalPoint, ...]


class TableTrainer:
    """LaneTrainer's methods over ``curve``. A milestone takes ``seconds``."""

    def __init__(
        self, *, seconds: float = 0.0, num_lanes: int = 1, losses: Callable[[TrialConfig], list[float]] = curve
    ) -> None:
        self.seconds = seconds
        self.losses = losses
        self.lanes: list[tuple[TrialConfig, list[EvalPoint]] | None] = [None] * num_lanes
        self.trained: list[tuple[str, int, int]] = []
        """(fingerprint, seed, milestone) of every milestone that was trained."""

    @property
    def free_lanes(self) -> tuple[int, ...]:
        return tuple(index for index, lane in enumerate(self.lanes) if lane is None)

    def load(self, lane: int, config: TrialConfig, checkpoint: TableCheckpoint | None = None) -> None:
        self.lanes[lane] = (config, [] if checkpoint is None else list(checkpoint.points))

    def free(self, lane: int) -> None:
        self.lanes[lane] = None

    def advance(self, should_stop: Callable[[], bool]) -> list[tuple[int, EvalPoint]]:
        deadline = time.monotonic() + self.seconds
        while time.monotonic() < deadline:
            if should_stop():
                return []
            time.sleep(0.002)
        results = []
        for lane, loaded in enumerate(self.lanes):
            if loaded is None or len(loaded[1]) == MILESTONES:
                continue
            config, points = loaded
            milestone = len(points) + 1
            loss = self.losses(config)[milestone - 1]
            points.append(point(milestone, loss))
            self.trained.append((config.fingerprint(), config.seed, milestone))
            results.append((lane, points[-1]))
        return results

    def checkpoint(self, lane: int) -> TableCheckpoint:
        loaded = self.lanes[lane]
        assert loaded is not None
        return TableCheckpoint(tuple(loaded[1]))


def point(milestone: int, loss: float) -> EvalPoint:
    return EvalPoint(
        milestone=milestone,
        num_milestones=MILESTONES,
        step=10 * milestone,
        tokens=100 * milestone,
        active_flops=1e6 * milestone,
        train_loss=loss,
        val_loss=loss,
        val_bpb=loss / 2,
        val_block_losses=(loss, loss),
        train_seconds=float(milestone),
        eval_seconds=0.1 * milestone,
        is_diverged=loss != loss,
    )


class JsonCheckpoints:
    """One file per trial, replaced as a whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, key: str, checkpoint: TableCheckpoint) -> None:
        path = self.folder / f"{key}.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps([asdict(point) for point in checkpoint.points]))
        temporary.replace(path)

    def load(self, key: str) -> TableCheckpoint | None:
        path = self.folder / f"{key}.json"
        if not path.exists():
            return None
        return TableCheckpoint(tuple(map(EvalPoint.from_record, json.loads(path.read_text()))))

    def delete(self, key: str) -> None:
        (self.folder / f"{key}.json").unlink(missing_ok=True)


def url_of(folder: Path) -> str:
    """The store of a test's folder: SQLite in it, or what ``use_store`` chose, also in other processes."""
    chosen = folder / "store-url"
    return chosen.read_text() if chosen.exists() else f"sqlite:///{folder / 'optuna.db'}"


def use_store(folder: Path, url: str) -> None:
    (folder / "store-url").write_text(url)


@cache
def _empty_store() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        open_storage(url_of(Path(folder))).engine.dispose()
        return (Path(folder) / "optuna.db").read_bytes()


def storage_in(folder: Path, heartbeat_interval: int = 30, grace_period: int = 120) -> RDBStorage:
    """The store of a test's folder, opened once per process: creating one takes a tenth of a second."""
    return _open(folder, heartbeat_interval, grace_period)


@cache
def _open(folder: Path, heartbeat_interval: int, grace_period: int) -> RDBStorage:
    url = url_of(folder)
    if url.startswith("sqlite") and not (folder / "optuna.db").exists():
        (folder / "optuna.db").write_bytes(_empty_store())
    storage = open_storage(
        url, heartbeat_interval=heartbeat_interval, grace_period=grace_period, on_stale=requeue_stale
    )
    _opened.append(storage)
    return storage


_opened: list[RDBStorage] = []


def close_stores() -> None:
    """End the connections of all stores that were opened in this process."""
    _open.cache_clear()
    while _opened:
        storage = _opened.pop()
        storage.remove_session()
        storage.engine.dispose()


def new_job(
    config: StudyConfig,
    folder: Path,
    *,
    worker: str | None = None,
    study: optuna.Study | None = None,
    tracker: Tracker | None = None,
    heartbeat_interval: int = 30,
    grace_period: int = 120,
    keeps_checkpoints: bool = False,
    is_time_up: Callable[[], bool] | None = None,
) -> Job:
    """What a worker process makes for itself, of a study that was opened before."""
    storage = storage_in(folder, heartbeat_interval, grace_period)
    claims = open_claims(
        config,
        storage,
        join_study(config, storage) if study is None else study,
        is_search=study is None,
        is_time_up=is_time_up,
    )
    claims.worker = claims.worker if worker is None else worker
    view = RunView(tracker, config.name, "search", ("text", "00" * 32))
    confirm = study
    return Job(
        config,
        claims,
        view,
        facts=lambda _: {"total_params": 1},
        keeps_checkpoints=keeps_checkpoints,
        queue_more=None if confirm is None else lambda: queue_due_runs(config, storage, confirm),
        checkpoint_share=math.inf,  # milestones take no time here, and each shall have its checkpoint
    )


def begin(config: StudyConfig, folder: Path) -> optuna.Study:
    """Open the study as the command does."""
    return open_study(config, storage_in(folder), fresh=False)


def work(
    config: StudyConfig,
    folder: Path,
    *,
    trainer: TableTrainer | None = None,
    checkpoints: JsonCheckpoints | None = None,
    stop: Event | None = None,
    **changes: Any,
) -> TableTrainer:
    """Run one worker in this process until it leaves."""
    trainer = TableTrainer() if trainer is None else trainer
    checkpoints = JsonCheckpoints(folder / "checkpoints") if checkpoints is None else checkpoints
    run_worker(new_job(config, folder, **changes), trainer, checkpoints, stop or Event())
    return trainer


@cache
def searched_store(config_json: str) -> bytes:
    """A SQLite file in which the search of a study is over; ``config_json`` is the study, which makes it cacheable."""
    with TemporaryDirectory() as name:
        config = StudyConfig.model_validate_json(config_json)
        begin(config, Path(name))
        work(config, Path(name))
        storage_in(Path(name)).engine.dispose()
        return (Path(name) / "optuna.db").read_bytes()
