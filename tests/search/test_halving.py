from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from moesearch.config.study import StudyConfig
from moesearch.config.trial import TrialConfig
from moesearch.data.tokens import load_tokens
from moesearch.results.records import MLFLOW_RUN_ID, OUTCOME, STOPPED_AT
from moesearch.results.standing import is_finished, is_stopped, key_of
from moesearch.search.assignments import checkpoint_key
from moesearch.search.claims import Claims
from moesearch.search.disk import DiskCheckpoints
from moesearch.search.halving import halving_of
from moesearch.search.progress import MIN_FAILURES
from moesearch.search.view import RunView
from moesearch.search.worker import run_worker
from moesearch.tracking.mlflow import run_status
from moesearch.training.points import EvalPoint
from moesearch.training.trainer import LaneTrainer
from tests.search.processes import start
from tests.search.stand_ins import MILESTONES, JsonCheckpoints, TableTrainer, begin, new_job, study_config, work
from tests.search.test_worker import NoteTracker

pytestmark = pytest.mark.usefixtures("every_store")

SEARCH: dict[str, Any] = {
    "moe.num_experts": {"type": "categorical", "choices": [2, 4, 8, 16, 32]},
    "moe.top_k": {"type": "categorical", "choices": [1, 2]},
    "moe.init": {"type": "categorical", "choices": ["kaiming_normal", "xavier_normal", "normal"]},
}
"""Thirty points, all of them feasible."""


def asha_config(**changes: Any) -> StudyConfig:
    """Rungs at milestones 1 and 2 of 4."""
    return study_config(**{"search": SEARCH, "num_trials": 12, "pruner": {"type": "asha", "eta": 2}, **changes})


def losses(config: TrialConfig) -> list[float]:
    """Curves that do not cross, in an order that has nothing to do with the order of the trials."""
    rank = int.from_bytes(hashlib.sha256(config.fingerprint().encode()).digest()[4:8], "big") / 2**32
    return [2.0 + rank + (MILESTONES - milestone) for milestone in range(1, MILESTONES + 1)]


class Interrupted(TableTrainer):
    """Sets ``stop`` after so many milestones."""

    def __init__(self, num_milestones: int, **changes: Any) -> None:
        super().__init__(losses=losses, **changes)
        self.num_milestones = num_milestones
        self.stop = threading.Event()

    def advance(self, should_stop: Callable[[], bool]) -> list[tuple[int, EvalPoint]]:
        points = super().advance(should_stop)
        if len(self.trained) >= self.num_milestones:
            self.stop.set()
        return points


def was_promoted(trial: FrozenTrial) -> bool:
    """Whether it went on beyond a rung at which it was stopped."""
    return 0 < int(trial.system_attrs.get(STOPPED_AT, 0)) < (trial.last_step or 0)


def interrupt(config: StudyConfig, folder: Path, num_milestones: int) -> optuna.Study:
    """A search that Ctrl-C ended after so many milestones."""
    study, trainer = begin(config, folder), Interrupted(num_milestones)
    work(config, folder, trainer=trainer, stop=trainer.stop)
    return study


def search(folder: Path, **changes: Any) -> list[FrozenTrial]:
    config = asha_config(**changes)
    study = begin(config, folder)
    work(config, folder, trainer=TableTrainer(losses=losses))
    return study.trials


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> list[FrozenTrial]:
    """The trials of a whole search, which promoted four of them, one twice."""
    return search(tmp_path_factory.mktemp("searched"))


def outcomes(trials: Sequence[FrozenTrial]) -> list[tuple[int, object, TrialState, dict[int, float]]]:
    """What was trained, how each ended, and its curve."""
    return [(trial.number, key_of(trial), trial.state, trial.intermediate_values) for trial in trials]


def test_rungs_are_powers_of_eta_below_the_last_milestone() -> None:
    config = asha_config(base={"budget": {"steps": 100, "milestones": 18}}, pruner={"type": "asha", "first_rung": 2})
    assert halving_of(config).rungs == (2, 6)


