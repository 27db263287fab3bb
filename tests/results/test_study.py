import pytest
from optuna.storages import InMemoryStorage

from moesearch.errors import StoreError, UnknownStudyError
from moesearch.results import records
from moesearch.results.confirmation import confirm_runs
from moesearch.results.ranking import configurations
from moesearch.results.study import read_study
from tests.results.stores import BASE_PARAMS, LEADERS, STARTED, StoreBuilder, finished_study, study_config


def test_seeds_of_one_configuration_are_one_row_of_the_ranking() -> None:
    builder = StoreBuilder()
    for loss, replicate in ((2.0, 0), (2.2, 1)):
        builder.add(loss=loss, replicate=replicate)
    row = read_study(builder.storage, "experts_topk").ranking.iloc[0]
    assert (row["value"], row["num_seeds"], row["best_number"]) == (pytest.approx(2.1), 2, 0)


def test_complete_configurations_rank_before_pruned_ones_whatever_their_losses() -> None:
    builder = StoreBuilder()
    builder.add(LEADERS[0], "pruned", milestone=9, loss=0.5)
    builder.add(LEADERS[1], loss=2.5)
    assert list(read_study(builder.storage, "experts_topk").ranking["num_seeds"]) == [1, 0]


def test_what_was_never_trained_has_no_rank() -> None:
    builder = StoreBuilder()
    builder.add({**BASE_PARAMS, "moe.num_experts": 2, "moe.top_k": 4}, "infeasible")
    builder.add(outcome="diverged", milestone=2)
    results = read_study(builder.storage, "experts_topk")
    assert configurations(results.trials, tuple(results.config.search)).empty


def test_trials_that_do_not_count_are_not_counted() -> None:
    results = read_study(finished_study().storage, "experts_topk")
    assert results.num_finished == results.trials["outcome"].isin(["complete", "pruned"]).sum()
    assert results.num_finished < len(results.trials)


def test_confirmation_runs_carry_the_value_that_the_search_chose_by() -> None:
    results = read_study(finished_study().storage, "experts_topk")
    run = confirm_runs(results)[0]
    trials = results.trials[results.trials["fingerprint"] == run.fingerprint]
    assert run.search_value == pytest.approx(trials["val_loss"].mean())


def test_the_baseline_is_the_first_enqueued_configuration() -> None:
    builder = StoreBuilder(config=study_config(enqueue=[{"moe.num_experts": 4}]))
    assert read_study(builder.storage, "experts_topk").baseline.moe.num_experts == 4


def test_without_a_queue_the_baseline_is_the_base() -> None:
    results = read_study(StoreBuilder().storage, "experts_topk")
    assert results.baseline == results.config.base


def test_before_confirmation_the_verdict_rests_on_single_seeds_and_says_so() -> None:
    builder = StoreBuilder()
    builder.add_experts_topk()
    verdict = read_study(builder.storage, "experts_topk").verdict
    assert verdict.conclusion == "unconfirmed"
    assert "not confirmed yet" in verdict.sentence


def test_the_verdict_of_a_running_confirmation_uses_the_runs_that_have_ended() -> None:
    builder = StoreBuilder()
    builder.add_experts_topk()
    builder.add_confirmation(LEADERS, seeds=2)
    builder.add(LEADERS[0], "running", milestone=3, replicate=2, confirm=True)
    assert read_study(builder.storage, "experts_topk").verdict.num_seeds == 2


def test_a_stored_opening_of_the_test_split_is_shown_for_the_same_best_only() -> None:
    builder = finished_study()
    assert read_study(builder.storage, "experts_topk").verdict.test is not None
    for seed in range(3):
        builder.add(LEADERS[1], replicate=seed, confirm=True, loss=1.0)
    assert read_study(builder.storage, "experts_topk").verdict.test is None


def test_a_confirmation_in_which_all_diverged_falls_back_on_the_search_and_names_them() -> None:
    builder = StoreBuilder()
    builder.add_experts_topk()
    for seed in range(3):
        builder.add(LEADERS[0], "diverged", replicate=seed, confirm=True, milestone=1)
    verdict = read_study(builder.storage, "experts_topk").verdict
    assert verdict.conclusion == "unconfirmed"
    assert verdict.left_out[0].reason == "diverged on 3 of 3 fresh seeds"


def test_sessions_that_overlap_count_once_and_a_killed_one_to_its_last_trial() -> None:
    builder = StoreBuilder()
    builder.add()
    start = STARTED.timestamp()
    builder.session(number=0, started=start + 1000, ended=start + 1100)
    builder.session(number=1, started=start + 1050, ended=start + 1150)
    builder.session(number=2, started=start, ended=None)
    last_trial = (builder.clock - STARTED).total_seconds()
    assert read_study(builder.storage, "experts_topk").wall_seconds == pytest.approx(150 + last_trial)


def test_an_unknown_study_names_those_that_are_there_and_the_nearest() -> None:
    with pytest.raises(UnknownStudyError, match=r"which holds experts_topk; did you mean experts_topk\?"):
        read_study(finished_study().storage, "expert_topk")


def test_an_empty_store_says_how_to_start() -> None:
    with pytest.raises(UnknownStudyError, match="holds none yet"):
        read_study(InMemoryStorage(), "experts_topk")


def test_a_study_of_another_program_is_refused() -> None:
    builder = StoreBuilder()
    builder.storage.create_new_study([], "other")
    with pytest.raises(UnknownStudyError, match="moesearch did not write it"):
        read_study(builder.storage, "other")


def test_a_study_of_another_version_is_refused_in_words() -> None:
    builder = StoreBuilder()
    builder.storage.set_study_system_attr(builder.study_id, records.STUDY_CONFIG, {"name": "experts_topk"})
    with pytest.raises(StoreError, match="another version"):
        read_study(builder.storage, "experts_topk")


def test_an_unknown_trial_says_which_there_are() -> None:
    builder = StoreBuilder()
    builder.add()
    with pytest.raises(UnknownStudyError, match="has no trial 7; its trials are numbered 0 to 0"):
        read_study(builder.storage, "experts_topk").trial_config(7)
