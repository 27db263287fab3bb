"""Replays a search on recorded curves, in simulated time: the real worker loop, with a table in place of training.

Each virtual worker is a lane of the loop, with a clock of its own that runs in units of compute: a milestone is done
when what it costs has passed. A configuration's next seed is the next of its recorded seeds, in an order that the
replay's own seed draws.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from threading import Event
from typing import Literal

import optuna

from moesearch.config.resolve import derive_seed
from moesearch.config.study import StudyConfig
from moesearch.config.trial import TrialConfig
from moesearch.results.table import Curve, CurveTable
from moesearch.search.claims import Claims
from moesearch.search.job import Job
from moesearch.search.memory import MemoryCheckpoints, MemoryStorage
from moesearch.search.pruning import make_pruner
from moesearch.search.suggest import make_sampler
from moesearch.search.view import RunView
from moesearch.search.worker import run_worker
from moesearch.search.worker_names import worker_name
from moesearch.training.points import EvalPoint

Unit = Literal["active_flops", "tokens"]
"""What compute is counted in."""


@dataclass(frozen=True)
class Reached:
    """A trial reached a milestone; ``spent`` is the compute of the whole study up to that moment."""

    spent: float
    fingerprint: str
    replicate: int
    milestone: int
    loss: float


@dataclass(frozen=True)
class Replayed:
    """A search from its start to its end."""

    reached: tuple[Reached, ...]
    num_trials: int
    """That were begun."""


@dataclass(frozen=True)
class Recorded:
    """A checkpoint: the milestones so far."""

    points: tuple[EvalPoint, ...]


class Seeds:
    """Which recorded seed a trial of a configuration gets: each once, in an order of this replay, then again."""

    def __init__(self, table: CurveTable, seed: int) -> None:
        draw = random.Random(seed)
        self._curves = {key: draw.sample(curves, len(curves)) for key, curves in table.seeds.items()}

    def curve(self, fingerprint: str, replicate: int) -> Curve:
        """The recorded curve of a configuration's trial."""
        curves = self._curves[fingerprint]
        return curves[replicate % len(curves)]


def replay(
    config: StudyConfig,
    table: CurveTable,
    *,
    num_workers: int = 1,
    unit: Unit = "active_flops",
    horizon: float = math.inf,
) -> Replayed:
    """Run a study on a table until its trials are done, or ``horizon`` of compute is spent.

    Its sampler, its pruner and its seeds are those of ``config``.
    """
    storage = MemoryStorage()
    study = optuna.create_study(
        storage=storage, study_name=config.name, sampler=make_sampler(config), pruner=make_pruner(config)
    )
    for params in config.enqueue:
        study.enqueue_trial(dict(params))
    claims = Claims(study, storage, nullcontext(), worker_name(), config.num_trials)
    view = RunView(None, config.name, "search", ("", ""))
    is_over = Event()

    def note(reached: Reached) -> None:
        if reached.spent >= horizon:
            is_over.set()

    trainer = TableTrainer(table, study_seed=config.sampler.seed, num_lanes=num_workers, unit=unit, note=note)
    run_worker(Job(config, claims, view, lambda _: {}, checkpoint_share=0.0), trainer, MemoryCheckpoints(), is_over)
    return Replayed(tuple(trainer.reached), len(study.get_trials(deepcopy=False)))


@dataclass
class _Lane:
    fingerprint: str
    replicate: int
    curve: Curve
    num_done: int
    due: float = 0.0
    """When the next milestone is reached, by the trainer's clock."""
    cost: float = 0.0
    """Of that milestone."""


class TableTrainer:
    """Stands in for LaneTrainer: what it would train was recorded."""

    def __init__(
        self, table: CurveTable, *, study_seed: int, num_lanes: int, unit: Unit, note: Callable[[Reached], None]
    ) -> None:
        self._seeds = Seeds(table, study_seed)
        self._study_seed = study_seed
        self._unit = unit
        self._note = note
        self._lanes: list[_Lane | None] = [None] * num_lanes
        self._clock = 0.0
        self._done = 0.0
        """Compute of trials that have left."""
        self.reached: list[Reached] = []

    @property
    def free_lanes(self) -> tuple[int, ...]:
        """Lanes that wait for a trial."""
        return tuple(index for index, lane in enumerate(self._lanes) if lane is None)

    def load(self, lane: int, config: TrialConfig, checkpoint: Recorded | None = None) -> None:
        """Fill a free lane with a trial of the table."""
        fingerprint = config.fingerprint()
        replicate = self._replicate(fingerprint, config.seed)
        num_done = 0 if checkpoint is None else len(checkpoint.points)
        self._lanes[lane] = _Lane(fingerprint, replicate, self._seeds.curve(fingerprint, replicate), num_done)
        self._set_out(self._loaded(lane))

    def free(self, lane: int) -> None:
        """Forget a lane's trial."""
        self._lanes[lane] = None

    def advance(self, should_stop: Callable[[], bool]) -> list[tuple[int, EvalPoint]]:
        """The milestone that is reached next, of whatever lane."""
        index, lane = min(
            ((index, lane) for index, lane in enumerate(self._lanes) if lane is not None and not _is_done(lane)),
            key=lambda pair: pair[1].due,
        )
        self._clock = lane.due
        point = _eval_point(lane.curve, lane.num_done)
        lane.num_done += 1
        self._done += lane.cost
        self._set_out(lane)
        self.reached.append(Reached(self._spent(), lane.fingerprint, lane.replicate, point.milestone, point.val_loss))
        self._note(self.reached[-1])
        return [(index, point)]

    def checkpoint(self, lane: int) -> Recorded:
        """A lane's trial as it stands."""
        loaded = self._loaded(lane)
        return Recorded(tuple(_eval_point(loaded.curve, index) for index in range(loaded.num_done)))

    def _loaded(self, lane: int) -> _Lane:
        loaded = self._lanes[lane]
        assert loaded is not None, f"lane {lane} is free"
        return loaded

    def _set_out(self, lane: _Lane) -> None:
        lane.cost = 0.0 if _is_done(lane) else milestone_cost(lane.curve, lane.num_done, self._unit)
        lane.due = self._clock + lane.cost

    def _spent(self) -> float:
        """Compute so far, with what lies between milestones."""
        return self._done + sum(self._clock - (lane.due - lane.cost) for lane in self._lanes if lane is not None)

    def _replicate(self, fingerprint: str, seed: int) -> int:
        """Which seed of its configuration a trial has: its own seed is derived from that."""
        return next(index for index in range(10_000) if derive_seed(self._study_seed, fingerprint, index) == seed)


def milestone_cost(curve: Curve, index: int, unit: Unit) -> float:
    """Compute from one milestone to the next one, which is at ``index`` (from 0) of the curve."""
    return curve.points[index][unit] - (curve.points[index - 1][unit] if index else 0.0)


def _is_done(lane: _Lane) -> bool:
    return lane.num_done == len(lane.curve.points)


def _eval_point(curve: Curve, index: int) -> EvalPoint:
    row = curve.points[index]
    return EvalPoint(
        milestone=int(row["milestone"]),
        num_milestones=len(curve.points),
        step=int(row["step"]),
        tokens=int(row["tokens"]),
        active_flops=row["active_flops"],
        train_loss=row["train_loss"],
        val_loss=row["val_loss"],
        val_bpb=row["val_bpb"],
        val_block_losses=(),
        train_seconds=row["train_seconds"],
        eval_seconds=row["eval_seconds"],
    )
