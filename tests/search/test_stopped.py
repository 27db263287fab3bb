"""A trial that waits at a rung is pruned there to all who read the study."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from moesearch.config.study import StudyConfig
from moesearch.results.frames import frame_of_trials
from moesearch.results.overview import read_overview
from moesearch.results.records import COST, STOPPED_AT, STOPPED_TIME
from moesearch.results.standing import as_they_stand, is_stopped, key_of
from moesearch.results.study import read_study
from moesearch.search.assignments import checkpoint_key
from moesearch.search.disk import losers_first
from moesearch.search.draws import as_seen
from moesearch.search.progress import Progress
from moesearch.search.reserves import flops_limit
from tests.search.stand_ins import MILESTONES, new_job, storage_in, url_of
from tests.search.test_halving import asha_config, interrupt


@dataclass
class Waiting:
    """A search that was interrupted, and its trials that wait at a rung."""

    folder: Path
    config: StudyConfig
    study: optuna.Study

    @property
    def trials(self) -> list[FrozenTrial]:
        return self.study.trials

    @property
    def numbers(self) -> set[int]:
        return {trial.number for trial in self.trials if is_stopped(trial)}


@pytest.fixture
def waiting(tmp_path: Path) -> Waiting:
    config = asha_config(limits={"flops": 1e20})
    waiting = Waiting(tmp_path, config, interrupt(config, tmp_path, num_milestones=7))
    assert waiting.numbers
    return waiting


def test_frames_call_it_pruned(waiting: Waiting) -> None:
    frames = (frame_of_trials(waiting.trials), read_study(storage_in(waiting.folder), "toy").trials)
    for frame in frames:
        rows = frame[frame["number"].isin(waiting.numbers)]
        assert set(rows["outcome"]) == {"pruned"}
        assert set(rows["state"]) == {"PRUNED"}
        assert bool(rows["ended"].notna().all())


def test_status_counts_it_as_a_progress_display_does(waiting: Waiting) -> None:
    (overview,) = read_overview(url_of(waiting.folder))
    progress = Progress(waiting.config, tuple(waiting.trials), (), 0.0)
    assert overview.pruned == progress.num_pruned >= len(waiting.numbers)
    assert overview.finished == progress.num_finished == overview.pruned + overview.complete


def test_samplers_learn_from_it_as_from_a_pruned_one(waiting: Waiting) -> None:
    asker = optuna.trial.create_trial(state=TrialState.RUNNING)
    asker.number = len(waiting.trials)
    seen = as_seen(waiting.study, asker, waiting.config, ())
    assert {trial.state for trial in seen.get_trials() if trial.number in waiting.numbers} == {TrialState.PRUNED}


def test_it_takes_a_place_of_the_budget_and_no_worker_takes_it_for_one_that_waits(waiting: Waiting) -> None:
    claims = new_job(asha_config(num_trials=len(waiting.trials)), waiting.folder).claims
    taken = {trial.number for trial in claims._claimable(waiting.trials)}
    assert not taken & waiting.numbers
    assert not claims._has_room(waiting.trials, len(waiting.trials))


def test_its_checkpoint_goes_before_that_of_a_trial_that_will_go_on(waiting: Waiting) -> None:
    folder, paths = waiting.folder / "kept", {}
    for trial in waiting.trials:
        if not trial.state.is_finished():
            paths[folder / checkpoint_key(*(key_of(trial) or ("", 0)))] = trial.number
    for path in paths:
        path.mkdir(parents=True)
    order = [paths[path] for path in losers_first(folder, waiting.trials)]
    assert set(order[: len(waiting.numbers)]) == waiting.numbers
    assert len(order) > len(waiting.numbers)


def test_it_reserves_the_flops_that_it_has_spent_alone(waiting: Waiting) -> None:
    limit = flops_limit(waiting.config, storage_in(waiting.folder), is_search=True)
    assert limit is not None
    for number in waiting.numbers:
        trial = waiting.trials[number]
        rung = trial.system_attrs[STOPPED_AT]
        assert limit.charge(trial) == pytest.approx(trial.system_attrs[COST] * rung / MILESTONES)


def test_it_ended_when_it_stopped_whenever_it_was_told(waiting: Waiting) -> None:
    number = min(waiting.numbers)
    before = as_they_stand(waiting.trials)[number]
    storage_in(waiting.folder).set_trial_user_attr(before._trial_id, "outcome", "pruned")
    storage_in(waiting.folder).set_trial_state_values(before._trial_id, TrialState.PRUNED, [1.0])
    after = as_they_stand(waiting.study.trials)[number]
    assert after.datetime_complete == before.datetime_complete
    assert after.datetime_complete is not None
    assert after.datetime_complete.timestamp() == pytest.approx(after.system_attrs[STOPPED_TIME])
