from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from moesearch.config.resolve import resolve
from moesearch.config.study import StudyConfig
from moesearch.config.trial import TrialConfig
from moesearch.results.records import FAMILY, OUTCOME, REPLICATE
from moesearch.results.standing import is_finished
from moesearch.search.assignments import next_assignment
from moesearch.search.confirm import plan_confirmation
from moesearch.search.families import Visit, is_of, num_families, shape_knobs
from moesearch.search.study import join_study
from moesearch.search.suggest import make_sampler, suggest
from tests.search.processes import start
from tests.search.stand_ins import TableCheckpoint, TableTrainer, begin, curve, new_job, storage_in, study_config, work

pytestmark = pytest.mark.usefixtures("every_store")

WIDTHS: dict[str, Any] = {
    "model.width": {"type": "categorical", "choices": [16, 32]},
    "moe.num_experts": {"type": "categorical", "choices": [2, 4]},
    "moe.noise": {"type": "categorical", "choices": [True, False]},
}
"""Eight points in two families, all of them feasible."""


def _config(**changes: Any) -> StudyConfig:
    base = {"moe": {"top_k": 1}, "budget": {"steps": 40, "milestones": 4}}
    return study_config(**{"search": WIDTHS, "num_trials": 8, "base": base, **changes})


class OneShapeTrainer(TableTrainer):
    """Refuses to mix families, as LaneTrainer does, and takes down what it is given."""

    def __init__(self, num_lanes: int, *, losses: Callable[[TrialConfig], list[float]] = curve, **more: Any) -> None:
        super().__init__(num_lanes=num_lanes, losses=losses, **more)
        self.loaded: list[TrialConfig] = []

    def load(self, lane: int, config: TrialConfig, checkpoint: TableCheckpoint | None = None) -> None:
        widths = {other[0].model.width for other in self.lanes if other is not None}
        assert widths <= {config.model.width}, "families are mixed"
        self.loaded.append(config)
        super().load(lane, config, checkpoint)

    @property
    def visits(self) -> list[int]:
        """How many trials of one width were loaded after one another."""
        return [len(list(group)) for _, group in groupby(config.model.width for config in self.loaded)]


def _points(study: optuna.Study) -> set[tuple[Any, ...]]:
    return {tuple(trial.params[name] for name in WIDTHS) for trial in study.trials}


@pytest.mark.parametrize("num_lanes", [1, 3, 16])
def test_a_study_of_two_families_covers_its_points_and_never_mixes_them(num_lanes: int, tmp_path: Path) -> None:
    study = begin(_config(), tmp_path)
    work(_config(), tmp_path, trainer=OneShapeTrainer(num_lanes))
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 8
    assert len(_points(study)) == 8


def _of_width(width: int) -> TrialConfig:
    return resolve(TrialConfig(), {"model.width": width})


def test_a_family_has_two_trials_per_lane_before_another_may_be_chosen() -> None:
    visit = Visit(("model.width",), num_lanes=2)
    wanted = []
    for _ in range(6):
        wanted.append(visit.wanted)
        assert visit.admits(_of_width(16))
    width_16 = {"model.width": 16}
    assert wanted == [None, width_16, width_16, width_16, None, width_16]


def test_a_trial_of_another_family_ends_a_visit() -> None:
    visit = Visit(("model.width",), num_lanes=2)
    assert visit.admits(_of_width(16))
    assert not visit.is_over
    assert not visit.admits(_of_width(32))
    assert visit.is_over


def test_a_worker_with_one_lane_binds_no_proposal_to_a_family(tmp_path: Path) -> None:
    study = begin(_config(), tmp_path)
    work(_config(), tmp_path, trainer=OneShapeTrainer(1))
    assert not any(FAMILY in trial.system_attrs for trial in study.trials)
    # The first points of a cover spread, so the second is of the other width.
    assert study.trials[0].params["model.width"] != study.trials[1].params["model.width"]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_every_sampler_ends_with_exactly_its_trials(sampler: str, tmp_path: Path) -> None:
    config = _config(sampler={"type": sampler, "seed": 1}, num_trials=7)
    study = begin(config, tmp_path)
    work(config, tmp_path, trainer=OneShapeTrainer(3))
    assert sum(map(is_finished, study.trials)) == 7
    assert len(_points(study)) == 7


