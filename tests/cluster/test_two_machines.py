"""The same command given twice, as on two machines that share a server's store and a place for files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from moesearch.results.standing import is_finished
from moesearch.results.study import read_study
from moesearch.search.storage import closing_store, open_storage
from moesearch.tracking.database import default_tracking_uri, open_client
from tests.cluster.test_local import STUDY
from tests.postgres import PostgresServer


@pytest.fixture
def store(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    url = postgres.new_database()
    yield url
    postgres.drop(url)
    postgres.execute(f"DROP DATABASE IF EXISTS {url.rpartition('/')[2]}_mlflow WITH (FORCE)")


@pytest.mark.timeout(600)
def test_two_machines_share_one_study_and_come_to_one_verdict(
    store: str, postgres: PostgresServer, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("To be, or not to be, that is the question.\n" * 200)
    machines = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tiny.yaml").write_text(STUDY.format(text=tmp_path / "text.txt"))
        command = [sys.executable, "-m", "moesearch.run", "tiny.yaml", "--json", "--workers", "1"]
        command += ["--set", "control=none", "--set", "confirm.lr_search=false"]
        command += ["--storage", store, "--files", (tmp_path / "shared").as_uri()]
        machines.append(
            subprocess.Popen(
                command,
                cwd=tmp_path / name,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # Two threads of each would wait for one another by spinning.
                preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
            )
        )
    outputs = [machine.communicate(timeout=500) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    first, second = (json.loads(out) for out, _ in outputs)
    assert first["verdict"] == second["verdict"]
    assert first["verdict"]["test"]["opened_at"] is not None
    with closing_store(open_storage(store)) as storage:
        results = read_study(storage, "tiny")
        trials = storage.get_all_trials(storage.get_study_id_from_name("tiny"))
    assert sum(map(is_finished, trials)) == 3
    assert len(results.confirm_trials) == 2
    client = open_client(default_tracking_uri(Path("runs"), store))
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.tags["phase"] for run in runs) == ["confirm"] * 2 + ["search"] * 3 + ["summary"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    left = b"".join(out + err for out, err in outputs) + _content(tmp_path)
    assert postgres.password.encode() not in left


def _content(folder: Path) -> bytes:
    """All that was written to files: logs, reports, records."""
    files = (Path(root) / name for root, _, names in os.walk(folder) for name in names)
    return b"".join(file.read_bytes() for file in files)
