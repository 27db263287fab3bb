from time import process_time

import numpy as np
import pytest

from moesearch.config.quantities import ROUTER_QUANTITIES
from moesearch.results.frames import curves_frame, frame_of_curves, frame_of_trials, trials_frame
from moesearch.results.records import MILESTONE_PREFIX
from moesearch.results.study import read_study
from tests.results.stores import BASE_PARAMS, LEADERS, MILESTONES, StoreBuilder, finished_study, study_config


def test_a_trial_is_one_row_with_each_knob_in_a_column_of_its_own() -> None:
    builder = StoreBuilder()
    builder.add(LEADERS[0], loss=2.1)
    frame = trials_frame(builder.storage, "experts_topk")
    row = frame.iloc[0]
    assert {path: row[path] for path in LEADERS[0]} == LEADERS[0]
    assert (row["state"], row["outcome"], row["value"], row["milestone"]) == ("COMPLETE", "complete", 2.1, MILESTONES)
    assert row["label"] == "E16 k4 xavier noise-off"


def test_outcomes_tell_trials_apart_that_optuna_calls_alike() -> None:
    builder = StoreBuilder()
    outcomes = ["complete", "pruned", "infeasible", "diverged", "out_of_memory", "error", "lost", "running", "waiting"]
    for outcome in outcomes:
        builder.add({**BASE_PARAMS, "moe.num_experts": 2, "moe.top_k": 4 if outcome == "infeasible" else 1}, outcome)
    frame = trials_frame(builder.storage, "experts_topk")
    assert list(frame["outcome"]) == outcomes


def test_only_complete_trials_have_a_value() -> None:
    frame = read_study(finished_study().storage, "experts_topk").trials
    assert (frame["value"].notna() == (frame["outcome"] == "complete")).all()


def test_a_pruned_trial_has_its_loss_at_the_milestone_where_it_stopped() -> None:
    builder = StoreBuilder()
    builder.add(outcome="pruned", milestone=4)
    row = trials_frame(builder.storage, "experts_topk").iloc[0]
    curve = curves_frame(builder.storage, "experts_topk")
    assert row["milestone"] == 4
    assert row["val_loss"] == curve["val_loss"].iloc[-1]


def test_seeds_of_63_bits_keep_every_bit_even_beside_trials_without_one() -> None:
    builder = StoreBuilder()
    builder.add({**BASE_PARAMS, "moe.num_experts": 2, "moe.top_k": 4}, "infeasible")
    builder.random.randrange = lambda *_: 2**62 + 1  # type: ignore[method-assign]
    builder.add()
    assert trials_frame(builder.storage, "experts_topk")["seed"].iloc[1] == 2**62 + 1


def test_a_curve_has_one_row_per_milestone() -> None:
    builder = StoreBuilder()
    builder.add()
    builder.add(outcome="pruned", milestone=3)
    frame = curves_frame(builder.storage, "experts_topk")
    assert list(frame["number"]) == [0] * MILESTONES + [1] * 3
    assert list(frame["milestone"]) == [*range(1, MILESTONES + 1), 1, 2, 3]
    assert np.isfinite(frame["val_bpb"]).all()


def test_a_study_without_trials_gives_frames_with_the_usual_columns() -> None:
    builder = StoreBuilder()
    empty = trials_frame(builder.storage, "experts_topk")
    builder.add()
    assert empty.empty
    assert list(empty.columns) == list(trials_frame(builder.storage, "experts_topk").columns)


def test_an_unknown_study_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        trials_frame(StoreBuilder().storage, "no_such_study")


def test_ten_thousand_trials_are_read_in_seconds() -> None:
    builder = StoreBuilder()
    builder.add_experts_topk(10)
    template = builder.storage.get_all_trials(builder.study_id)
    trials = [template[number % 10] for number in range(10_000)]
    started = process_time()  # of this process: a busy machine does not count
    frame_of_trials(trials, tuple(BASE_PARAMS))
    frame_of_curves(trials)
    assert process_time() - started < 10


def test_a_curve_says_how_the_routers_are() -> None:
    builder = StoreBuilder()
    builder.add()
    frame = curves_frame(builder.storage, "experts_topk")
    assert list(frame.columns[-len(ROUTER_QUANTITIES) :]) == list(ROUTER_QUANTITIES)
    assert frame["max_vio"].is_monotonic_decreasing
    assert frame["max_vio"].iloc[-1] == 0


def test_a_curve_of_before_there_was_router_health_has_none() -> None:
    builder = StoreBuilder()
    builder.add()
    (trial,) = builder.storage.get_all_trials(builder.study_id)
    for name, record in trial.system_attrs.items():
        if name.startswith(MILESTONE_PREFIX):
            del record["router_health"]
    frame = frame_of_curves([trial])
    assert frame[list(ROUTER_QUANTITIES)].isna().all(axis=None)
    assert frame["val_loss"].notna().all()


def test_a_label_leaves_out_a_knob_that_is_not_searched_beside_the_others() -> None:
    search = {
        "moe.noise": {"type": "categorical", "choices": [True, False]},
        "moe.noise_std": {"type": "categorical", "choices": [0.0, 0.1], "when": {"moe.noise": False}},
    }
    builder = StoreBuilder(study_config(search=search, enqueue=[{"moe.noise": True}]))
    builder.add({"moe.noise": True}, loss=2.1)
    builder.add({"moe.noise": False, "moe.noise_std": 0.1}, loss=2.2)
    results = read_study(builder.storage, "experts_topk")
    assert list(results.trials["label"]) == ["noise-on", "noise-off noise_std=0.1"]
    assert results.label_of(results.baseline) == "noise-on"
