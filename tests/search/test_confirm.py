from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from moesearch.config.study import StudyConfig
from moesearch.config.trial import TrialConfig
from moesearch.results.records import CONFIG, FINGERPRINT, REPLICATE, SEED, confirm_study_name
from moesearch.results.verdict import OpenedTest
from moesearch.search.confirm import plan_confirmation, settle_verdict
from tests.search.processes import in_processes
from tests.search.stand_ins import TableTrainer, begin, searched_store, storage_in, study_config, url_of, work

pytestmark = pytest.mark.usefixtures("every_store")

BASELINE = {"moe.num_experts": 4, "moe.top_k": 4, "moe.noise": True}  # the worst point of the table
CONFIG_OF_STUDY = study_config(num_trials=10, enqueue=(BASELINE,), confirm={"top": 3, "seeds": 2, "lr_search": False})


def _searched(folder: Path, config: StudyConfig = CONFIG_OF_STUDY) -> RDBStorage:
    if url_of(folder).startswith("sqlite"):
        (folder / "optuna.db").write_bytes(searched_store(config.model_dump_json()))
    else:
        begin(config, folder)
        work(config, folder)
    return storage_in(folder)


def _confirm(folder: Path, config: StudyConfig = CONFIG_OF_STUDY) -> list[FrozenTrial]:
    study = plan_confirmation(config, storage_in(folder))
    assert study is not None
    work(config, folder, study=study, keeps_checkpoints=True)
    return study.trials


class TestSplit:
    """Counts the openings of the test split."""

    __test__ = False

    def __init__(self) -> None:
        self.openings: list[list[str]] = []

    def __call__(self, keys: Sequence[str]) -> OpenedTest:
        self.openings.append(list(keys))
        return OpenedTest((2.0, 2.1), (3.0, 3.1), opened_at=1.0)


def test_the_leaders_and_the_baseline_are_trained_again_on_each_seed(tmp_path: Path) -> None:
    storage = _searched(tmp_path)
    search = optuna.load_study(study_name="toy", storage=storage).trials
    trials = _confirm(tmp_path)
    leaders = [trial.user_attrs[FINGERPRINT] for trial in sorted(search, key=lambda trial: trial.value or 0)[:3]]
    expected = [(name, index) for index in (0, 1) for name in (*leaders, search[0].user_attrs[FINGERPRINT])]
    assert [(trial.user_attrs[FINGERPRINT], trial.user_attrs[REPLICATE]) for trial in trials] == expected
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}


def test_a_baseline_among_the_leaders_is_not_trained_twice(tmp_path: Path) -> None:
    config = study_config(
        num_trials=10,
        enqueue=({"moe.num_experts": 8, "moe.top_k": 1, "moe.noise": False},),  # the best point of the table
        confirm={"top": 3, "seeds": 2, "lr_search": False},
    )
    _searched(tmp_path, config)
    assert len(_confirm(tmp_path, config)) == 6


def test_confirmation_is_on_seeds_that_the_search_never_saw_and_on_one_order_of_data_per_seed(tmp_path: Path) -> None:
    storage = _searched(tmp_path)
    searched = {trial.user_attrs[SEED] for trial in optuna.load_study(study_name="toy", storage=storage).trials}
    trials = _confirm(tmp_path)
    configs = [TrialConfig.model_validate(trial.system_attrs[CONFIG]) for trial in trials]
    orders = [{config.order_seed for config in configs[:4]}, {config.order_seed for config in configs[4:]}]
    assert len({config.seed for config in configs}) == 8
    assert not searched & {config.seed for config in configs}
    assert [len(order) for order in orders] == [1, 1]
    assert orders[0] != orders[1]


def _plan_and_work(folder: str) -> None:
    study = plan_confirmation(CONFIG_OF_STUDY, storage_in(Path(folder)))
    assert study is not None
    work(CONFIG_OF_STUDY, Path(folder), study=study, trainer=TableTrainer(seconds=0.01), keeps_checkpoints=True)


