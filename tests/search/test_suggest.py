from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from moesearch.config.resolve import is_feasible
from moesearch.config.space import feasible_points
from moesearch.config.study import StudyConfig
from moesearch.search.suggest import make_sampler, suggest
from tests.search.stand_ins import study_config

# The main job's space: 72 points, 66 of them feasible.
EXPERTS: dict[str, Any] = {
    "moe.num_experts": {"type": "categorical", "choices": [2, 4, 8, 16]},
    "moe.top_k": {"type": "categorical", "choices": [1, 2, 4]},
    "moe.init": {"type": "categorical", "choices": ["kaiming_normal", "xavier_normal", "normal"]},
    "moe.noise": {"type": "categorical", "choices": [True, False]},
}


def _loss(params: dict[str, Any]) -> float:
    init = {"kaiming_normal": 0.08, "xavier_normal": 0.0, "normal": 0.03}[params["moe.init"]]
    noise, num_experts, top_k = float(params["moe.noise"]), int(params["moe.num_experts"]), int(params["moe.top_k"])
    return 2.0 + init + 0.02 * noise + 0.1 / num_experts - 0.01 * top_k


def _search(config: StudyConfig, num_trials: int, loss: Callable[[dict[str, Any]], float] = _loss) -> optuna.Study:
    study = optuna.create_study(sampler=make_sampler(config))
    for _ in range(num_trials):
        trial = study.ask()
        study.tell(trial, loss(suggest(trial, config.search)))
    return study


def _points(study: optuna.Study) -> list[tuple[Any, ...]]:
    return [tuple(trial.params.values()) for trial in study.trials]


def test_auto_covers_a_space_that_fits_the_budget_point_by_point() -> None:
    config = study_config(search=EXPERTS, num_trials=70)
    study = _search(config, 66)
    feasible = feasible_points(config)
    assert feasible is not None
    assert sorted(map(str, _points(study))) == sorted(str(tuple(point.values())) for point in feasible)


def test_what_auto_has_left_goes_to_further_seeds_of_the_leaders() -> None:
    study = _search(study_config(search=EXPERTS, num_trials=88), 88)
    best_eleven = sorted(study.trials[:66], key=lambda trial: trial.value or 0)[:11]
    again = Counter(_points(study)[66:])
    assert again == {tuple(trial.params.values()): 2 for trial in best_eleven}


def test_the_first_points_of_a_cover_try_at_least_three_values_of_each_knob_that_has_them() -> None:
    study = _search(study_config(search=EXPERTS, num_trials=70), 6)
    assert all(
        len(set(values)) >= min(3, len(knob["choices"]))
        for values, knob in zip(zip(*_points(study), strict=True), EXPERTS.values(), strict=True)
    )


@pytest.mark.parametrize("sampler", ["auto", "tpe", "random"])
def test_no_sampler_repeats_or_breaks_a_rule_while_a_feasible_point_is_untried(sampler: str) -> None:
    # Plain TPE tries 37 of the points in 60 trials, and a sixth of its proposals break a rule.
    config = study_config(search=EXPERTS, num_trials=60, sampler={"type": sampler, "seed": 3})
    study = _search(config, 60)
    assert len(set(_points(study))) == 60
    assert all(is_feasible(config.base, trial.params) for trial in study.trials)


def test_tpe_finds_the_best_point_sooner_than_chance_would() -> None:
    numbers = []
    for seed in range(8):
        config = study_config(search=EXPERTS, num_trials=24, sampler={"type": "tpe", "seed": seed})
        study = _search(config, 24)
        numbers.append(study.best_trial.number if study.best_value < 1.97 else 66)
    # The mean place of the best point in a random order of 66 is 33.5.
    assert sum(numbers) / len(numbers) < 22


def test_a_space_with_a_continuous_knob_draws_until_no_rule_is_broken() -> None:
    search = {**EXPERTS, "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}}
    config = study_config(search=search, sampler={"type": "tpe", "seed": 1})
    study = _search(config, 40, lambda params: abs(params["optim.lr"] - 1e-3) + params["moe.top_k"])
    assert all(is_feasible(config.base, trial.params) for trial in study.trials)


def test_workers_that_ask_at_one_time_are_given_different_points() -> None:
    config = study_config(search=EXPERTS, num_trials=24)
    study = _search(config, 12)
    running = [tuple(suggest(study.ask(), config.search).values()) for _ in range(8)]
    assert len(set(running) | set(_points(study)[:12])) == 20


def test_a_queued_configuration_is_taken_as_it_is_and_completed_feasibly() -> None:
    config = study_config(search=EXPERTS)
    study = optuna.create_study(sampler=make_sampler(config))
    study.enqueue_trial({"moe.num_experts": 2, "moe.init": "normal"})
    params = suggest(study.ask(), config.search)
    assert (params["moe.num_experts"], params["moe.init"]) == (2, "normal")
    assert is_feasible(config.base, params)


def test_a_trial_that_was_begun_keeps_its_parameters() -> None:
    config = study_config(search=EXPERTS)
    study = optuna.create_study(sampler=make_sampler(config))
    trial = study.ask()
    first = suggest(trial, config.search)
    study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
    assert suggest(study.ask(), config.search) == first


def test_a_restart_proposes_what_the_run_would_have_proposed() -> None:
    config = study_config(search=EXPERTS, num_trials=24, sampler={"type": "tpe", "seed": 5})
    unbroken = _search(config, 20)
    study = optuna.create_study()
    for _ in range(20):
        study.sampler = make_sampler(config)  # as a new process would
        trial = study.ask()
        study.tell(trial, _loss(suggest(trial, config.search)))
    assert _points(study) == _points(unbroken)


def test_a_configuration_that_failed_is_not_proposed_again() -> None:
    config = study_config(num_trials=11)
    study = optuna.create_study(sampler=make_sampler(config))
    for _ in range(11):
        trial = study.ask()
        suggest(trial, config.search)
        study.tell(trial, state=TrialState.FAIL)
    assert len(set(_points(study))) == 10
