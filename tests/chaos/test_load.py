"""Small versions of the two measurements beside it, which docs/reliability.md gives at full size."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.growth import FEW, seconds_per_trial
from tests.chaos.load import NUM_WORKERS, hold


@pytest.mark.timeout(300)
def test_four_workers_on_one_sqlite_file_lose_nothing_while_pages_are_read(tmp_path: Path) -> None:
    load = hold(tmp_path, trials_per_worker=10)
    assert load.trials == 10 * NUM_WORKERS
    assert load.page_reads > 0
    wrong = (load.failed_page_reads, load.lost_trials, load.repeated_trials, load.running_trials, load.worker_errors)
    assert wrong == (0, 0, 0, 0, 0)
    assert load.mlflow_differs == 0


@pytest.mark.timeout(300)
def test_a_trial_in_a_store_of_many_costs_less_than_twice_one_in_a_store_of_few(tmp_path: Path) -> None:
    seconds = seconds_per_trial((FEW, 20 * FEW), tmp_path)
    assert seconds[20 * FEW] < 2 * seconds[FEW]
