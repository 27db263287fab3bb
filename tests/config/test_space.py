from __future__ import annotations

import pytest

from moesearch.config.knobs import CategoricalKnob, FloatKnob, IntKnob, Knob
from moesearch.config.resolve import resolve
from moesearch.config.space import contains, feasible_points, points, size, values
from moesearch.config.study import StudyConfig

EXPERTS = CategoricalKnob(type="categorical", choices=(1, 2, 4))
TOP_K = IntKnob(type="int", low=1, high=5, step=2)
DROPOUT = FloatKnob(type="float", low=0.1, high=0.4, step=0.1)
LR = FloatKnob(type="float", low=1e-4, high=1e-2, log=True)


def study(**knobs: Knob) -> StudyConfig:
    search = {name.replace("__", "."): knob for name, knob in knobs.items()}
    return StudyConfig(name="s", num_trials=1, search=search)


def test_values_of_a_grid_have_no_rounding_noise() -> None:
    assert list(values(DROPOUT)) == [0.1, 0.2, 0.3, 0.4]
    assert list(values(TOP_K)) == [1, 3, 5]


def test_the_size_counts_every_point_once() -> None:
    search: dict[str, Knob] = {"moe.num_experts": EXPERTS, "moe.top_k": TOP_K, "model.dropout": DROPOUT}
    listed = list(points(search))
    assert size(search) == len(listed) == 36
    assert len({tuple(point.values()) for point in listed}) == 36


def test_a_continuous_knob_has_no_size_and_no_points() -> None:
    assert size({"optim.lr": LR, "moe.num_experts": EXPERTS}) is None
    with pytest.raises(ValueError, match="continuous"):
        points({"optim.lr": LR})


def test_a_range_of_one_number_is_no_continuous_knob() -> None:
    assert list(values(FloatKnob(type="float", low=0.5, high=0.5))) == [0.5]


def test_feasible_points_are_those_that_resolve() -> None:
    config = study(moe__num_experts=EXPERTS, moe__top_k=TOP_K)
    feasible = feasible_points(config)
    assert feasible == [
        {"moe.num_experts": 1, "moe.top_k": 1},
        {"moe.num_experts": 2, "moe.top_k": 1},
        {"moe.num_experts": 4, "moe.top_k": 1},
        {"moe.num_experts": 4, "moe.top_k": 3},
    ]
    for point in feasible:
        resolve(config.base, point)


def test_a_space_that_is_too_large_is_not_listed() -> None:
    config = study(data__batch_size=IntKnob(type="int", low=1, high=60_000), moe__top_k=TOP_K)
    assert feasible_points(config) is None
    assert feasible_points(study(moe__num_experts=EXPERTS), limit=2) is None


@pytest.mark.parametrize("knob", [EXPERTS, TOP_K, DROPOUT])
def test_a_knob_contains_its_values(knob: Knob) -> None:
    assert all(contains(knob, value) for value in values(knob))


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        (EXPERTS, 3),
        (EXPERTS, True),
        (EXPERTS, 1.0),
        (TOP_K, 2),
        (TOP_K, 7),
        (TOP_K, True),
        (DROPOUT, 0.15),
        (LR, 1),
        (LR, "a"),
    ],
)
def test_a_knob_does_not_contain_other_values(knob: Knob, value: object) -> None:
    assert not contains(knob, value)


def test_points_that_differ_in_what_they_do_not_read_are_one() -> None:
    search = {
        "data.tokenizer": {"type": "categorical", "choices": ["char", "bpe"]},
        "data.vocab_size": {"type": "categorical", "choices": [512, 2048]},
    }
    study = StudyConfig.model_validate({"name": "x", "num_trials": 3, "objective": "val_bpb", "search": search})
    points = feasible_points(study)
    assert points is not None
    assert [tuple(point.values()) for point in points] == [("char", 512), ("bpe", 512), ("bpe", 2048)]


def test_a_dense_point_stands_for_all_routers_that_it_does_not_read() -> None:
    noise = CategoricalKnob(type="categorical", choices=(True, False))
    top_k = CategoricalKnob(type="categorical", choices=(1,))
    listed = feasible_points(study(moe__num_experts=EXPERTS, moe__top_k=top_k, moe__noise=noise))
    assert listed is not None
    assert [(point["moe.num_experts"], point["moe.noise"]) for point in listed] == [
        (1, True), (2, True), (2, False), (4, True), (4, False)
    ]  # fmt: skip