def test_a_continuous_space_is_searched_family_by_family(tmp_path: Path) -> None:
    search = {**WIDTHS, "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}}
    config = _config(search=search)
    study = begin(config, tmp_path)
    trainer = work(config, tmp_path, trainer=OneShapeTrainer(4))
    assert isinstance(trainer, OneShapeTrainer)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 8
    assert trainer.visits[0] >= 4


def test_queued_trials_of_other_families_are_held_until_the_lanes_are_empty(tmp_path: Path) -> None:
    queued = tuple(
        {"model.width": width, "moe.num_experts": experts, "moe.noise": True}
        for experts in (2, 4)
        for width in (16, 32)
    )
    config = _config(enqueue=queued, num_trials=4)
    study = begin(config, tmp_path)
    trainer = work(config, tmp_path, trainer=OneShapeTrainer(4))
    assert isinstance(trainer, OneShapeTrainer)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 4
    assert [trial.params for trial in study.trials] == list(queued)
    assert trainer.visits == [2, 2]


def test_an_incomplete_queued_trial_chooses_its_own_family(tmp_path: Path) -> None:
    config = _config(enqueue=({"moe.num_experts": 2}, {"moe.num_experts": 4}), num_trials=3)
    study = begin(config, tmp_path)
    work(config, tmp_path, trainer=OneShapeTrainer(3))
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 3
    assert [trial.params["moe.num_experts"] for trial in study.trials[:2]] == [2, 4]


def test_what_a_cover_has_left_goes_evenly_to_the_leaders_of_both_families(tmp_path: Path) -> None:
    config = _config(num_trials=11)
    study = begin(config, tmp_path)
    work(config, tmp_path, trainer=OneShapeTrainer(2))
    assert sum(map(is_finished, study.trials)) == 11
    assert len(_points(study)) == 8


def test_lanes_that_stop_put_every_trial_back_with_its_checkpoint(tmp_path: Path) -> None:
    study = begin(_config(), tmp_path)
    stop = threading.Event()

    class Stopping(OneShapeTrainer):
        def advance(self, should_stop: Callable[[], bool]) -> list[Any]:
            if len(self.trained) == 8:
                stop.set()
                return []
            return super().advance(should_stop)

    before = work(_config(), tmp_path, trainer=Stopping(4), stop=stop)
    assert [trial.state for trial in study.trials] == [TrialState.WAITING] * 4
    after = work(_config(), tmp_path, trainer=OneShapeTrainer(4))
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 8
    assert len(before.trained) + len(after.trained) == 8 * 4


@pytest.mark.parametrize("at", [0, 4, 16])
def test_a_worker_that_dies_with_full_lanes_costs_at_most_their_milestones(at: int, tmp_path: Path) -> None:
    study = begin(_config(), tmp_path)

    class Dying(OneShapeTrainer):
        def advance(self, should_stop: Callable[[], bool]) -> list[Any]:
            if len(self.trained) >= at:
                raise KeyboardInterrupt
            return super().advance(should_stop)

    dead = Dying(4)
    with pytest.raises(KeyboardInterrupt):
        work(_config(), tmp_path, trainer=dead, worker="elsewhere:1:0.00")
    for trial in study.trials:
        if trial.state is TrialState.RUNNING:
            study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)  # as `recover` does
    after = work(_config(), tmp_path, trainer=OneShapeTrainer(4))
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 8
    assert len(dead.trained) + len(after.trained) == 8 * 4


