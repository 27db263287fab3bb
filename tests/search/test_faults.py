from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from moesearch.config.study import PrunerConfig
from moesearch.config.trial import TrialConfig
from moesearch.results.records import ATTEMPT, OUTCOME, REASON, WORKER
from moesearch.search import faults
from moesearch.search.assignments import next_assignment
from moesearch.search.claims import Claims
from moesearch.search.deaths import MAX_MEMORY_DEATHS
from moesearch.search.faults import is_disk_full, num_oom_kills
from moesearch.search.headroom import MemoryCheck, Room, host_room
from moesearch.search.limits import collapse_reason
from moesearch.search.worker import run_worker
from tests.search.stand_ins import JsonCheckpoints, TableCheckpoint, TableTrainer, begin, new_job, study_config, work
from tests.search.test_claims import DEAD_WORKER

pytestmark = pytest.mark.usefixtures("every_store")

GB = 10**9


@pytest.fixture
def oom_counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kernel's count of the processes that it killed for memory."""
    counter = tmp_path / "vmstat"
    counter.write_text("nr_free_pages 7\noom_kill 3\n")
    monkeypatch.setattr(faults, "OOM_COUNTERS", (tmp_path / "missing", counter))
    return counter


def _work_with_memory(folder: Path, config: Any, needed: Callable[[TrialConfig], int], room: Room) -> TableTrainer:
    from dataclasses import replace

    trainer = TableTrainer(num_lanes=2)
    job = replace(new_job(config, folder), memory=MemoryCheck(needed, lambda: room))
    run_worker(job, trainer, JsonCheckpoints(folder / "checkpoints"), Event())
    return trainer


def test_a_trial_that_cannot_fit_ends_before_it_starts_and_says_what_it_needs(tmp_path: Path) -> None:
    config = study_config(num_trials=4)
    study = begin(config, tmp_path)

    def needed(trial: TrialConfig) -> int:
        return 9 * GB if trial.moe.num_experts == 8 else GB

    _work_with_memory(tmp_path, config, needed, Room(free=2 * GB, total=8 * GB))
    refused = [trial for trial in study.trials if trial.user_attrs[OUTCOME] == "out_of_memory"]
    assert refused
    assert all(trial.params["moe.num_experts"] == 8 and not trial.intermediate_values for trial in refused)
    assert refused[0].user_attrs[REASON] == "it needs about 9 GB of memory; 2 GB of 8 GB are free"
    assert refused[0].constraints["feasible"] == 1.0
    assert sum(trial.user_attrs[OUTCOME] == "complete" for trial in study.trials) == 4


def test_a_trial_that_would_fit_alone_waits_until_others_have_ended(tmp_path: Path) -> None:
    config = study_config(num_trials=4)
    study = begin(config, tmp_path)
    trainer = TableTrainer(num_lanes=2)

    def room() -> Room:
        return Room(free=GB * len(trainer.free_lanes), total=2 * GB)

    from dataclasses import replace

    job = replace(new_job(config, tmp_path), memory=MemoryCheck(lambda _: 2 * GB, room))
    run_worker(job, trainer, JsonCheckpoints(tmp_path / "checkpoints"), Event())
    assert [trial.user_attrs[OUTCOME] for trial in study.trials] == ["complete"] * 4
    seeds = [seed for _, seed, _ in trainer.trained]
    assert seeds == sorted(seeds, key=seeds.index), "two trained side by side"


def test_the_host_has_room_within_its_control_group() -> None:
    room = host_room()
    assert 0 < room.free <= room.total


def _dies_for_memory(claims: Claims, counter: Path, kills: int) -> FrozenTrial:
    assignment = next_assignment(claims, study_config())
    assert assignment is not None
    assert assignment.must_be_alone == (kills > 1)
    counter.write_text(f"oom_kill {3 + kills}\n")
    claims.recover()
    return claims.storage.get_trial(assignment.trial._trial_id)


def test_a_trial_whose_worker_was_killed_for_memory_trains_alone_and_then_is_given_up(
    tmp_path: Path, oom_counter: Path
) -> None:
    begin(study_config(), tmp_path)
    claims = new_job(study_config(), tmp_path, worker=DEAD_WORKER).claims
    for kills in range(1, MAX_MEMORY_DEATHS):
        assert _dies_for_memory(claims, oom_counter, kills).state is TrialState.WAITING
    last = _dies_for_memory(claims, oom_counter, MAX_MEMORY_DEATHS)
    assert (last.state, last.user_attrs[OUTCOME]) == (TrialState.PRUNED, "out_of_memory")
    assert last.constraints["feasible"] == 1.0


def test_a_death_without_a_kill_of_the_kernel_is_not_for_memory(tmp_path: Path, oom_counter: Path) -> None:
    begin(study_config(), tmp_path)
    claims = new_job(study_config(), tmp_path, worker=DEAD_WORKER).claims
    for _ in range(MAX_MEMORY_DEATHS + 1):
        assignment = next_assignment(claims, study_config())
        assert assignment is not None
        assert not assignment.must_be_alone
        claims.recover()


