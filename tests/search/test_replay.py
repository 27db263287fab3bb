import gzip
import json
from pathlib import Path

import optuna
import pytest

from moesearch import replay as command
from moesearch.config.loader import load_study
from moesearch.config.resolve import derive_seed, resolve
from moesearch.config.space import feasible_points
from moesearch.errors import InputError
from moesearch.results.study import read_study
from moesearch.results.table import read_table, table_of, write_table
from moesearch.search.comparison import (
    RIVALS,
    compare,
    default_strategies,
    recommendations,
    repeat,
    strategy,
    whole_cost,
)
from moesearch.search.replay import Reached, replay
from moesearch.search.rivals import run_rival
from tests.search.stand_ins import TableTrainer, begin, storage_in, study_config, work
from tests.search.table import toy_table

optuna.logging.set_verbosity(optuna.logging.WARNING)
TABLE = toy_table()


def test_a_replayed_study_trains_what_the_real_loop_would(tmp_path: Path) -> None:
    config = study_config(num_trials=6, pruner={"type": "median", "warmup_milestones": 0, "warmup_trials": 1})
    begin(config, tmp_path)
    losses = {curve.seed: [point["val_loss"] for point in curve.points] for curve in TABLE.curves}
    trainer = work(config, tmp_path, trainer=TableTrainer(losses=lambda trial: losses[trial.seed]))
    one_seed = toy_table(num_seeds=1)
    replayed = replay(config, one_seed)
    real = [(fingerprint, milestone) for fingerprint, _, milestone in trainer.trained]
    assert [(reached.fingerprint, reached.milestone) for reached in replayed.reached] == real


def test_replaying_again_gives_the_same() -> None:
    config = study_config(num_trials=8, pruner={"type": "asha"}, sampler={"type": "tpe", "seed": 3})
    assert replay(config, TABLE) == replay(config, TABLE)


def test_compute_is_what_the_milestones_cost() -> None:
    replayed = replay(study_config(num_trials=2), TABLE)
    assert [reached.spent for reached in replayed.reached] == [1e6 * number for number in range(1, 9)]


def test_workers_share_the_compute_of_a_study() -> None:
    alone = replay(study_config(num_trials=4), TABLE)
    together = replay(study_config(num_trials=4), TABLE, num_workers=4)
    assert together.reached[-1].spent == alone.reached[-1].spent
    assert [reached.milestone for reached in together.reached[:4]] == [1] * 4


def test_a_repeated_configuration_gets_its_next_recorded_seed() -> None:
    replayed = replay(study_config(num_trials=16), TABLE)
    last = [reached for reached in replayed.reached if reached.milestone == 4]
    assert any(reached.replicate == 1 for reached in last)
    pairs = {(reached.fingerprint, reached.loss) for reached in last}
    assert len(pairs) == len(last)


def test_a_promoted_trial_goes_on_where_it_stopped() -> None:
    config = study_config(num_trials=9, pruner={"type": "asha"}, sampler={"type": "random"})
    milestones: dict[str, list[int]] = {}
    for reached in replay(config, TABLE).reached:
        milestones.setdefault(reached.fingerprint, []).append(reached.milestone)
    assert all(found == list(range(1, len(found) + 1)) for found in milestones.values())
    assert {len(found) for found in milestones.values()} >= {1, 4}


def test_a_study_stops_at_the_horizon() -> None:
    assert replay(study_config(num_trials=10), TABLE, horizon=5e6).reached[-1].spent == 5e6


@pytest.mark.parametrize("name", [rival.name for rival in RIVALS])
def test_every_rival_searches_until_the_horizon(name: str) -> None:
    rival = next(one.rival for one in RIVALS if one.name == name)
    assert rival is not None
    replayed = run_rival(TABLE, *rival, seed=1, horizon=2e7)
    assert 2e7 <= replayed.reached[-1].spent <= 2.4e7


