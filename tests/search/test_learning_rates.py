from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from moesearch.config.study import StudyConfig
from moesearch.config.trial import TrialConfig
from moesearch.results.records import CONFIG, CONTROL, RATE, SEED, confirm_study_name
from moesearch.results.verdict import Verdict
from moesearch.search.confirm import plan_confirmation, settle_verdict
from moesearch.search.worker_names import host_name
from tests.search.stand_ins import (
    TableCheckpoint,
    TableTrainer,
    curve,
    searched_store,
    storage_in,
    study_config,
    work,
)

BASELINE = {"moe.num_experts": 4, "moe.top_k": 4, "moe.noise": True}  # the worst point of the table


def _loss_by_rate(config: TrialConfig) -> list[float]:
    """The table's curves, with a best learning rate of its own for the 8 experts: four times the base's."""
    best = 4e-3 if config.moe.num_experts == 8 else 1e-3
    return [loss + abs(math.log2(config.optim.lr / best)) for loss in curve(config)]


STUDY = study_config(
    num_trials=10, enqueue=(BASELINE,), confirm={"top": 1, "seeds": 2}, control="dense", sampler={"seed": 1}
)


def _searched(folder: Path, config: StudyConfig = STUDY) -> None:
    (folder / "optuna.db").write_bytes(searched_store(config.model_dump_json()))


def _confirmed_at(trials: list[FrozenTrial]) -> dict[int, set[float]]:
    """Experts -> learning rates of their confirmation runs; the dense control has one."""
    rates: dict[int, set[float]] = {}
    for trial in trials:
        if RATE not in trial.system_attrs:
            config = TrialConfig.model_validate(trial.system_attrs[CONFIG])
            rates.setdefault(config.moe.num_experts, set()).add(config.optim.lr)
    return rates


def _confirm_with_rates(folder: Path, config: StudyConfig = STUDY) -> list[FrozenTrial]:
    study = plan_confirmation(config, storage_in(folder))
    assert study is not None
    trainer = TableTrainer(losses=_loss_by_rate)
    work(config, folder, study=study, trainer=trainer, keeps_checkpoints=True)
    return study.trials


@cache
def _confirmed_store() -> bytes:
    """A store in which the confirmation with learning rates is over."""
    with TemporaryDirectory() as name:
        _searched(Path(name), STUDY)
        _confirm_with_rates(Path(name))
        storage_in(Path(name)).engine.dispose()
        return (Path(name) / "optuna.db").read_bytes()


def _confirmed(folder: Path) -> list[FrozenTrial]:
    (folder / "optuna.db").write_bytes(_confirmed_store())
    return optuna.load_study(study_name=confirm_study_name("toy"), storage=storage_in(folder)).trials


def test_each_finalist_is_confirmed_at_the_best_of_the_learning_rates_that_it_tried(tmp_path: Path) -> None:
    assert _confirmed_at(_confirmed(tmp_path)) == {8: {4e-3}, 4: {1e-3}, 1: {1e-3}}


def test_learning_rates_are_tried_on_one_seed_that_no_confirmation_has(tmp_path: Path) -> None:
    trials = _confirmed(tmp_path)
    tried = [trial for trial in trials if RATE in trial.system_attrs]
    by_finalist = {trial.system_attrs[RATE]["finalist"] for trial in tried}
    assert len({trial.user_attrs[SEED] for trial in tried}) == len(by_finalist) == 3
    assert not {t.user_attrs[SEED] for t in tried} & {t.user_attrs[SEED] for t in trials if t not in tried}


def test_the_dense_control_has_the_active_width_of_the_best_and_no_experts(tmp_path: Path) -> None:
    trials = _confirmed(tmp_path)
    control = next(trial for trial in trials if CONTROL in trial.params)
    config = TrialConfig.model_validate(control.system_attrs[CONFIG])
    assert (config.moe.num_experts, config.moe.top_k, config.expert_hidden_dim) == (1, 1, 4 * 128)