def test_workers_with_lanes_and_kills_end_with_exactly_the_trials_asked_for(tmp_path: Path) -> None:
    study, chance = begin(_config(), tmp_path), random.Random(1)
    workers = [start(_work_slowly, tmp_path) for _ in range(2)]
    num_kills = 0
    try:
        while any(worker.is_alive() for worker in workers):
            time.sleep(chance.uniform(0.05, 0.2))
            victim = chance.randrange(2)
            if num_kills < 3 and workers[victim].is_alive():
                workers[victim].kill()
                workers[victim].join()
                num_kills += 1
                workers[victim] = start(_work_slowly, tmp_path)
    finally:
        for worker in workers:
            worker.kill()
    assert sum(map(is_finished, study.trials)) == 8
    assert {trial.state for trial in study.trials} <= {TrialState.COMPLETE, TrialState.WAITING}
    assert all(list(trial.intermediate_values) == [1, 2, 3, 4] for trial in study.trials if is_finished(trial))


def _work_slowly(folder: Path) -> None:
    work(_config(), folder, trainer=OneShapeTrainer(3, seconds=0.03))


def test_a_diverged_lane_is_refilled_while_the_others_go_on(tmp_path: Path) -> None:
    config = study_config(num_trials=4)
    study = begin(config, tmp_path)
    seeds: list[int] = []

    def second_diverges(trial: TrialConfig) -> list[float]:
        if trial.seed not in seeds:
            seeds.append(trial.seed)
        return [math.nan] * 4 if seeds.index(trial.seed) == 1 else curve(trial)

    trainer = work(config, tmp_path, trainer=TableTrainer(num_lanes=2, losses=second_diverges))
    assert [trial.user_attrs[OUTCOME] for trial in study.trials] == ["complete", "diverged", *["complete"] * 3]
    # The third trial has its first milestone beside the second one of the first trial.
    assert [(seeds.index(seed), milestone) for _, seed, milestone in trainer.trained[:4]] == [
        (0, 1),
        (1, 1),
        (0, 2),
        (2, 1),
    ]


def test_a_pruned_lane_is_refilled_while_the_others_go_on(tmp_path: Path) -> None:
    config = study_config(num_trials=8, pruner={"type": "median", "warmup_milestones": 1, "warmup_trials": 1})
    study = begin(config, tmp_path)
    losses: dict[int, float] = {}

    def ever_worse(trial: TrialConfig) -> list[float]:
        return [losses.setdefault(trial.seed, 2.0 + len(losses))] * 4

    work(config, tmp_path, trainer=TableTrainer(num_lanes=2, losses=ever_worse))
    outcomes = [trial.user_attrs[OUTCOME] for trial in study.trials]
    assert sum(map(is_finished, study.trials)) == 8
    assert outcomes[2:] == ["pruned"] * 6


def test_an_error_among_lanes_ends_the_guilty_trial_alone(tmp_path: Path) -> None:
    config = study_config(num_trials=5)
    study = begin(config, tmp_path)
    seeds: list[int] = []

    def second_fails(trial: TrialConfig) -> list[float]:
        if trial.seed not in seeds:
            seeds.append(trial.seed)
        if seeds.index(trial.seed) == 1:
            raise ZeroDivisionError("a bug")
        return curve(trial)

    work(config, tmp_path, trainer=TableTrainer(num_lanes=3, losses=second_fails))
    assert [trial.user_attrs[OUTCOME] for trial in study.trials] == ["complete", "error", *["complete"] * 4]


def test_lanes_that_do_not_fit_into_memory_are_halved_and_no_trial_is_blamed(tmp_path: Path) -> None:
    config = study_config(num_trials=6)
    study = begin(config, tmp_path)
    sizes: list[int] = []

    class Small(TableTrainer):
        def advance(self, should_stop: Callable[[], bool]) -> list[Any]:
            sizes.append(sum(lane is not None for lane in self.lanes))
            if sizes[-1] > 2:
                raise MemoryError("no room")
            return super().advance(should_stop)

    work(config, tmp_path, trainer=Small(num_lanes=6))
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 6
    assert sizes[:2] == [6, 3]
    assert set(sizes[2:]) == {1}


