"""Importance, effects, compute."""

import pytest

from moesearch.results.compute import compute_spent
from moesearch.results.effects import knob_effects
from moesearch.results.importance import knob_importance
from moesearch.results.study import read_study
from tests.results.stores import (
    BASE_ON_A_SHARE,
    BASE_PARAMS,
    EXPERTS_TOPK,
    StoreBuilder,
    finished_study,
    study_config,
    true_loss,
)

CHOICES = {path: knob["choices"] for path, knob in EXPERTS_TOPK["search"].items()}


def test_the_knob_that_decides_the_loss_is_the_most_important() -> None:
    builder = StoreBuilder()
    for number in range(40):
        params = {path: choices[number % len(choices)] for path, choices in CHOICES.items()}
        params = {**params, "moe.num_experts": 4, "moe.top_k": (1, 2, 4)[number // 3 % 3], "moe.noise": number % 2 == 0}
        builder.add(params, loss=2.0 + 0.1 * CHOICES["moe.init"].index(params["moe.init"]) + 0.001 * (number % 7))
    importance = knob_importance(read_study(builder.storage, "experts_topk"))
    assert next(iter(importance.shares)) == "moe.init"
    assert sum(importance.shares.values()) == pytest.approx(1)
    assert "Not varied by the trials so far: moe.num_experts." in importance.caveats


def test_a_knob_whose_bad_value_was_always_pruned_is_important_all_the_same() -> None:
    builder = StoreBuilder()
    for number in range(40):
        params = {**BASE_PARAMS, "moe.noise": number % 2 == 0, "moe.top_k": (1, 2, 4)[number // 2 % 3]}
        if params["moe.noise"]:
            builder.add(params, "pruned", milestone=3)
        else:
            builder.add(params, loss=2.0 + 0.0001 * (number % 11))
    importance = knob_importance(read_study(builder.storage, "experts_topk"))
    assert next(iter(importance.shares)) == "moe.noise"
    assert any("20 of 40 trials were pruned" in caveat for caveat in importance.caveats)


def test_few_trials_have_no_importance_and_say_why() -> None:
    builder = StoreBuilder()
    builder.add()
    importance = knob_importance(read_study(builder.storage, "experts_topk"))
    assert importance.shares == {}
    assert "Not computed" in importance.caveats[0]


def test_trials_that_are_all_alike_have_no_importance() -> None:
    builder = StoreBuilder()
    for _ in range(12):
        builder.add(loss=2.0)
    assert knob_importance(read_study(builder.storage, "experts_topk")).shares == {}


def test_effects_are_not_misled_by_an_uneven_mix_of_the_other_knobs() -> None:
    builder = StoreBuilder()
    # Eight experts got the bad initialisation more often, so plain means call them worse.
    for num_experts, init, count in ((4, "xavier", 6), (4, "kaiming", 1), (8, "xavier", 1), (8, "kaiming", 6)):
        for _ in range(count):
            builder.add({**BASE_PARAMS, "moe.num_experts": num_experts, "moe.init": f"{init}_normal"})
    effects = knob_effects(read_study(builder.storage, "experts_topk"))
    levels = effects.levels["moe.num_experts"]
    plain = effects.values.groupby(levels, observed=True).mean()
    evened = effects.evened_out("moe.num_experts").groupby(levels, observed=True).mean()
    truth = true_loss({**BASE_PARAMS, "moe.num_experts": 8}) - true_loss({**BASE_PARAMS, "moe.num_experts": 4})
    assert plain["8"] > plain["4"]
    assert evened["8"] - evened["4"] == pytest.approx(truth, abs=0.01)


def test_too_few_trials_leave_plain_means() -> None:
    builder = StoreBuilder()
    builder.add(loss=2.0)
    builder.add({**BASE_PARAMS, "moe.noise": False}, loss=2.1)
    effects = knob_effects(read_study(builder.storage, "experts_topk"))
    assert not effects.is_evened_out
    assert effects.varied == ("moe.noise",)
    assert list(effects.evened_out("moe.noise")) == [2.0, 2.1]


def test_knobs_that_always_moved_together_are_not_told_apart() -> None:
    builder = StoreBuilder()
    for number in range(12):
        params = {**BASE_PARAMS, "moe.noise": number % 2 == 0, "moe.num_experts": 8 if number % 2 else 16}
        builder.add(params)
    assert not knob_effects(read_study(builder.storage, "experts_topk")).is_evened_out


def test_a_continuous_knob_is_cut_into_ranges_in_order() -> None:
    config = study_config(search={"optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}})
    builder = StoreBuilder(config=config)
    for number in range(20):
        builder.add({"optim.lr": 1e-4 * 1.25**number}, loss=2.0 + 0.01 * number)
    levels = knob_effects(read_study(builder.storage, "experts_topk")).levels["optim.lr"]
    assert levels.notna().all()
    assert list(levels.value_counts(sort=False)) == [5, 5, 5, 5]
    assert levels.cat.ordered


def test_spending_adds_up_to_all_training() -> None:
    results = read_study(finished_study().storage, "experts_topk")
    compute = compute_spent(results)
    trained = results.trials[results.trials["outcome"] != "lost"]["active_flops"].sum()
    assert compute.active_flops == pytest.approx(trained + results.confirm["active_flops"].sum())


def test_pruning_at_three_tenths_saves_seven_tenths() -> None:
    builder = StoreBuilder()
    builder.add()
    builder.add(outcome="pruned", milestone=3)
    compute = compute_spent(read_study(builder.storage, "experts_topk"))
    full = compute.spendings[0].active_flops
    assert compute.saved_flops == pytest.approx(0.7 * full)
    assert compute.saved_fraction == pytest.approx(0.35)


def test_pruning_saves_the_evaluation_of_the_whole_split_at_the_end_too() -> None:
    builder = StoreBuilder(study_config(base=BASE_ON_A_SHARE))
    builder.add(outcome="pruned", milestone=3)
    compute = compute_spent(read_study(builder.storage, "experts_topk"))
    (spent,) = compute.spendings
    # Three quarters of a pass over the split were done, and six quarters and a whole one were not.
    saved = spent.train_seconds * 7 / 3 + spent.eval_seconds * 2.5 / 0.75
    assert compute.saved_seconds == pytest.approx(saved)


def test_the_work_of_a_lost_trial_is_counted_in_the_trial_that_went_on_with_it() -> None:
    builder = StoreBuilder()
    builder.add(outcome="lost", milestone=3)
    assert compute_spent(read_study(builder.storage, "experts_topk")).active_flops == 0
