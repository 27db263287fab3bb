from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.study import StudyDirection
from optuna.trial import TrialState

from moesearch.config.knobs import CategoricalKnob, FloatKnob, IntKnob, Knob
from moesearch.config.loader import load_study
from moesearch.config.resolve import is_feasible
from moesearch.config.space import feasible_points, points, size
from moesearch.config.study import StudyConfig
from moesearch.errors import StudyFileError
from moesearch.search.coordinates import unit_of, value_at_unit
from moesearch.search.suggest import make_sampler, suggest
from tests.search.stand_ins import TableTrainer, begin, study_config, work
from tests.search.test_halving import SEARCH, losses

SAMPLERS = ["auto", "tpe", "random", "gp", "cmaes", "qmc", "grid", "nsga2"]
LR: dict[str, Any] = {"optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}}
CONDITIONAL: dict[str, Any] = {
    "moe.init": {"type": "categorical", "choices": ["normal", "kaiming_normal"]},
    "moe.init_std": {"type": "categorical", "choices": [0.01, 0.02, 0.04], "when": {"moe.init": "normal"}},
    "moe.noise": {"type": "categorical", "choices": [True, False]},
}


def _loss(params: dict[str, Any]) -> float:
    lr = float(params.get("optim.lr", 1e-3))
    return float(2.0 + abs(np.log10(lr) + 3) + 1 / params.get("moe.num_experts", 8) + 0.1 * params.get("moe.noise", 0))


def _search(config: StudyConfig, num_trials: int) -> optuna.Study:
    directions = [StudyDirection.MINIMIZE] * len(config.all_objectives)
    study = optuna.create_study(sampler=make_sampler(config), directions=directions)
    for _ in range(num_trials):
        trial = study.ask()
        params = suggest(trial, config.search)
        study.tell(trial, [_loss(params), float(params.get("moe.top_k", 1))][: len(directions)])
    return study


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_brings_a_study_with_promotions_to_its_end(sampler: str, tmp_path: Path) -> None:
    config = study_config(search=SEARCH, num_trials=6, sampler={"type": sampler, "seed": 1}, pruner={"type": "asha"})
    study = begin(config, tmp_path)
    work(config, tmp_path, trainer=TableTrainer(losses=losses))
    first = [trial for trial in study.trials if "moesearch:continues" not in trial.system_attrs]
    assert len(first) == len({tuple(trial.params.values()) for trial in first}) == 6
    assert {trial.state for trial in study.trials} <= {TrialState.COMPLETE, TrialState.PRUNED}


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "grid"])
@pytest.mark.parametrize("search", [{**SEARCH, **LR}, {**CONDITIONAL, **LR}], ids=["plain", "conditional"])
def test_every_sampler_keeps_the_rules_of_a_space_with_a_continuous_knob(search: dict[str, Any], sampler: str) -> None:
    config = study_config(search=search, num_trials=20, sampler={"type": sampler, "seed": 2})
    study = _search(config, 20)
    assert all(is_feasible(config.base, trial.params) for trial in study.trials)
    assert all(
        ("moe.init_std" in t.params) == (t.params["moe.init"] == "normal")
        for t in study.trials
        if "moe.noise" in t.params
    )
    # Genes are handed down.
    assert len({trial.params["optim.lr"] for trial in study.trials}) >= (4 if sampler == "nsga2" else 18)


@pytest.mark.parametrize("sampler", ["auto", "tpe", "gp", "cmaes", "nsga2"])
def test_samplers_that_learn_come_closer_than_chance(sampler: str) -> None:
    best: dict[str, list[float]] = {"random": [], sampler: []}
    for seed in range(3):
        for name, values in best.items():
            config = study_config(search={**SEARCH, **LR}, num_trials=40, sampler={"type": name, "seed": seed})
            study = _search(config, 40)
            values.append(float(np.mean([trial.value for trial in study.trials[25:]])))
    assert np.mean(best[sampler]) < np.mean(best["random"])