def test_confirmation_runs_of_one_family_are_taken_out_of_turn(tmp_path: Path) -> None:
    config = _config(confirm={"top": 4, "seeds": 2, "lr_search": False}, control="none")
    begin(config, tmp_path)
    # The best four are two of each width.
    losses = {16: 0.0, 32: 0.0001}
    table = OneShapeTrainer(1, losses=lambda trial: [losses[trial.model.width] - trial.moe.num_experts] * 4)
    work(config, tmp_path, trainer=table)
    confirm = plan_confirmation(config, storage_in(tmp_path))
    assert confirm is not None
    claims = new_job(config, tmp_path, study=confirm).claims
    taken = []
    while (assignment := next_assignment(claims, config, {"model.width": 32})) is not None:
        taken.append((assignment.config.model.width, assignment.replicate))
    assert taken == [(32, 0), (32, 0), (32, 1), (32, 1)]
    trainer = OneShapeTrainer(4)
    for trial in confirm.trials:
        if trial.state is TrialState.RUNNING:
            confirm._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
    work(config, tmp_path, trainer=trainer, study=confirm)
    assert [trial.state for trial in confirm.trials] == [TrialState.COMPLETE] * 8
    assert trainer.visits == [4, 4]
    assert {trial.user_attrs[REPLICATE] for trial in confirm.trials} == {0, 1}


@pytest.mark.parametrize("sampler", ["auto", "tpe", "random"])
def test_a_sampler_leaves_the_wanted_family_only_where_nothing_of_it_is_left(sampler: str, tmp_path: Path) -> None:
    config = _config(sampler={"type": sampler, "seed": 2})
    begin(config, tmp_path)
    study = join_study(config, storage_in(tmp_path))
    study.sampler = make_sampler(config)
    widths = _widths_when_wanting(32, study, config, num_trials=5)
    assert widths == [32] * 4 + [16]


def _widths_when_wanting(width: int, study: optuna.Study, config: StudyConfig, num_trials: int) -> Sequence[object]:
    widths = []
    for _ in range(num_trials):
        template = optuna.create_trial(state=TrialState.RUNNING, system_attrs={FAMILY: {"model.width": width}})
        trial = optuna.Trial(study, study._storage.create_new_trial(study._study_id, template))
        widths.append(suggest(trial, config.search)["model.width"])
        study.tell(trial, float(trial.number))
    return widths


def test_parameters_are_of_a_family_only_if_all_of_its_values_are_known() -> None:
    family = {"model.width": 16, "moe.expert_hidden_dim": None}
    assert is_of({"model.width": 16, "moe.expert_hidden_dim": None, "moe.noise": True}, family)
    assert not is_of({"model.width": 16}, family)
    assert is_of({}, {})


def test_families_are_counted_by_their_shape_knobs() -> None:
    assert num_families(_config()) == 2
    assert num_families(study_config()) == 1
    scale = {"model.attention_scale": {"type": "float", "low": 0.1, "high": 1.0}}
    assert num_families(_config(search=scale)) is None


@pytest.mark.parametrize("moe", [{"iso_flops": True}, {"every": 2}], ids=["iso_flops", "every"])
def test_top_k_parts_families_where_a_width_follows_from_it(moe: dict[str, Any]) -> None:
    top_k: dict[str, Any] = {"moe.top_k": {"type": "categorical", "choices": [1, 2]}}
    assert shape_knobs(study_config(search=top_k)) == ()
    assert shape_knobs(study_config(search=top_k, base={"moe": moe})) == ("moe.top_k",)
    path, value = next(iter(moe.items()))
    searched: dict[str, Any] = {f"moe.{path}": {"type": "categorical", "choices": [value]}, **top_k}
    assert shape_knobs(study_config(search=searched)) == (f"moe.{path}", "moe.top_k")