def test_without_a_learning_rate_search_all_are_confirmed_at_the_rate_of_the_study(tmp_path: Path) -> None:
    config = STUDY.model_copy(
        update={"confirm": STUDY.confirm.model_copy(update={"lr_search": False}), "control": "none"}
    )
    _searched(tmp_path)
    assert _confirmed_at(_confirm_with_rates(tmp_path, config)) == {8: {1e-3}, 4: {1e-3}}


def test_a_rate_that_has_begun_to_be_confirmed_stays_whatever_the_file_says_now(tmp_path: Path) -> None:
    _confirmed(tmp_path)
    changed = STUDY.model_copy(update={"confirm": STUDY.confirm.model_copy(update={"lr_search": False, "seeds": 3})})
    assert _confirmed_at(_confirm_with_rates(tmp_path, changed)) == {8: {4e-3}, 4: {1e-3}, 1: {1e-3}}


def test_a_learning_rate_that_the_search_chose_is_kept(tmp_path: Path) -> None:
    config = study_config(
        num_trials=4,
        search={"optim.lr": {"type": "categorical", "choices": [1e-3, 2e-3]}},
        confirm={"top": 2, "seeds": 2},
    )
    _searched(tmp_path, config)
    assert not any(RATE in trial.system_attrs for trial in _confirm_with_rates(tmp_path, config))


def test_a_worker_that_is_killed_leaves_the_learning_rates_to_the_next(tmp_path: Path) -> None:
    _searched(tmp_path)
    study = plan_confirmation(STUDY, storage_in(tmp_path))
    num_done = 0

    def dies_in_between(config: TrialConfig) -> list[float]:
        nonlocal num_done
        num_done += 1
        if num_done == 30:
            raise KeyboardInterrupt
        return _loss_by_rate(config)

    dead = f"{host_name()}:{2**22 + 1}:1.00"  # no process has this number
    with pytest.raises(KeyboardInterrupt):
        work(STUDY, tmp_path, study=study, trainer=TableTrainer(losses=dies_in_between), worker=dead)
    with_break = _confirm_with_rates(tmp_path)
    assert _confirmed_at(with_break) == {8: {4e-3}, 4: {1e-3}, 1: {1e-3}}
    assert {trial.state for trial in with_break} == {TrialState.COMPLETE}


def test_lanes_never_mix_the_dense_control_with_sparse_models(tmp_path: Path) -> None:
    _searched(tmp_path)
    study = plan_confirmation(STUDY, storage_in(tmp_path))
    trainer = _OneShapeTrainer(num_lanes=4, losses=_loss_by_rate)
    work(STUDY, tmp_path, study=study, trainer=trainer)
    assert study is not None
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


class _OneShapeTrainer(TableTrainer):
    """Refuses, as LaneTrainer does, to train a trial beside one of another shape."""

    def load(self, lane: int, config: TrialConfig, checkpoint: TableCheckpoint | None = None) -> None:
        widths = {loaded[0].expert_hidden_dim for loaded in self.lanes if loaded is not None}
        assert widths <= {config.expert_hidden_dim}
        super().load(lane, config, checkpoint)


def test_the_verdict_knows_the_control_and_the_learning_rates(tmp_path: Path) -> None:
    _confirmed(tmp_path)
    verdict = settle_verdict(STUDY, storage_in(tmp_path), lambda _: None)
    assert verdict is not None
    control = next(candidate for candidate in verdict.ranking if candidate.is_control)
    assert control.label == "the dense control"
    best = verdict.best
    assert best is not None
    assert best.rate is not None
    assert best.rate.lr == 4e-3
    assert [lr for lr, _ in best.rate.tried] == [5e-4, 1e-3, 2e-3, 4e-3, 8e-3]
    assert Verdict.from_json(json.loads(json.dumps(verdict.to_json()))) == verdict


def test_runs_that_nobody_stops_are_evaluated_a_fifth_as_often(tmp_path: Path) -> None:
    trials = _confirmed(tmp_path)
    assert {trial.system_attrs[CONFIG]["budget"]["milestones"] for trial in trials} == {1}