def test_the_best_half_of_each_rung_goes_on_in_the_end(searched: list[FrozenTrial]) -> None:
    by_rank = sorted(searched, key=lambda trial: trial.intermediate_values[1])
    reached = [trial.last_step or 0 for trial in by_rank]
    assert reached[:3] == [4] * 3
    assert min(reached[3:6]) >= 2
    # Early on, the best half of few is not the best half of all.
    assert reached[6:].count(1) >= 3
    assert all((trial.state is TrialState.COMPLETE) == (trial.last_step == 4) for trial in searched)


def test_a_trial_that_is_stopped_and_promoted_is_one_record_in_the_store(searched: list[FrozenTrial]) -> None:
    assert sum(map(was_promoted, searched)) == 2
    assert len(searched) == len(set(map(key_of, searched))) == 12
    assert {trial.state for trial in searched} == {TrialState.COMPLETE, TrialState.PRUNED}


def test_a_pruned_trial_has_the_value_and_outcome_of_its_rung(searched: list[FrozenTrial]) -> None:
    pruned = [trial for trial in searched if trial.state is TrialState.PRUNED]
    assert pruned
    for trial in pruned:
        assert trial.user_attrs[OUTCOME] == "pruned"
        assert trial.system_attrs[STOPPED_AT] == trial.last_step
        assert trial.value == trial.intermediate_values[trial.last_step or 0]


def test_a_small_search_ends_with_as_many_results_as_confirmation_wants(tmp_path: Path) -> None:
    trials = search(tmp_path, pruner={"type": "asha", "eta": 4}, confirm={"top": 5, "seeds": 2})
    assert sum(trial.state is TrialState.COMPLETE for trial in trials) == 5


def test_checkpoints_of_stopped_trials_are_kept_while_they_can_be_promoted(tmp_path: Path) -> None:
    config = asha_config()
    begin(config, tmp_path)
    held: list[int] = []

    class Watching(JsonCheckpoints):
        def save(self, key: str, checkpoint: Any) -> None:
            super().save(key, checkpoint)
            held.append(len(list(self.folder.iterdir())))

    work(
        config,
        tmp_path,
        trainer=TableTrainer(losses=losses),
        checkpoints=Watching(tmp_path / "checkpoints"),
    )
    # At most 6 of 12 pass the first rung and 3 the second; one more is just being written.
    assert 6 <= max(held) <= 6 + 3 + 1
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_trial_that_can_never_be_promoted_is_pruned_while_the_search_goes_on(tmp_path: Path) -> None:
    study = interrupt(asha_config(), tmp_path, num_milestones=16)
    assert TrialState.PRUNED in {trial.state for trial in study.trials}
    assert any(map(is_stopped, study.trials))
    hopeful = [trial for trial in study.trials if is_stopped(trial) and trial.last_step == 1]
    ranked = sorted(study.trials, key=lambda trial: trial.intermediate_values[1])
    assert {trial.number for trial in hopeful} <= {trial.number for trial in ranked[:6]}


def test_trials_stop_and_go_on_in_lanes_too(tmp_path: Path) -> None:
    config = asha_config()
    study = begin(config, tmp_path)
    trainer = work(config, tmp_path, trainer=TableTrainer(num_lanes=3, losses=losses))
    assert len(study.trials) == 12
    assert len(trainer.trained) == len(set(trainer.trained)) == sum(trial.last_step or 0 for trial in study.trials)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert min(study.trials, key=lambda trial: trial.intermediate_values[1]).last_step == 4


def test_an_interrupted_search_goes_on_to_the_same_end_and_promotes_what_was_stopped(
    searched: list[FrozenTrial], tmp_path: Path
) -> None:
    before = interrupt(asha_config(), tmp_path, num_milestones=8)
    stopped = [trial.number for trial in before.trials if is_stopped(trial)]
    trials = search(tmp_path)
    assert any(was_promoted(trials[number]) for number in stopped)
    assert outcomes(trials) == outcomes(searched)


