from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from moesearch.errors import InputError, MoesearchError
from moesearch.search import cluster as cluster_module
from moesearch.search.progress import Progress
from tests.cluster.studies import NUM_LANES, fail, find_a_mistake, run_on_ray
from tests.search.stand_ins import MILESTONES, storage_in


@dataclass
class Events:
    """Does something to the cluster once so many trials are finished."""

    due: list[tuple[int, Callable[[], Any]]]

    def __call__(self, progress: Progress) -> None:
        while self.due and progress.num_finished >= self.due[0][0]:
            self.due.pop(0)[1]()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("every_store", ["postgresql"], indirect=True)
def test_a_study_of_200_trials_loses_one_node_of_three_gains_another_and_ends_exactly(
    cluster: Any, every_store: str, tmp_path: Path
) -> None:
    nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
    kill, join = (lambda: cluster.remove_node(nodes[1], allow_graceful=False)), (lambda: cluster.add_node(num_cpus=1))
    events = Events([(40, kill), (80, join)])
    outcome = run_on_ray(tmp_path, 200, show=events)
    trials = optuna.load_study(study_name="toy", storage=storage_in(tmp_path)).trials
    num_trained = len((tmp_path / "trained").read_text().splitlines())
    assert events.due == []
    assert outcome.progress.num_finished == 200
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 200
    assert all(sorted(trial.intermediate_values) == [1, 2, 3, 4] for trial in trials)
    assert 200 * MILESTONES <= num_trained <= 200 * MILESTONES + NUM_LANES  # a milestone for each lane that was lost


def test_a_node_that_joins_is_given_a_worker(cluster: Any, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=1)
    workers: set[str] = set()

    joined = Events([(1, lambda: cluster.add_node(num_cpus=1))])

    def show(progress: Progress) -> None:
        workers.update(trial.user_attrs.get("worker", "") for trial in progress.running)
        joined(progress)

    run_on_ray(tmp_path, 60, show=show)
    assert len(workers - {""}) == 2


def test_a_mistake_that_a_worker_finds_is_a_persons(cluster: Any, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=1)
    with pytest.raises(InputError, match=r"^tiny_shakespeare: cannot be downloaded$"):
        run_on_ray(tmp_path, 2, work=find_a_mistake)


def test_a_worker_that_fails_again_and_again_ends_the_run_with_its_last_words(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "MAX_RESTARTS", 1)
    cluster.add_node(num_cpus=1)
    with pytest.raises(MoesearchError, match=r"died 2 times in a row[\s\S]*no luck today"):
        run_on_ray(tmp_path, 2, work=fail)


def test_sqlite_is_refused_where_the_cluster_has_another_host(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cluster_module.joined_cluster():
        cluster_module.refuse_sqlite_on_other_hosts("sqlite:///runs/optuna.db")
        monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
        cluster_module.refuse_sqlite_on_other_hosts("postgresql+psycopg://db/optuna")
        with pytest.raises(InputError, match=r"SQLite, which .* cannot share with elsewhere.*--storage postgresql"):
            cluster_module.refuse_sqlite_on_other_hosts("sqlite:///runs/optuna.db")