def reached(fingerprint: str, milestone: int, loss: float, replicate: int = 0) -> Reached:
    return Reached(0.0, fingerprint, replicate, milestone, loss)


def test_the_recommendation_is_the_lowest_of_those_that_came_furthest() -> None:
    events = [reached("a", 1, 3.0), reached("b", 1, 2.0), reached("a", 2, 2.9), reached("b", 2, 2.8)]
    assert [name for _, name in recommendations(events, "mean")] == ["a", "b", "a", "b"]


def test_ours_ranks_by_the_mean_over_seeds_and_optuna_by_the_luckiest() -> None:
    events = [reached("a", 1, 2.0), reached("b", 1, 2.1), reached("a", 1, 2.6, replicate=1)]
    assert [name for _, name in recommendations(events, "mean")][-1] == "b"
    assert [name for _, name in recommendations(events, "luckiest")][-1] == "a"


def test_compute_counts_from_where_the_recommendation_stays_good() -> None:
    run = repeat(strategy(TABLE, "auto+none", 10), TABLE, seed=0, unit="tokens")
    assert 0 < run.compute <= 1
    assert run.regret[-1] == pytest.approx(0, abs=1e-12)


def test_the_comparison_says_what_ours_needs_of_the_best_rivals_compute() -> None:
    found = compare(TABLE, default_strategies(TABLE, 10), repetitions=3, unit="active_flops")
    medians = {name: values["compute"] for name, values in found["strategies"].items()}
    ours = medians.pop("auto+asha")
    best = min(value for value in medians.values() if value is not None)
    assert found["compute_vs_best_rival"] == pytest.approx(ours / best, rel=1e-4)
    assert json.loads(json.dumps(found)) == found


def test_a_written_table_reads_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "toy.csv.gz"
    write_table(TABLE, path)
    read = read_table(path)
    assert (read.config, read.curves, read.made_by) == (TABLE.config, TABLE.curves, TABLE.made_by)


def test_a_study_in_the_store_is_a_table_of_what_it_trained_to_the_end(tmp_path: Path) -> None:
    config = study_config(num_trials=6, pruner={"type": "median", "warmup_milestones": 0, "warmup_trials": 1})
    study = begin(config, tmp_path)
    work(config, tmp_path)
    table = table_of(read_study(storage_in(tmp_path), "toy"))
    complete = [trial for trial in study.trials if trial.state is optuna.trial.TrialState.COMPLETE]
    assert len(table.curves) == len(complete) < 6
    assert sorted(curve.final_loss for curve in table.curves) == sorted(trial.value or 0 for trial in complete)


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", gzip.compress(b"# {}\n", mtime=0), b"# [1]\n"])
def test_a_file_that_is_no_table_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    for path in (tmp_path / "bad.csv.gz", tmp_path / "bad.csv"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.csv"):
            read_table(path)


def test_an_unknown_strategy_is_refused_with_what_there_is() -> None:
    with pytest.raises(InputError, match=r"--strategy tpe\+median2: pruner\.type"):
        strategy(TABLE, "tpe+median2")


def test_the_command_prints_one_json_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "toy.csv"
    write_table(TABLE, path)
    assert command.main([str(path), "--strategy", "random+none", "--repetitions", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["strategies"]["random+none"]["reached"] == 1.0
    assert found["table"]["whole_cost"] == whole_cost(TABLE, "active_flops")


def test_the_committed_table_has_three_seeds_of_every_feasible_point_of_its_study() -> None:
    root = Path(__file__).parents[2]
    table, study = read_table(root / command.BENCHMARK), load_study(root / "studies" / "table.yaml")
    points = feasible_points(study)
    assert points is not None
    assert {resolve(study.base, point).fingerprint() for point in points} == set(table.seeds)
    assert {len(curves) for curves in table.seeds.values()} == {3}
    for fingerprint, curves in table.seeds.items():
        seeds = [derive_seed(study.sampler.seed, fingerprint, curve.replicate) for curve in curves]
        assert [curve.seed for curve in curves] == seeds