def test_what_a_search_has_pruned_at_its_end_stays_so_when_it_is_extended(tmp_path: Path) -> None:
    before = search(tmp_path, num_trials=6)
    trials = search(tmp_path, num_trials=12)
    pruned = [trial for trial in outcomes(before) if TrialState.PRUNED in trial]
    assert pruned
    assert pruned == [outcomes(trials)[number] for number, *_ in pruned]
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert len(trials) == 12


def test_when_time_is_up_what_is_stopped_was_pruned(tmp_path: Path) -> None:
    config = asha_config()
    study, trainer = begin(config, tmp_path), Interrupted(12)
    work(config, tmp_path, trainer=trainer, is_time_up=trainer.stop.is_set)
    assert not any(map(is_stopped, study.trials))
    assert sum(trial.state is TrialState.PRUNED for trial in study.trials) > 1


def test_when_nearly_all_trials_fail_what_is_stopped_was_pruned(tmp_path: Path) -> None:
    config, done = asha_config(num_trials=30), []

    def mostly_diverging(config: TrialConfig) -> list[float]:
        done.append(config.fingerprint())
        return losses(config) if len(set(done)) <= 2 else [float("nan")] * MILESTONES

    study = begin(config, tmp_path)
    work(config, tmp_path, trainer=TableTrainer(losses=mostly_diverging))
    assert sum(trial.user_attrs.get(OUTCOME) == "diverged" for trial in study.trials) >= MIN_FAILURES
    assert any(STOPPED_AT in trial.system_attrs for trial in study.trials)
    assert not any(map(is_stopped, study.trials))


def test_a_trial_has_one_mlflow_run_whose_last_state_is_that_of_the_trial(tmp_path: Path) -> None:
    config = asha_config()
    study = begin(config, tmp_path)
    tracker = NoteTracker()
    work(config, tmp_path, trainer=TableTrainer(losses=losses), tracker=tracker)
    runs = {trial.user_attrs[MLFLOW_RUN_ID]: trial for trial in study.trials}
    assert len(runs) == sum(note[0] == "start" for note in tracker.notes) == 12
    for run_id, trial in runs.items():
        notes = [note for note in tracker.notes if note[1] == run_id]
        assert sum(note[0] == "resume" for note in notes) == sum(note[0] == "finish" for note in notes) - 1
        assert notes[-1][:3] == ("finish", run_id, run_status(trial.state.name))  # type: ignore[arg-type]
    promoted = next(trial for trial in study.trials if was_promoted(trial))
    kinds = [note[0] for note in tracker.notes if note[1] == promoted.user_attrs[MLFLOW_RUN_ID]]
    assert "resume" in kinds


def test_a_promoted_trial_that_fails_makes_room_for_another_one(tmp_path: Path) -> None:
    config = asha_config()
    study = begin(config, tmp_path)

    class Failing(TableTrainer):
        def load(self, lane: int, config: TrialConfig, checkpoint: Any = None) -> None:
            if checkpoint is not None:
                raise ZeroDivisionError("a bug that strikes later")
            super().load(lane, config, checkpoint)

    work(config, tmp_path, trainer=Failing(losses=losses))
    failed = [trial for trial in study.trials if trial.user_attrs[OUTCOME] == "error"]
    assert failed
    assert len(study.trials) == 12 + len(failed)
    assert sum(map(is_finished, study.trials)) == 12


