from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from moesearch.config.resolve import resolve
from moesearch.config.study import StudyConfig
from moesearch.config.trial import TrialConfig
from moesearch.errors import InputError
from moesearch.results.records import CONFIG, COST, LEASE_PREFIX, LOST_MILESTONES
from moesearch.results.standing import is_finished
from moesearch.search.confirm import plan_confirmation
from moesearch.search.leases import TimeAccount
from moesearch.search.process import leased_time
from moesearch.search.reserves import flops_limit
from moesearch.search.trial_cost import TextSizes, largest_flops
from tests.search.processes import start
from tests.search.stand_ins import MILESTONES, TableTrainer, begin, curve, storage_in, study_config, work

pytestmark = pytest.mark.usefixtures("every_store")


def _largest(config: StudyConfig) -> float:
    return largest_flops(config, TextSizes(config.base.data))


def _limited(trials_worth: float, **changes: Any) -> StudyConfig:
    """A study whose FLOPs are those of so many of its costliest trials."""
    limits = {"flops": trials_worth * _largest(study_config(**changes))}
    return study_config(**{"num_trials": 10, **changes, "limits": limits})


class Meter(TableTrainer):
    """Writes down the cost of every milestone before it is trained, so that a kill hides nothing."""

    def __init__(self, path: Path, **changes: Any) -> None:
        super().__init__(losses=self._metered, **changes)
        self.path = path
        self.texts = TextSizes(TrialConfig().data)

    def _metered(self, config: TrialConfig) -> list[float]:
        cost = self.texts.flops_of(config) / MILESTONES
        with self.path.open("a") as file:
            file.write(f"{cost!r}\n")
        time.sleep(self.seconds)
        return curve(config)


def _spent(path: Path) -> float:
    return math.fsum(map(float, path.read_text().split()))


def test_a_search_ends_where_the_flops_leave_no_room_for_another_trial(tmp_path: Path) -> None:
    config = _limited(4.5)
    study = begin(config, tmp_path)
    work(config, tmp_path, trainer=Meter(tmp_path / "meter"))
    limit = config.limits.flops or 0
    assert limit - _largest(config) < _spent(tmp_path / "meter") <= limit
    assert 4 <= len(study.trials) < 10
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


def test_a_trial_that_ends_early_frees_what_it_did_not_use(tmp_path: Path) -> None:
    config = _limited(3.0, pruner={"type": "threshold", "upper": 0.001, "warmup_milestones": 0})
    study = begin(config, tmp_path)
    work(config, tmp_path, trainer=Meter(tmp_path / "meter"))
    assert len(study.trials) > 6
    assert _spent(tmp_path / "meter") <= (config.limits.flops or 0)


def test_a_raised_limit_goes_on(tmp_path: Path) -> None:
    begin(_limited(2.0), tmp_path)
    work(_limited(2.0), tmp_path)
    study = begin(_limited(4.0), tmp_path)
    before = len(study.trials)
    work(_limited(4.0), tmp_path)
    assert len(study.trials) > before


def test_the_search_leaves_room_for_the_confirmation(tmp_path: Path) -> None:
    config = _limited(9.0, confirm={"top": 3, "seeds": 2, "lr_search": False}, control="none")
    begin(config, tmp_path)
    work(config, tmp_path, trainer=Meter(tmp_path / "meter"))
    assert _spent(tmp_path / "meter") <= 3 * _largest(config)
    confirm = plan_confirmation(config, storage_in(tmp_path))
    assert confirm is not None
    work(config, tmp_path, study=confirm, trainer=Meter(tmp_path / "meter"))
    assert [trial.state for trial in confirm.trials] == [TrialState.COMPLETE] * config.num_confirm_runs
    assert _spent(tmp_path / "meter") <= (config.limits.flops or 0)


def test_work_that_was_lost_is_charged_as_if_its_evaluation_had_been_the_last(tmp_path: Path) -> None:
    base = {"budget": {"steps": 40, "milestones": MILESTONES, "milestone_share": 0.25}}
    config = study_config(base=base, limits={"flops": 1e20})
    limit = flops_limit(config, storage_in(tmp_path), is_search=True)
    assert limit is not None
    whole = resolve(config.base, {"budget.milestone_share": 1.0})
    cost = limit.flops_of(config.base)
    records = {COST: cost, CONFIG: config.base.model_dump(mode="json")}
    trials = [
        optuna.create_trial(value=1.0, intermediate_values={MILESTONES: 1.0}, system_attrs={**records, **lost})
        for lost in ({}, {LOST_MILESTONES: 2})
    ]
    assert limit.charge(trials[0]) == cost < limit.flops_of(whole)
    assert limit.charge(trials[1]) == pytest.approx(cost + 2 * limit.flops_of(whole) / MILESTONES)


