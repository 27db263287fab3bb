from __future__ import annotations

import hashlib
import random
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from moesearch.config.study import StudyConfig
from moesearch.config.trial import TrialConfig
from moesearch.data.tokens import load_tokens
from moesearch.results.continuations import counts, is_continuation, one_record_each
from moesearch.results.frames import frame_of_curves, frame_of_trials
from moesearch.results.overview import read_overview
from moesearch.results.records import CONTINUES, MLFLOW_RUN_ID, OUTCOME, REPLICATE
from moesearch.search.disk import DiskCheckpoints
from moesearch.search.halving import halving_of
from moesearch.search.worker import run_worker
from moesearch.training.trainer import LaneTrainer
from tests.search.processes import start
from tests.search.stand_ins import MILESTONES, JsonCheckpoints, TableTrainer, begin, new_job, study_config, url_of, work
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
    rank = int.from_bytes(hashlib.sha256(config.fingerprint().encode()).digest()[:4], "big") / 2**32
    return [2.0 + rank + (MILESTONES - milestone) for milestone in range(1, MILESTONES + 1)]


def _search(folder: Path, **changes: Any) -> tuple[optuna.Study, TableTrainer]:
    config = asha_config(**changes)
    study = begin(config, folder)
    return study, work(config, folder, trainer=TableTrainer(losses=losses))


def test_rungs_are_powers_of_eta_below_the_last_milestone() -> None:
    config = asha_config(base={"budget": {"steps": 100, "milestones": 18}}, pruner={"type": "asha", "first_rung": 2})
    assert halving_of(config).rungs == (2, 6)


def test_the_best_half_of_each_rung_goes_on_in_the_end_and_no_trial_counts_twice(tmp_path: Path) -> None:
    study, _ = _search(tmp_path)
    trials = one_record_each(study.trials)
    assert sum(map(counts, study.trials)) == len(trials) == 12
    by_rank = sorted(trials, key=lambda trial: trial.intermediate_values[1])
    reached = [trial.last_step or 0 for trial in by_rank]
    assert reached[:3] == [4] * 3
    assert min(reached[3:6]) >= 2
    # Early on, the best half of few is not the best half of all.
    assert reached[6:].count(1) >= 3
    assert all((trial.state is TrialState.COMPLETE) == (trial.last_step == 4) for trial in trials)


def test_no_milestone_is_trained_twice(tmp_path: Path) -> None:
    study, trainer = _search(tmp_path)
    assert any(map(is_continuation, study.trials))
    assert len(trainer.trained) == len(set(trainer.trained))
    assert len(trainer.trained) == sum(trial.last_step or 0 for trial in one_record_each(study.trials))


def test_a_promoted_trial_inherits_its_curve_and_says_whom_it_continues(tmp_path: Path) -> None:
    study, _ = _search(tmp_path)
    promoted = next(trial for trial in study.trials if is_continuation(trial))
    source = study.trials[promoted.system_attrs[CONTINUES]["number"]]
    assert (source.state, source.user_attrs[OUTCOME]) == (TrialState.PRUNED, "pruned")
    assert source.last_step == promoted.system_attrs[CONTINUES]["milestone"]
    assert (source.params, source.user_attrs[REPLICATE]) == (promoted.params, promoted.user_attrs[REPLICATE])
    assert source.intermediate_values.items() <= promoted.intermediate_values.items()


def test_frames_and_overview_show_a_promoted_trial_once(tmp_path: Path) -> None:
    study, _ = _search(tmp_path)
    frame, curves = frame_of_trials(study.trials), frame_of_curves(study.trials)
    assert len(frame) == len(frame[["fingerprint", "replicate"]].drop_duplicates()) == 12
    complete, pruned = (int((frame["outcome"] == outcome).sum()) for outcome in ("complete", "pruned"))
    assert complete + pruned == 12
    assert len(curves) == frame["milestone"].sum()
    (overview,) = read_overview(url_of(tmp_path))
    assert (overview.complete, overview.pruned, overview.failed, overview.finished) == (complete, pruned, 0, 12)


