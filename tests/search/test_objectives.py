from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.study import StudyDirection
from optuna.trial import TrialState

from moesearch.config.quantities import parse_constraint
from moesearch.config.study import StudyConfig
from moesearch.config.trial import TrialConfig
from moesearch.results.front import front
from moesearch.results.overview import read_overview
from moesearch.results.pareto import pareto_front
from moesearch.results.records import FINGERPRINT, OUTCOME, REASON
from moesearch.results.study import read_study
from moesearch.search.finalists import finalists
from moesearch.search.worker import run_worker
from moesearch.training.points import EvalPoint, LayerHealth, RouterHealth
from tests.search.stand_ins import JsonCheckpoints, TableTrainer, begin, new_job, storage_in, study_config, url_of, work

TWO: dict[str, Any] = {"objectives": ["val_loss", "active_params"], "num_trials": 10}


def _health(dead_experts: int) -> RouterHealth:
    return RouterHealth.of([LayerHealth((0.5, 0.5), 1.0, 0.0, dead_experts, 0.0, 0.1, 0.9, 1.0, 0.0)])


class SickTrainer(TableTrainer):
    """Experts die where the router is noisy, from the second milestone on."""

    def advance(self, should_stop: Callable[[], bool]) -> list[tuple[int, EvalPoint]]:
        points = []
        for lane, point in super().advance(should_stop):
            loaded = self.lanes[lane]
            assert loaded is not None
            is_sick = loaded[0].moe.noise and point.milestone >= 2
            loaded[1][-1] = replace(point, router_health=_health(3 if is_sick else 0))
            points.append((lane, loaded[1][-1]))
        return points


def _work(config: StudyConfig, folder: Path, trainer: TableTrainer | None = None) -> None:
    """A worker whose trials have active parameters that grow with top_k."""
    job = new_job(config, folder)

    def facts(trial: TrialConfig) -> dict[str, int]:
        return {
            "total_params": 100 * trial.moe.num_experts,
            "active_params": 100 * trial.moe.top_k,
            "flops_per_token": 1,
        }

    run_worker(replace(job, facts=facts), trainer or TableTrainer(), JsonCheckpoints(folder / "checkpoints"), Event())


def test_a_study_of_two_objectives_tells_both(tmp_path: Path) -> None:
    config = study_config(**TWO)
    study = begin(config, tmp_path)
    _work(config, tmp_path)
    assert study.directions == [StudyDirection.MINIMIZE] * 2
    assert study.metric_names == ["val_loss", "active_params"]
    assert all(trial.values[1] == 100 * trial.params["moe.top_k"] for trial in study.trials)
    assert len(study.trials) == 10


def test_speed_is_raised(tmp_path: Path) -> None:
    config = study_config(objectives=["val_loss", "tokens_per_second"], num_trials=2)
    study = begin(config, tmp_path)
    _work(config, tmp_path)
    assert study.directions == [StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE]
    assert all(trial.values[1] == pytest.approx(100.0) for trial in study.trials)


@pytest.mark.parametrize(
    "pruner",
    [
        {"type": "median", "warmup_milestones": 0, "warmup_trials": 1},
        {"type": "percentile", "warmup_milestones": 0, "warmup_trials": 1},
        {"type": "patient", "patience": 0},
        {"type": "threshold", "upper": 2.0, "warmup_milestones": 0},
        {"type": "wilcoxon", "p": 0.5, "warmup_milestones": 1},
        {"type": "hyperband", "eta": 2},
        {"type": "asha", "eta": 2},
        {"type": "none"},
    ],
    ids=lambda pruner: str(pruner["type"]),
)
@pytest.mark.parametrize("objectives", [["val_loss"], ["val_loss", "active_params"]], ids=["one", "two"])
def test_every_pruner_works_with_one_objective_and_with_two(
    pruner: dict[str, Any], objectives: list[str], tmp_path: Path
) -> None:
    config = study_config(objectives=objectives, num_trials=8, pruner=pruner)
    study = begin(config, tmp_path)
    _work(config, tmp_path)
    assert {trial.state for trial in study.trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    (overview,) = read_overview(url_of(tmp_path))
    assert (overview.finished, overview.failed) == (8, 0)
    stops = pruner["type"] in ("median", "percentile", "threshold", "hyperband", "asha")
    assert (overview.pruned > 0) or not stops


def test_the_front_holds_what_no_other_configuration_beats_in_everything(tmp_path: Path) -> None:
    config = study_config(**TWO)
    study = begin(config, tmp_path)
    _work(config, tmp_path)
    frame = pareto_front(read_study(storage_in(tmp_path), "toy"))
    # Losses rise with top_k too, so the best of top_k 1 beats everything.
    assert list(frame["active_params"]) == [100.0]
    assert frame["val_loss"].iloc[0] == min(trial.values[0] for trial in study.trials)
    assert [
        finalist.fingerprint for finalist in finalists(study.trials, study_config(**TWO, confirm={"top": 3}))
    ] == list(frame["fingerprint"])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20))