def test_a_limit_without_room_for_one_trial_is_refused(tmp_path: Path) -> None:
    config = _limited(0.5)
    begin(config, tmp_path)
    with pytest.raises(InputError, match=r"limits\.flops .* leaves no room for a trial; one takes up to"):
        work(config, tmp_path)


def _work_slowly(folder: str, config: StudyConfig) -> None:
    work(config, Path(folder), trainer=Meter(Path(folder) / "meter", seconds=0.03))


def _work_with_kills(
    folder: Path,
    work_once: Callable[..., None],
    config: StudyConfig,
    num_kills: int,
    is_ripe: Callable[[int], bool] = lambda _: True,
) -> None:
    chance = random.Random(0)
    workers = [start(work_once, str(folder), config) for _ in range(4)]
    killed = 0
    try:
        while any(worker.is_alive() for worker in workers):
            time.sleep(chance.uniform(0.05, 0.15))
            victim = chance.randrange(4)
            if killed < num_kills and workers[victim].is_alive() and is_ripe(killed):
                workers[victim].kill()
                workers[victim].join()
                killed += 1
                workers[victim] = start(work_once, str(folder), config)
    finally:
        for worker in workers:
            worker.kill()
    assert killed == num_kills


@pytest.mark.parametrize("pruner", [{"type": "none"}, {"type": "asha", "eta": 2}])
def test_four_workers_and_three_kills_never_spend_more_flops_than_there_are(
    tmp_path: Path, pruner: dict[str, Any]
) -> None:
    config = _limited(12.0, num_trials=100, pruner=pruner)
    study = begin(config, tmp_path)
    _work_with_kills(tmp_path, _work_slowly, config, num_kills=3)
    limit = config.limits.flops or 0
    # The lost work of three kills was reserved at up to a whole trial each.
    assert 0.5 * limit < _spent(tmp_path / "meter") <= limit
    assert all(COST in trial.system_attrs for trial in study.trials if trial.params)
    assert 5 <= sum(map(is_finished, study.trials)) < 100


def _work_on_lease(folder: str, config: StudyConfig) -> None:
    with leased_time(config, storage_in(Path(folder))) as lease:
        assert lease is not None
        work(config, Path(folder), trainer=TableTrainer(seconds=0.05), is_time_up=lease.is_up)


def _leases(folder: Path) -> list[tuple[float, float]]:
    storage = storage_in(folder)
    attrs = storage.get_study_system_attrs(storage.get_study_id_from_name("toy"))
    return [tuple(value) for name, value in attrs.items() if name.startswith(LEASE_PREFIX)]


def test_four_workers_and_three_kills_never_hold_their_devices_for_longer_than_granted(tmp_path: Path) -> None:
    seconds = 16.0
    config = study_config(num_trials=1000, limits={"gpu_hours": seconds / 3600})
    study = begin(config, tmp_path)
    _work_with_kills(tmp_path, _work_on_lease, config, 3, is_ripe=lambda killed: len(_leases(tmp_path)) > killed)
    ended = time.time()
    leases = _leases(tmp_path)
    assert 0.5 * seconds < sum(end - start for start, end in leases) <= seconds
    assert ended <= max(end for _, end in leases) + 2.0
    assert not any(trial.state is TrialState.RUNNING for trial in study.trials)


def test_wall_time_counts_once_however_many_work(tmp_path: Path) -> None:
    begin(study_config(), tmp_path)
    account = TimeAccount(storage_in(tmp_path), "toy", wall_seconds=10.0, gpu_seconds=None)
    assert account.lease("a", 100.0, 104.0) == 104.0
    assert account.lease("b", 102.0, 106.0) == 106.0
    assert account.lease("a", 100.0, 104.0) == 104.0
    assert account.lease("c", 200.0, 230.0) == 204.0
    assert account.lease("d", 300.0, 301.0) == 300.0


def test_device_time_adds_up_over_workers(tmp_path: Path) -> None:
    begin(study_config(), tmp_path)
    account = TimeAccount(storage_in(tmp_path), "toy", wall_seconds=None, gpu_seconds=10.0)
    assert account.lease("a", 100.0, 104.0) == 104.0
    assert account.lease("b", 102.0, 130.0) == 108.0
    assert account.is_spent()
