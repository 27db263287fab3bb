from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.trial import FrozenTrial, TrialState

from moesearch.config.study import StudyConfig
from moesearch.errors import LostTrialError
from moesearch.results.records import OUTCOME, REPLICATE, WORKER
from moesearch.results.standing import is_finished
from moesearch.search.assignments import finish, next_assignment
from moesearch.search.claims import Claims, fenced
from moesearch.search.deaths import MAX_DEATHS
from moesearch.search.worker_names import host_name, is_dead_here, worker_name
from tests.search.processes import start
from tests.search.stand_ins import TableTrainer, begin, new_job, study_config, work

pytestmark = pytest.mark.usefixtures("every_store")

# A process that ended long ago, in the form of `worker_name`.
DEAD_WORKER = f"{host_name()}:{2**22 + 1}:0.00"


def _claims(config: StudyConfig, folder: Path, **changes: Any) -> Claims:
    begin(config, folder)
    return new_job(config, folder, **changes).claims


def _claim(claims: Claims) -> optuna.Trial:
    with claims.lock:
        trial = claims.claim()
    assert trial is not None
    return trial


def _work_slowly(folder: str, num_trials: int) -> None:
    work(study_config(num_trials=num_trials), Path(folder), trainer=TableTrainer(seconds=0.03))


def test_four_workers_and_many_kills_end_with_exactly_the_trials_asked_for(tmp_path: Path) -> None:
    num_trials, chance = 16, random.Random(0)
    config = study_config(num_trials=num_trials)
    study = begin(config, tmp_path)
    workers = [start(_work_slowly, str(tmp_path), num_trials) for _ in range(4)]
    num_kills = 0
    try:
        while any(worker.is_alive() for worker in workers):
            time.sleep(chance.uniform(0.05, 0.3))
            victim = chance.randrange(4)
            if num_kills < 8 and workers[victim].is_alive():
                workers[victim].kill()
                workers[victim].join()
                num_kills += 1
                workers[victim] = start(_work_slowly, str(tmp_path), num_trials)
    finally:
        for worker in workers:
            worker.kill()
    trials = study.trials
    assert num_kills == 8
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert sum(map(is_finished, trials)) == num_trials
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.WAITING}
    assert len({(trial.user_attrs["fingerprint"], trial.user_attrs[REPLICATE]) for trial in trials}) == len(trials)
    assert all(list(trial.intermediate_values) == [1, 2, 3, 4] for trial in trials if is_finished(trial))


def test_a_budget_has_room_for_running_and_waiting_trials(tmp_path: Path) -> None:
    claims = _claims(study_config(num_trials=2), tmp_path)
    _claim(claims)
    _claim(claims)
    with claims.lock:
        assert claims.claim() is None
    assert not claims.is_over()


def test_a_trial_that_does_not_count_makes_room(tmp_path: Path) -> None:
    claims = _claims(study_config(num_trials=1), tmp_path)
    finish(claims.study, _claim(claims), "diverged")
    assert _claim(claims).number == 1


def test_a_raised_budget_has_room_again(tmp_path: Path) -> None:
    begin(study_config(num_trials=2), tmp_path)
    work(study_config(num_trials=2), tmp_path)
    assert _claim(_claims(study_config(num_trials=3), tmp_path)).number == 2


def test_of_two_hosts_that_ask_at_once_the_later_number_steps_back(tmp_path: Path, monkeypatch: Any) -> None:
    claims = _claims(study_config(num_trials=1), tmp_path)
    create = claims.study._storage.create_new_trial

    def create_too_late(study_id: int, template: FrozenTrial) -> int:
        create(study_id)  # the other host's
        return create(study_id, template)

    monkeypatch.setattr(claims.study._storage, "create_new_trial", create_too_late)
    with claims.lock:
        assert claims.claim() is None
    assert [trial.state for trial in claims.study.trials] == [TrialState.RUNNING, TrialState.WAITING]


def test_a_trial_that_is_given_back_keeps_number_parameters_and_curve(tmp_path: Path) -> None:
    config = study_config()
    claims = _claims(config, tmp_path)
    first = next_assignment(claims, config)
    assert first is not None
    first.trial.report(2.5, 1)
    claims.give_back(first.trial)
    again = _claim(claims)
    assert (again.number, again.params) == (first.trial.number, first.trial.params)
    assert claims.study.trials[0].intermediate_values == {1: 2.5}