def _kill_at(owner: Any, name: str, is_due: Callable[..., bool] = lambda *_: True, *, after: bool = False) -> None:
    """Let the process end by ``kill -9`` when it is about to call a function, or has called it."""
    inner = getattr(owner, name)

    def outer(*args: Any, **kwargs: Any) -> Any:
        if is_due(*args):
            if after:
                inner(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(*args, **kwargs)

    setattr(owner, name, outer)


PLACES = (
    "before it waits at the rung",
    "when it waits at the rung",
    "before it is promoted",
    "when it was promoted",
    "when its checkpoint is gone",
)


def _die_at(folder: str, place: str) -> None:
    config, checkpoints = asha_config(), JsonCheckpoints(Path(folder) / "checkpoints")
    study = begin(config, Path(folder))

    def takes_a_stopped_one(_: Claims, waiting: FrozenTrial) -> bool:
        return is_stopped(waiting)

    def forgets_a_stopped_one(key: str) -> bool:
        return key in {checkpoint_key(*(key_of(trial) or ("", 0))) for trial in study.trials if is_stopped(trial)}

    match PLACES.index(place):
        case 0:
            _kill_at(Claims, "_return")
        case 1:
            _kill_at(RunView, "end")
        case 2:
            _kill_at(Claims, "_take", takes_a_stopped_one)
        case 3:
            _kill_at(Claims, "_take", takes_a_stopped_one, after=True)
        case 4:
            _kill_at(checkpoints, "delete", forgets_a_stopped_one, after=True)
    work(config, Path(folder), trainer=TableTrainer(losses=losses), checkpoints=checkpoints)


@pytest.mark.parametrize("place", PLACES)
def test_a_kill_around_a_stop_loses_and_repeats_nothing(
    searched: list[FrozenTrial], tmp_path: Path, place: str
) -> None:
    begin(asha_config(), tmp_path)
    victim = start(_die_at, str(tmp_path), place)
    victim.join()
    assert victim.exitcode == -signal.SIGKILL
    assert outcomes(search(tmp_path)) == outcomes(searched)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def _work_slowly(folder: str) -> None:
    work(asha_config(), Path(folder), trainer=TableTrainer(seconds=0.02, losses=losses))


def test_promotions_survive_many_kills_with_several_workers(tmp_path: Path) -> None:
    chance = random.Random(1)
    study = begin(asha_config(), tmp_path)
    workers = [start(_work_slowly, str(tmp_path)) for _ in range(3)]
    num_kills = 0
    try:
        while any(worker.is_alive() for worker in workers):
            time.sleep(chance.uniform(0.05, 0.2))
            victim = chance.randrange(3)
            if num_kills < 6 and workers[victim].is_alive():
                workers[victim].kill()
                workers[victim].join()
                num_kills += 1
                workers[victim] = start(_work_slowly, str(tmp_path))
    finally:
        for worker in workers:
            worker.kill()
    trials = study.trials
    assert [worker.exitcode for worker in workers] == [0] * 3
    assert len(trials) == len(set(map(key_of, trials))) == 12
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert all(list(trial.intermediate_values) == list(range(1, (trial.last_step or 0) + 1)) for trial in trials)
    best = sorted(trials, key=lambda trial: trial.intermediate_values[1])[:3]
    assert [trial.state for trial in best] == [TrialState.COMPLETE] * 3


def test_a_promoted_curve_is_that_of_a_trial_that_was_never_stopped_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a seed follows from the configuration, which names the text
    Path("text.txt").write_text("To be, or not to be, that is the question.\n" * 60)
    config = study_config(
        num_trials=4,
        pruner={"type": "asha", "eta": 2},
        sampler={"seed": 1},  # whose first trial comes out best
        base={
            "model": {"width": 8, "num_layers": 1, "num_heads": 1, "context": 8},
            "data": {"text": "text.txt", "batch_size": 2},
            "budget": {"steps": 8, "milestones": 4},
        },
    )
    tokens = load_tokens(config.base.data)
    study = begin(config, tmp_path)
    job = replace(new_job(config, tmp_path), checkpoint_share=0.0)
    run_worker(job, LaneTrainer(tokens), DiskCheckpoints(tmp_path / "checkpoints"), threading.Event())
    promoted = [trial for trial in study.trials if was_promoted(trial)]
    assert promoted
    for trial in promoted:
        trainer = LaneTrainer(tokens)
        trainer.load(0, TrialConfig.model_validate(trial.system_attrs["moesearch:config"]))
        never_stopped = [point.val_loss for _ in range(4) for _, point in trainer.advance()]
        assert list(trial.intermediate_values.values()) == never_stopped[: trial.last_step]