def test_workers_that_plan_together_run_each_confirmation_once(tmp_path: Path) -> None:
    _searched(tmp_path)
    with in_processes([(_plan_and_work, (str(tmp_path),))] * 3):
        pass
    trials = optuna.load_study(study_name=confirm_study_name("toy"), storage=storage_in(tmp_path)).trials
    assert len(trials) == 8
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}


def test_planning_again_adds_only_what_more_seeds_ask_for(tmp_path: Path) -> None:
    _searched(tmp_path)
    _confirm(tmp_path)
    more = CONFIG_OF_STUDY.model_copy(update={"confirm": CONFIG_OF_STUDY.confirm.model_copy(update={"seeds": 3})})
    trials = _confirm(tmp_path, more)
    assert [trial.user_attrs[REPLICATE] for trial in trials[8:]] == [2] * 4


def test_a_confirmation_run_that_failed_is_tried_again_and_not_for_ever(tmp_path: Path) -> None:
    _searched(tmp_path)

    def fails(config: TrialConfig) -> list[float]:
        raise ZeroDivisionError

    for _ in range(5):
        study = plan_confirmation(CONFIG_OF_STUDY, storage_in(tmp_path))
        work(CONFIG_OF_STUDY, tmp_path, study=study, trainer=TableTrainer(losses=fails))
    assert study is not None
    assert len(study.trials) <= 8 * 3


def test_no_confirmation_is_planned_where_none_is_asked_for(tmp_path: Path) -> None:
    config = study_config(num_trials=2)
    assert plan_confirmation(config, _searched(tmp_path, config)) is None


def test_the_verdict_opens_the_test_split_once_for_the_winner(tmp_path: Path) -> None:
    storage = _searched(tmp_path)
    _confirm(tmp_path)
    test_split = TestSplit()
    first = settle_verdict(CONFIG_OF_STUDY, storage, test_split)
    again = settle_verdict(CONFIG_OF_STUDY, storage, test_split)
    assert first is not None
    assert first.best is not None
    assert first.best.params == {"moe.num_experts": 8, "moe.top_k": 1, "moe.noise": False}
    assert test_split.openings == [[f"{first.best.fingerprint}-0", f"{first.best.fingerprint}-1"]]
    assert again == first


def test_new_runs_that_change_the_verdict_open_it_again(tmp_path: Path) -> None:
    storage = _searched(tmp_path)
    _confirm(tmp_path)
    test_split = TestSplit()
    settle_verdict(CONFIG_OF_STUDY, storage, test_split)
    more = CONFIG_OF_STUDY.model_copy(update={"confirm": CONFIG_OF_STUDY.confirm.model_copy(update={"seeds": 3})})
    _confirm(tmp_path, more)
    verdict = settle_verdict(more, storage, test_split)
    assert verdict is not None
    assert verdict.num_seeds == 3
    assert len(test_split.openings) == 2


def test_the_models_of_confirmation_runs_are_kept_for_the_test_split(tmp_path: Path) -> None:
    _searched(tmp_path)
    trials = _confirm(tmp_path)
    kept = {path.stem for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {f"{trial.user_attrs[FINGERPRINT]}-{trial.user_attrs[REPLICATE]}" for trial in trials}


def test_without_finished_confirmation_runs_there_is_no_verdict(tmp_path: Path) -> None:
    config = study_config(num_trials=2)
    assert settle_verdict(config, _searched(tmp_path, config), TestSplit()) is None


@pytest.mark.parametrize(
    "rates",
    [
        {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
        {"type": "categorical", "choices": [1e-3, 3e-3]},
    ],
)
def test_a_study_that_searches_the_learning_rate_is_confirmed_beside_its_control(
    rates: dict[str, Any], tmp_path: Path
) -> None:
    search = {"moe.num_experts": {"type": "categorical", "choices": [2, 4, 8]}, "optim.lr": rates}
    config = study_config(search=search, num_trials=5, confirm={"top": 2, "seeds": 2}, control="dense")
    begin(config, tmp_path)
    work(config, tmp_path)
    planned = plan_confirmation(config, storage_in(tmp_path))
    assert planned is not None
    assert all("optim.lr" in trial.params for trial in planned.trials)  # of the control too, whose rate is no knob's
