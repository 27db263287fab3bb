from __future__ import annotations

from pathlib import Path

import pytest

from moesearch.config.loader import load_study, load_trial
from moesearch.config.study import StudyConfig
from tests.config.helpers import STUDY, problems


def loaded(folder: Path, *overrides: str) -> StudyConfig:
    path = folder / "study.yaml"
    path.write_text(STUDY)
    return load_study(path, overrides)


def test_an_override_sets_a_field_of_the_study(tmp_path: Path) -> None:
    study = loaded(tmp_path, "num_trials=9", "run.workers=2", "confirm={top: 0}", "name=other")
    assert (study.num_trials, study.run.workers, study.confirm.top, study.name) == (9, 2, 0, "other")


def test_an_override_sets_a_field_of_the_base(tmp_path: Path) -> None:
    assert loaded(tmp_path, "base.moe.num_experts=16").base.moe.num_experts == 16


def test_a_path_of_a_trial_means_the_base(tmp_path: Path) -> None:
    base = loaded(tmp_path, "optim.weight_decay=1e-3", "data.text='a = b.txt'", "seed=3").base
    assert (base.optim.weight_decay, base.data.text, base.seed) == (1e-3, "a = b.txt", 3)


def test_an_override_sets_a_knob_or_a_part_of_it(tmp_path: Path) -> None:
    search = loaded(
        tmp_path,
        "search.moe.top_k.choices=[1]",
        "search.optim.lr.low=1e-3",
        "search.moe.noise={type: categorical, choices: [true, false]}",
    ).search
    assert search["moe.top_k"].model_dump()["choices"] == (1,)
    assert search["optim.lr"].model_dump()["low"] == 1e-3
    assert search["moe.noise"].model_dump()["choices"] == (True, False)


def test_the_last_of_two_overrides_holds(tmp_path: Path) -> None:
    assert loaded(tmp_path, "num_trials=9", "num_trials=10").num_trials == 10


def test_an_override_mends_what_the_file_has_wrong(tmp_path: Path) -> None:
    assert problems(tmp_path, STUDY.replace("num_trials: 4", "num_trials: x"), ["num_trials=4"]) == []


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("num_trials=0", "num_trials must be a whole number from 1 to 1000000 (given 0)"),
        ("num_trials=", "num_trials must be a whole number from 1 to 1000000 (given null)"),
        (
            "optim.lr=1e400",
            "optim.lr is searched; set search.optim.lr for its knob, or base.optim.lr for the base alone",
        ),
        ("optim.eps=1e400", "base.optim.eps must be a number above 0 and at most 1 (given 1e400)"),
        ("moe.num_experts=1", "base.moe: top_k (2) must be at most num_experts (1)"),
        ("moe.topk=1", "base.moe.topk names no field; did you mean top_k?"),
        ("top_k=1", "top_k names no field; did you mean base.moe.top_k?"),
        ("search.moe.topk={type: int, low: 1, high: 2}", "search.moe.topk names no field of a trial; did you mean"),
        ("search.moe.top_k.choice=[1]", "search.moe.top_k.choice names no field; did you mean choices?"),
        ("search.moe.top_k=3", "search.moe.top_k must be a knob, such as"),
        ("name.first=x", "name has no fields to set; set it as a whole"),
        ("enqueue=[{moe.top_k: 3}]", "enqueue[0].moe.top_k must be one of the knob's choices 1, 2 (given 3)"),
        ("num_trials", "write it as path=value, such as optim.lr=1e-3"),
        ("=3", "write it as path=value, such as optim.lr=1e-3"),
        ("base..lr=3", "write it as path=value, such as optim.lr=1e-3"),
        ("num_trials=[", "not valid YAML: while parsing a flow node expected the node content"),
        ("num_trials=!!int 3", "the tag !!int is not allowed; write the plain value"),
    ],
)
def test_a_fault_of_an_override_is_named_by_the_override(override: str, line: str, tmp_path: Path) -> None:
    [problem] = problems(tmp_path, STUDY, [override])
    assert problem.startswith(f"--set {override}: {line}")


def test_a_part_of_a_misspelt_knob_is_reported_as_the_knob(tmp_path: Path) -> None:
    lines = problems(tmp_path, STUDY, ["search.moe.topk.choices=[1]"])
    assert lines == [
        "--set search.moe.topk.choices=[1]: search.moe.topk names no field of a trial; did you mean moe.top_k?",
        "--set search.moe.topk.choices=[1]: search.moe.topk needs a type: one of categorical, float, int",
    ]


def test_faults_of_the_file_come_before_those_of_overrides(tmp_path: Path) -> None:
    lines = problems(tmp_path, STUDY.replace("tiny", "a/b"), ["num_trials=0", "moe.topk=1"])
    assert [line.partition(": ")[0] for line in lines] == ["study.yaml:1", "--set moe.topk=1", "--set num_trials=0"]


def test_an_override_of_a_trial_file_is_a_path_of_the_trial(tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    path.write_text("trial: { optim: { lr: 1e-3 } }\n")
    trial = load_trial(path, ["optim.lr=3e-4", "trial.moe.top_k=1", "budget.steps=20"])
    assert (trial.optim.lr, trial.moe.top_k, trial.budget.steps) == (3e-4, 1, 20)
    assert problems(tmp_path, "trial: {}", ["num_trials=3"], load=load_trial) == [
        "--set num_trials=3: trial.num_trials names no field; known here: model, moe, optim, data, budget, seed"
    ]