@pytest.mark.parametrize("sampler", ["auto", "tpe", "gp", "nsga2", "random", "qmc"])
def test_samplers_take_two_objectives(sampler: str) -> None:
    config = study_config(
        search={**SEARCH, **LR}, num_trials=20, sampler={"type": sampler}, objectives=["val_loss", "active_params"]
    )
    assert len(_search(config, 20).best_trials) >= 1


def test_grid_trains_every_point_once_and_then_all_again() -> None:
    config = study_config(search=SEARCH, num_trials=75, sampler={"type": "grid"})
    study = _search(config, 75)
    counts = Counter(tuple(trial.params.values()) for trial in study.trials)
    assert len(counts) == 30
    assert Counter(counts.values()) == {2: 15, 3: 15}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_restart_proposes_what_the_run_would_have_proposed(sampler: str) -> None:
    config = study_config(search=SEARCH, num_trials=24, sampler={"type": sampler, "seed": 5})
    unbroken = _search(config, 12)
    study = optuna.create_study()
    for _ in range(12):
        study.sampler = make_sampler(config)  # as a new process would
        trial = study.ask()
        study.tell(trial, _loss(suggest(trial, config.search)))
    assert [trial.params for trial in study.trials] == [trial.params for trial in unbroken.trials]


def test_a_point_has_no_value_for_a_knob_whose_condition_does_not_hold() -> None:
    config = study_config(search=CONDITIONAL)
    assert size(config.search) == len(list(points(config.search))) == (3 + 1) * 2
    assert all(("moe.init_std" in point) == (point["moe.init"] == "normal") for point in points(config.search))


def test_a_conditional_space_is_covered_point_by_point() -> None:
    config = study_config(search=CONDITIONAL, num_trials=8)
    study = _search(config, 8)
    feasible = feasible_points(config)
    assert feasible is not None
    assert sorted(str(sorted(t.params.items())) for t in study.trials) == sorted(
        str(sorted(p.items())) for p in feasible
    )


KNOBS: list[Knob] = [
    CategoricalKnob(type="categorical", choices=(8, 2, 4)),
    CategoricalKnob(type="categorical", choices=("b", "a", None, True)),
    IntKnob(type="int", low=1, high=9, step=2),
    IntKnob(type="int", low=1, high=1000, log=True),
    FloatKnob(type="float", low=0.1, high=0.7, step=0.1),
]


@given(st.sampled_from(KNOBS), st.floats(0, 1))
def test_the_unit_cube_holds_every_value_of_a_knob_and_no_other(knob: Knob, unit: float) -> None:
    value = value_at_unit(knob, unit)
    assert value_at_unit(knob, unit_of(knob, value)) == value


STUDY = """name: tiny
num_trials: 4
sampler: { type: SAMPLER }
search:
  moe.init: { type: categorical, choices: [normal, kaiming_normal] }
  moe.init_std: { type: float, low: 0.01, high: 0.04, WHEN }
"""


@pytest.mark.parametrize(
    ("sampler", "when", "problem"),
    [
        ("grid", "log: true", "study.yaml:3: sampler.type: grid trains every point, of at most 20,000, and a knob"),
        ("tpe", "when: { moe.inti: normal }", "when.moe.inti is no knob of this search; did you mean moe.init?"),
        ("tpe", "when: { moe.init: xavier }", "must be one of the knob's choices normal, kaiming_normal"),
        ("tpe", "when: { moe.init_std: 0.01 }", "moe.init_std and moe.init_std depend on each other"),
        ("tpe", "prior: { value: 1.0 }", "prior.value must be in the knob's range 0.01 to 0.04 (given 1.0)"),
    ],
)
def test_samplers_conditions_and_guesses_that_cannot_work_are_refused(
    sampler: str, when: str, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.replace("SAMPLER", sampler).replace("WHEN", when))
    with pytest.raises(StudyFileError, match=re.escape(problem)):
        load_study(path)