def test_a_trial_of_a_dead_worker_waits_again_and_one_of_a_living_one_does_not(tmp_path: Path) -> None:
    config = study_config()
    _claim(_claims(config, tmp_path, worker=DEAD_WORKER))
    claims = _claims(config, tmp_path)
    assert _claim(new_job(config, tmp_path, worker=worker_name()).claims).number == 1
    claims.recover()
    assert [trial.state for trial in claims.study.trials] == [TrialState.WAITING, TrialState.RUNNING]


def test_a_worker_killed_while_it_claimed_leaves_no_trial_running(tmp_path: Path) -> None:
    claims = _claims(study_config(), tmp_path)
    claims.storage.create_new_trial(claims.storage.get_study_id_from_name("toy"))  # and no name yet
    claims.recover()
    assert [trial.state for trial in claims.study.trials] == [TrialState.WAITING]


def test_a_trial_that_kills_its_workers_is_given_up_as_lost(tmp_path: Path) -> None:
    config = study_config(num_trials=1)
    claims = _claims(config, tmp_path, worker=DEAD_WORKER)
    for _ in range(MAX_DEATHS):
        assert _claim(claims).number == 0
        claims.recover()
    assert (claims.study.trials[0].state, claims.study.trials[0].user_attrs[OUTCOME]) == (TrialState.FAIL, "lost")
    assert _claim(claims).number == 1


def test_deaths_count_anew_after_each_milestone(tmp_path: Path) -> None:
    claims = _claims(study_config(num_trials=1), tmp_path, worker=DEAD_WORKER)
    for milestone in range(1, MAX_DEATHS + 2):
        _claim(claims).report(2.0, milestone)
        claims.recover()
    assert claims.study.trials[0].state is TrialState.WAITING


def test_a_silent_worker_loses_its_trial_to_a_copy_and_cannot_write_to_it(tmp_path: Path) -> None:
    config = study_config()
    begin(config, tmp_path)
    silent = new_job(config, tmp_path, worker="elsewhere:1:0.00", heartbeat_interval=1, grace_period=1).claims
    assignment = next_assignment(silent, config)
    assert assignment is not None
    assignment.trial.report(2.5, 1)
    time.sleep(2.1)  # the store counts in whole seconds
    other = new_job(config, tmp_path, heartbeat_interval=1, grace_period=1).claims
    other.recover()
    copy = other.study.trials[1]
    assert [trial.state for trial in other.study.trials] == [TrialState.FAIL, TrialState.WAITING]
    assert (copy.params, copy.intermediate_values) == (assignment.trial.params, {1: 2.5})
    assert WORKER not in copy.user_attrs
    with pytest.raises(LostTrialError), fenced(assignment.trial):
        assignment.trial.report(2.4, 2)
    with pytest.raises(LostTrialError):
        finish(silent.study, assignment.trial, "complete", values=[2.4])


def test_a_trial_that_waited_long_is_not_taken_for_stale_when_it_runs_again(tmp_path: Path) -> None:
    claims = _claims(study_config(), tmp_path, heartbeat_interval=1, grace_period=1)
    claims.give_back(_claim(claims))
    time.sleep(2.1)
    _claim(claims)
    claims.recover()
    assert [trial.state for trial in claims.study.trials] == [TrialState.RUNNING]


def test_this_process_is_alive_and_one_of_its_pid_but_another_start_is_dead() -> None:
    assert not is_dead_here(worker_name())
    assert is_dead_here(f"{host_name()}:{os.getpid()}:1.00")
    assert not is_dead_here(f"another-host:{os.getpid()}:1.00")


def test_a_stopped_process_is_alive(tmp_path: Path) -> None:
    process = start(time.sleep, 60)
    try:
        assert process.pid is not None
        name = f"{host_name()}:{process.pid}:{psutil.Process(process.pid).create_time():.2f}"
        os.kill(process.pid, signal.SIGSTOP)
        assert not is_dead_here(name)
        process.kill()
        process.join()
        assert is_dead_here(name)
    finally:
        process.kill()