def test_a_small_search_ends_with_as_many_results_as_confirmation_wants(tmp_path: Path) -> None:
    study, _ = _search(tmp_path, pruner={"type": "asha", "eta": 4}, confirm={"top": 5, "seeds": 2})
    assert sum(trial.state is TrialState.COMPLETE for trial in study.trials) == 5


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


def test_trials_stop_and_go_on_in_lanes_too(tmp_path: Path) -> None:
    config = asha_config()
    study = begin(config, tmp_path)
    trainer = work(config, tmp_path, trainer=TableTrainer(num_lanes=3, losses=losses))
    assert sum(map(counts, study.trials)) == 12
    assert len(trainer.trained) == len(set(trainer.trained))
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    best = min(study.trials, key=lambda trial: trial.intermediate_values[1])
    assert one_record_each([trial for trial in study.trials if trial.params == best.params])[0].last_step == 4


def test_a_promoted_trial_continues_its_mlflow_run(tmp_path: Path) -> None:
    config = asha_config()
    study = begin(config, tmp_path)
    tracker = NoteTracker()
    work(config, tmp_path, trainer=TableTrainer(losses=losses), tracker=tracker)
    promoted = next(trial for trial in study.trials if is_continuation(trial))
    run_id = promoted.user_attrs[MLFLOW_RUN_ID]
    kinds = [note[0] for note in tracker.notes if note[1] == run_id and note[0] in ("resume", "log", "finish")]
    assert kinds[:3] == ["log", "finish", "resume"] or kinds[:4] == ["log", "log", "finish", "resume"]


def test_a_promoted_trial_that_fails_leaves_the_stopped_one_standing(tmp_path: Path) -> None:
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
    assert all(map(is_continuation, failed))
    assert sum(map(counts, study.trials)) == 12
    # None is tried a second time.
    assert len({trial.system_attrs[CONTINUES]["number"] for trial in failed}) == len(failed)


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
    trials = one_record_each(study.trials)
    done = [trial for trial in trials if trial.user_attrs.get(OUTCOME)]
    assert [worker.exitcode for worker in workers] == [0] * 3
    assert sum(map(counts, study.trials)) == len(done) == 12
    assert {trial.state for trial in study.trials} <= {TrialState.COMPLETE, TrialState.PRUNED, TrialState.WAITING}
    assert all(list(trial.intermediate_values) == list(range(1, (trial.last_step or 0) + 1)) for trial in done)
    best = sorted(done, key=lambda trial: trial.intermediate_values[1])[:3]
    assert [trial.state for trial in best] == [TrialState.COMPLETE] * 3


def test_a_promoted_curve_is_that_of_a_trial_that_was_never_stopped_bit_for_bit(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be, that is the question.\n" * 60)
    config = study_config(
        num_trials=4,
        pruner={"type": "asha", "eta": 2},
        base={
            "model": {"width": 8, "num_layers": 1, "num_heads": 1, "context": 8},
            "data": {"text": str(text), "batch_size": 2},
            "budget": {"steps": 8, "milestones": 4},
        },
    )
    tokens = load_tokens(config.base.data)
    study = begin(config, tmp_path)
    job = replace(new_job(config, tmp_path), checkpoint_share=0.0)
    run_worker(job, LaneTrainer(tokens), DiskCheckpoints(tmp_path / "checkpoints"), threading.Event())
    promoted = [trial for trial in study.trials if is_continuation(trial)]
    assert promoted
    for trial in promoted:
        trainer = LaneTrainer(tokens)
        trainer.load(0, TrialConfig.model_validate(trial.system_attrs["moesearch:config"]))
        never_stopped = [point.val_loss for _ in range(4) for _, point in trainer.advance()]
        assert list(trial.intermediate_values.values()) == never_stopped[: trial.last_step]