def test_every_point_off_the_front_is_beaten_by_one_on_it(points: list[tuple[float, float]]) -> None:
    means = {str(number): point for number, point in enumerate(points)}
    on_it = front(means, ["val_loss", "tokens_per_second"])
    assert on_it
    for name, (loss, speed) in means.items():
        beaten = any(means[o][0] <= loss and means[o][1] >= speed and means[o] != means[name] for o in on_it)
        assert beaten == (name not in on_it)


def test_a_size_beyond_its_bound_is_infeasible_before_training(tmp_path: Path) -> None:
    config = study_config(num_trials=5, constraints=["active_params <= 100"])
    study = begin(config, tmp_path)
    trainer = TableTrainer()
    _work(config, tmp_path, trainer)
    refused = [trial for trial in study.trials if trial.user_attrs[OUTCOME] == "infeasible"]
    assert refused
    assert {trial.params["moe.top_k"] for trial in refused} == {4}
    assert refused[0].user_attrs[REASON] == "active_params <= 100 is violated by 300"
    assert not {trial.user_attrs[FINGERPRINT] for trial in refused} & {
        fingerprint for fingerprint, _, _ in trainer.trained
    }


def test_two_sick_milestones_in_a_row_end_a_trial_under_its_name(tmp_path: Path) -> None:
    config = study_config(num_trials=6, constraints=["dead_experts <= 0"])
    study = begin(config, tmp_path)
    _work(config, tmp_path, SickTrainer())
    sick = [trial for trial in study.trials if trial.params["moe.noise"]]
    assert sick
    assert {(trial.user_attrs[OUTCOME], trial.state, trial.last_step) for trial in sick} == {
        ("violated", TrialState.PRUNED, 3)
    }
    assert sick[0].constraints["dead_experts <= 0"] == 3.0
    assert all(trial.user_attrs[OUTCOME] == "complete" for trial in study.trials if not trial.params["moe.noise"])
    assert len(study.trials) == 6


def test_a_trial_that_ends_beyond_a_bound_is_complete_but_no_candidate(tmp_path: Path) -> None:
    config = study_config(num_trials=6, constraints=["val_loss <= 2.2"], confirm={"top": 6})
    study = begin(config, tmp_path)
    _work(config, tmp_path)
    violating = [trial for trial in study.trials if trial.values[0] > 2.2]
    assert violating
    assert {(trial.user_attrs[OUTCOME], trial.state) for trial in violating} == {("violated", TrialState.COMPLETE)}
    confirmed = {finalist.fingerprint for finalist in finalists(study.trials, config)}
    assert confirmed == {trial.user_attrs[FINGERPRINT] for trial in study.trials if trial.values[0] <= 2.2}
    assert (read_overview(url_of(tmp_path))[0].best_value or 9) <= 2.2


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("dead_experts < 1", "must be a quantity, <= or >="),
        ("dead_expert <= 1", "dead_expert is no quantity; known here: val_loss"),
        ("dead_experts <= 1.2.3", "1.2.3 is no number"),
        ("__import__('os') <= 1", "must be a quantity, <= or >="),
    ],
)
def test_a_constraint_that_is_none_says_why(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_constraint(text)


def test_a_constraint_can_be_a_lower_bound() -> None:
    assert parse_constraint("load_entropy >= 0.9").violation(0.7) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"objective": "val_bpb", "objectives": ["val_loss", "val_bpb"]}, "must be the first of objectives"),
        (
            {"objectives": ["tokens_per_second", "val_loss"]},
            "is raised, and the first objective is one",
        ),
        ({"objectives": ["val_loss", "val_loss"]}, "must differ"),
        ({"objective": "max_vio", "pruner": {"type": "median"}}, "looks at losses"),
        ({"objective": "max_vio", "confirm": {"top": 1}}, "it compares losses"),
        ({"constraints": ["max_vio < 3"]}, r"number 1 .* must be a quantity"),
    ],
)
def test_objectives_that_do_not_go_together_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        study_config(**changes)


def test_one_objective_written_as_a_list_is_that_objective(tmp_path: Path) -> None:
    config = study_config(objectives=["val_bpb"], num_trials=1)
    study = begin(config, tmp_path)
    work(config, tmp_path)
    assert config.objective == "val_bpb"
    assert study.metric_names == ["val_bpb"]
    assert study.trials[0].values == [study.trials[0].intermediate_values[4]]
