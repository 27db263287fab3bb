from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from moesearch.config.study import StudyConfig
from moesearch.errors import InputError
from moesearch.results.records import STUDY_CONFIG, confirm_study_name
from moesearch.search.disk import DiskCheckpoints
from moesearch.search.pruning import make_pruner
from moesearch.search.study import open_study
from moesearch.search.worker_names import worker_name
from tests.search.stand_ins import begin, new_job, storage_in, study_config, work

pytestmark = pytest.mark.usefixtures("every_store")


def test_a_study_is_created_with_its_metric_its_first_tries_and_its_settings(tmp_path: Path) -> None:
    queued = {"moe.num_experts": 4, "moe.top_k": 1, "moe.noise": True}
    config = study_config(enqueue=(queued,))
    study = begin(config, tmp_path)
    storage = storage_in(tmp_path)
    attrs = storage.get_study_system_attrs(storage.get_study_id_from_name("toy"))
    assert study.metric_names == ["val_loss"]
    assert [trial.system_attrs["fixed_params"] for trial in study.trials] == [queued]
    assert StudyConfig.model_validate(attrs[STUDY_CONFIG]) == config


def test_opening_it_again_queues_nothing_twice(tmp_path: Path) -> None:
    config = study_config(enqueue=({"moe.num_experts": 4}, {"moe.num_experts": 8}))
    for _ in range(3):
        study = begin(config, tmp_path)
    work(config, tmp_path)
    begin(config, tmp_path)
    assert sum("fixed_params" in trial.system_attrs for trial in study.trials) == 2


@pytest.mark.parametrize(
    "change",
    [{"num_trials": 3}, {"num_trials": 99}, {"run": {"workers": 3}}, {"confirm": {"top": 2, "seeds": 5}}],
    ids=str,
)
def test_how_much_is_done_may_change_between_runs(change: dict[str, Any], tmp_path: Path) -> None:
    begin(study_config(), tmp_path)
    begin(study_config(**change), tmp_path)
    storage = storage_in(tmp_path)
    attrs = storage.get_study_system_attrs(storage.get_study_id_from_name("toy"))
    assert attrs[STUDY_CONFIG] == study_config(**change).model_dump(mode="json")


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"objective": "val_bpb"}, "objective: 'val_loss' in the store, 'val_bpb' in the file"),
        ({"sampler": {"seed": 7}}, "sampler.seed: 0 in the store, 7 in the file"),
        ({"base": {"budget": {"steps": 80, "milestones": 4}}}, "base.budget.steps: 40 in the store, 80 in the file"),
        (
            {"search": {"moe.top_k": {"type": "categorical", "choices": [1, 2]}}},
            "search.moe.num_experts.type: 'categorical' in the store, absent from the file",
        ),
    ],
)
def test_what_is_compared_may_not_change_and_the_difference_is_shown(
    change: dict[str, Any], difference: str, tmp_path: Path
) -> None:
    begin(study_config(), tmp_path)
    with pytest.raises(InputError) as error:
        begin(study_config(**change), tmp_path)
    assert difference in str(error.value)
    assert "new `name:`" in str(error.value)
    assert "--fresh" in str(error.value)


def test_a_study_that_others_wrote_is_refused(tmp_path: Path) -> None:
    optuna.create_study(storage=storage_in(tmp_path), study_name="toy").add_trial(optuna.create_trial(value=1.0))
    with pytest.raises(InputError, match="that moesearch did not write"):
        begin(study_config(), tmp_path)


def test_a_creation_that_was_cut_short_is_taken_up(tmp_path: Path) -> None:
    optuna.create_study(storage=storage_in(tmp_path), study_name="toy")
    begin(study_config(), tmp_path)


def test_fresh_deletes_trials_confirmation_and_checkpoints(tmp_path: Path) -> None:
    storage = storage_in(tmp_path)
    begin(study_config(), tmp_path)
    work(study_config(), tmp_path)
    optuna.create_study(storage=storage, study_name=confirm_study_name("toy"))
    (tmp_path / "checkpoints" / "left").mkdir()
    study = open_study(
        study_config(num_trials=9), storage, fresh=True, checkpoints=DiskCheckpoints(tmp_path / "checkpoints")
    )
    assert study.trials == []
    assert [study.study_name for study in storage.get_all_studies()] == ["toy"]
    assert not (tmp_path / "checkpoints").exists()


def test_fresh_deletes_nothing_under_a_living_worker(tmp_path: Path) -> None:
    config = study_config()
    begin(config, tmp_path)
    claims = new_job(config, tmp_path).claims
    with claims.lock:
        claims.claim()
    with pytest.raises(InputError, match=f"is being worked on by {worker_name()}"):
        open_study(config, storage_in(tmp_path), fresh=True)


def test_the_first_milestone_after_the_warm_up_can_be_pruned() -> None:
    study = optuna.create_study(pruner=make_pruner(study_config(pruner={"type": "median", "warmup_trials": 1})))
    for value in (1.0, 2.0):
        trial = study.ask()
        verdicts = []
        for milestone in (1, 2, 3):
            trial.report(value, milestone)
            verdicts.append(trial.should_prune())
        study.tell(trial, value)
    assert verdicts == [False, False, True]
