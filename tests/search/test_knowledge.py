"""What is known already: guesses, earlier studies, and a space that became wider."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from moesearch.config.study import StudyConfig
from moesearch.config.trial import TrialConfig
from moesearch.errors import InputError
from moesearch.results.records import OUTCOME, STUDY_CONFIG, TRANSFERRED
from moesearch.search.endings import regret_bound, why_ended
from moesearch.search.priors import guesses, probability
from moesearch.search.suggest import distributions, make_sampler, suggest
from moesearch.search.transfer import earlier_results
from tests.search.stand_ins import TableTrainer, begin, storage_in, study_config, work
from tests.search.test_halving import SEARCH, losses

LR: dict[str, Any] = {"type": "float", "low": 1e-4, "high": 1e-2, "log": True, "prior": {"value": 3e-4, "strength": 3}}


def _trial(config: StudyConfig, params: dict[str, Any], value: float, number: int = 0, name: str = "a") -> FrozenTrial:
    trial = create_trial(
        state=TrialState.COMPLETE,
        value=value,
        params=params,
        distributions={path: d for path, d in distributions(config.search).items() if path in params},
        user_attrs={OUTCOME: "complete", "fingerprint": name, "replicate": 0},
    )
    trial.number = number
    return trial


def test_a_guess_is_tried_first_and_then_followed_as_often_as_its_strength_says() -> None:
    config = study_config(search={"optim.lr": LR})
    study = optuna.create_study(sampler=make_sampler(config))
    first = suggest(study.ask(), config.search)["optim.lr"]
    assert 2e-4 < first < 4.5e-4
    knob = config.search["optim.lr"]
    good = [_trial(config, {"optim.lr": 3e-4}, 2.0, 0), _trial(config, {"optim.lr": 8e-3}, 3.0, 1)]
    assert knob.prior is not None
    assert probability(knob, knob.prior, "optim.lr", good, frozenset({0})) == 0.75


def test_a_guess_that_does_not_pay_is_left() -> None:
    config = study_config(search={"optim.lr": LR})
    near = [_trial(config, {"optim.lr": 3e-4}, 3.0, number) for number in range(8)]
    far = [_trial(config, {"optim.lr": 5e-3}, 2.0, number) for number in range(8, 16)]
    followed = sum(bool(guesses(config.search, [*near, *far], np.random.default_rng(seed))) for seed in range(200))
    assert followed / 200 < 0.75 * 2 / 10 + 0.08


def test_a_search_with_a_good_guess_is_sooner_near_the_best(tmp_path: Path) -> None:
    def mean_of_first_ten(prior: dict[str, Any] | None) -> float:
        values = []
        for seed in range(5):
            knob = {**LR, "prior": prior}
            config = study_config(search={"optim.lr": knob}, num_trials=10, sampler={"type": "tpe", "seed": seed})
            study = optuna.create_study(sampler=make_sampler(config))
            for _ in range(10):
                trial = study.ask()
                study.tell(trial, abs(float(np.log10(suggest(trial, config.search)["optim.lr"] / 3e-4))))
            values += [trial.value or 0.0 for trial in study.trials]
        return float(np.mean(values))

    assert mean_of_first_ten({"value": 3e-4, "strength": 3}) < 0.6 * mean_of_first_ten(None)


def _earlier(folder: Path) -> None:
    config = study_config(name="earlier", search=SEARCH, num_trials=10, base={"budget": {"steps": 20, "milestones": 4}})
    begin(config, folder)
    work(config, folder, trainer=TableTrainer(losses=losses))


def test_earlier_results_at_matching_configurations_are_known_and_count_as_no_trials(tmp_path: Path) -> None:
    _earlier(tmp_path)
    # Another budget matches; another space does where its points are the same configurations.
    search = {**SEARCH, "moe.num_experts": {"type": "categorical", "choices": [2, 4, 64]}}
    config = study_config(search=search, transfer_from=["earlier"], num_trials=5, sampler={"type": "tpe"})
    study = begin(config, tmp_path)
    known = earlier_results(config, storage_in(tmp_path))
    assert 0 < len(known) < 10
    assert {trial.params["moe.num_experts"] for trial in known} <= {2, 4}
    assert study.trials == []
    storage = storage_in(tmp_path)
    assert storage.get_study_system_attrs(study._study_id)[TRANSFERRED] == len(known)
    work(config, tmp_path)
    assert len(study.trials) == 5


def test_results_of_another_model_are_no_match(tmp_path: Path) -> None:
    _earlier(tmp_path)
    config = study_config(search=SEARCH, transfer_from=["earlier"], base={"optim": {"lr": 0.5}})
    begin(config, tmp_path)
    assert earlier_results(config, storage_in(tmp_path)) == []


def test_a_study_to_transfer_from_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="transfer_from names nowhere, which is not another study of the store"):
        begin(study_config(transfer_from=["nowhere"]), tmp_path)


def _widened(**knobs: dict[str, Any]) -> StudyConfig:
    return study_config(num_trials=14, search={**dict(study_config().model_dump()["search"]), **knobs})


def test_a_wider_space_goes_on_with_its_trials(tmp_path: Path) -> None:
    study = begin(study_config(), tmp_path)
    work(study_config(), tmp_path)
    before = [(trial.params, trial.values) for trial in study.trials]
    knobs: dict[str, dict[str, Any]] = {
        "moe.num_experts": {"type": "categorical", "choices": [16, 8, 2, 4]},
        "optim.grad_clip": {"type": "categorical", "choices": [None, 1.0]},
    }
    wider = _widened(**knobs)
    study = begin(wider, tmp_path)
    assert [({k: v for k, v in t.params.items() if k != "optim.grad_clip"}, t.values) for t in study.trials] == before
    assert all(trial.params["optim.grad_clip"] is None for trial in study.trials)
    work(wider, tmp_path)
    assert len(study.trials) == 14
    assert len({tuple(sorted(map(str, trial.params.items()))) for trial in study.trials}) == 14
    storage = storage_in(tmp_path)
    assert StudyConfig.model_validate(storage.get_study_system_attrs(study._study_id)[STUDY_CONFIG]) == wider


@pytest.mark.parametrize(
    "knobs",
    [
        {"moe.num_experts": {"type": "categorical", "choices": [2, 4, 16]}},
        {"moe.num_experts": {"type": "int", "low": 1, "high": 16}},
        {"optim.lr": {"type": "float", "low": 0.1, "high": 0.2}},
    ],
    ids=["a choice less", "another kind", "a new knob without the base's value"],
)
def test_a_space_that_lost_or_moved_points_is_refused_with_the_difference(
    knobs: dict[str, Any], tmp_path: Path
) -> None:
    begin(study_config(), tmp_path)
    work(study_config(), tmp_path)
    with pytest.raises(InputError, match=rf"(?s)search\.{next(iter(knobs))}.*Two ways on"):
        begin(_widened(**knobs), tmp_path)


def test_a_wider_range_of_numbers_goes_on(tmp_path: Path) -> None:
    narrow = study_config(
        search={"optim.warmup_tokens": {"type": "int", "low": 0, "high": 40, "step": 20}}, num_trials=3
    )
    wide = study_config(search={"optim.warmup_tokens": {"type": "int", "low": 0, "high": 80, "step": 10}}, num_trials=9)
    begin(narrow, tmp_path)
    work(narrow, tmp_path)
    study = begin(wide, tmp_path)
    work(wide, tmp_path)
    assert sorted(trial.params["optim.warmup_tokens"] for trial in study.trials) == [*range(0, 90, 10)]


def test_a_search_ends_at_its_target_and_says_so(tmp_path: Path) -> None:
    config = study_config(num_trials=10, stop={"target": 2.2})
    study = begin(config, tmp_path)
    work(config, tmp_path)
    best = min(trial.values[0] for trial in study.trials)
    assert best <= 2.2
    assert all(trial.values[0] > 2.2 for trial in study.trials[:-1])
    assert why_ended(config, study.trials) == f"the target 2.2 is reached: trial {len(study.trials) - 1} has {best:.4f}"


def test_a_search_ends_when_its_last_trials_improve_on_nothing(tmp_path: Path) -> None:
    config = study_config(num_trials=10, stop={"patience": 3})
    study = begin(config, tmp_path)
    seen: list[int] = []

    def worse_after_the_second(trial: TrialConfig) -> list[float]:
        if trial.seed not in seen:
            seen.append(trial.seed)
        return [[2.0, 1.9, 1.95][min(seen.index(trial.seed), 2)]] * 4

    work(config, tmp_path, trainer=TableTrainer(losses=worse_after_the_second))
    assert len(study.trials) == 5
    assert why_ended(config, study.trials) == "the last 3 trials improved on nothing"


def test_an_improvement_within_the_seed_noise_is_none() -> None:
    config = study_config(stop={"patience": 2})
    pair = [_trial(config, {}, 2.0, 0, "x"), _trial(config, {}, 2.2, 1, "x")]  # deviation 0.14
    assert why_ended(config, [*pair, _trial(config, {}, 1.95, 2, "y"), _trial(config, {}, 2.3, 3, "z")])
    assert not why_ended(config, [*pair, _trial(config, {}, 1.75, 2, "y"), _trial(config, {}, 2.3, 3, "z")])


def test_the_regret_bound_falls_to_nothing_once_the_knobs_are_understood(tmp_path: Path) -> None:
    config = study_config(num_trials=10, stop={"regret": 0.005})
    study = begin(config, tmp_path)
    work(config, tmp_path)
    assert len(study.trials) < 10
    bound = regret_bound(config, study.trials)
    assert bound is not None
    assert bound <= 0.005
    assert "is expected to be better by more than" in why_ended(config, study.trials)