def test_a_trial_that_must_be_alone_has_no_company(tmp_path: Path, oom_counter: Path) -> None:
    config = study_config(num_trials=3)
    study = begin(config, tmp_path)
    dead = new_job(config, tmp_path, worker=DEAD_WORKER).claims
    _dies_for_memory(dead, oom_counter, 1)
    trainer = work(config, tmp_path, trainer=TableTrainer(num_lanes=2))
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 3
    first = trainer.trained[:4]
    assert len({seed for _, seed, _ in first}) == 1


def test_an_innocent_death_is_not_counted(tmp_path: Path) -> None:
    begin(study_config(), tmp_path)
    claims = new_job(study_config(), tmp_path, worker=DEAD_WORKER).claims
    for _ in range(7):
        assert next_assignment(claims, study_config()) is not None
        claims.recover(innocent=[DEAD_WORKER])
    (trial,) = claims.study.trials
    assert trial.state is TrialState.WAITING


def test_the_kernels_count_is_read_where_there_is_one(oom_counter: Path) -> None:
    assert num_oom_kills() == 3


class _SlowSecond(TableTrainer):
    """The second trial never reaches a milestone, but looks whether it should stop."""

    def advance(self, should_stop: Callable[[], bool]) -> list[Any]:
        configs = [loaded[0] for loaded in self.lanes if loaded is not None]
        if any(config.moe.num_experts == 8 for config in configs):
            while not should_stop():
                pass
            return []
        return super().advance(should_stop)


def test_a_trial_over_its_time_ends_and_its_neighbour_trains_on(tmp_path: Path) -> None:
    config = study_config(
        num_trials=2,
        run={"max_trial_seconds": 1},
        enqueue=({"moe.num_experts": 8, "moe.top_k": 1, "moe.noise": True},),
    )
    study = begin(config, tmp_path)
    work(config, tmp_path, trainer=_SlowSecond(num_lanes=1))
    first, *others = study.trials
    assert (first.state, first.user_attrs[OUTCOME]) == (TrialState.PRUNED, "timed_out")
    assert "max_trial_seconds (1)" in first.user_attrs[REASON]
    assert sum(trial.user_attrs[OUTCOME] == "complete" for trial in others) == 2


def test_overdue_trials_are_those_begun_long_ago(tmp_path: Path) -> None:
    begin(study_config(), tmp_path)
    claims = new_job(study_config(), tmp_path).claims
    assignment = next_assignment(claims, study_config())
    assert assignment is not None
    assert claims.overdue(60) == []
    claims.storage.set_trial_system_attr(assignment.trial._trial_id, ATTEMPT, {"began": 0.0, "oom_kills": 0})
    (overdue,) = claims.overdue(60)
    assert overdue.user_attrs[WORKER] == claims.worker


@pytest.mark.parametrize(("least", "is_collapsed"), [(None, False), (0.2, False), (0.3, True)])
def test_routers_have_collapsed_where_a_layers_load_has_too_little_entropy(
    least: float | None, is_collapsed: bool
) -> None:
    from dataclasses import replace

    from moesearch.training.points import RouterHealth
    from tests.search.stand_ins import point

    health = RouterHealth(0.25, 3.0, 6.0, 0.0, 0.1, 0.9, 1.0, 0.0)
    sick = replace(point(2, 2.5), router_health=health)
    assert (collapse_reason(PrunerConfig(min_load_entropy=least), sick) is not None) == is_collapsed
    assert collapse_reason(PrunerConfig(min_load_entropy=least), point(2, 2.5)) is None


def _full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_known_through_what_was_made_of_it() -> None:
    error = optuna.exceptions.StorageInternalError("storage")
    error.__cause__ = _full()
    assert is_disk_full(error)
    assert not is_disk_full(OSError(errno.EACCES, "denied"))


def test_a_full_database_is_a_full_disk(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "x.db")
    database.execute("PRAGMA max_page_count = 2")
    with pytest.raises(sqlite3.Error) as caught:
        database.executescript("CREATE TABLE a (x); CREATE TABLE b (x); CREATE TABLE c (x)")
    database.close()
    assert is_disk_full(caught.value)


class _FullDisk(JsonCheckpoints):
    def save(self, key: str, checkpoint: TableCheckpoint) -> None:
        raise _full()


def test_a_full_disk_stops_the_worker_and_costs_no_trial(tmp_path: Path) -> None:
    config = study_config(num_trials=2)
    study = begin(config, tmp_path)
    with pytest.raises(OSError, match="No space left"):
        work(config, tmp_path, checkpoints=_FullDisk(tmp_path / "checkpoints"), worker=DEAD_WORKER)
    new_job(config, tmp_path).claims.recover(innocent=[DEAD_WORKER])
    work(config, tmp_path)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2


def test_a_worker_that_is_asked_to_leave_a_full_disk_gives_its_trial_back(tmp_path: Path) -> None:
    config = study_config(num_trials=2)
    study = begin(config, tmp_path)
    stop = Event()

    class StopsAtOnce(TableTrainer):
        def advance(self, should_stop: Callable[[], bool]) -> list[Any]:
            stop.set()
            return []

    work(config, tmp_path, trainer=StopsAtOnce(), checkpoints=_FullDisk(tmp_path / "checkpoints"), stop=stop)
    assert [trial.state for trial in study.trials] == [TrialState.WAITING]
