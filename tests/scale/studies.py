"""The study of the scale figures: five knobs of three kinds, and no training."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from moesearch.config.study import StudyConfig
from moesearch.search.job import Job
from moesearch.search.storage import closing_store, open_storage
from tests.postgres import PostgresServer
from tests.search.stand_ins import close_stores, new_job, study_config, use_store

SEARCH: dict[str, Any] = {
    "moe.num_experts": {"type": "categorical", "choices": [4, 8, 16]},
    "moe.top_k": {"type": "categorical", "choices": [1, 2, 4]},
    "moe.noise": {"type": "categorical", "choices": [True, False]},
    "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
    "optim.weight_decay": {"type": "float", "low": 1e-3, "high": 1.0, "log": True},
}


def scale_config(num_trials: int, sampler: str = "tpe") -> StudyConfig:
    return study_config(num_trials=num_trials, search=SEARCH, sampler={"type": sampler})


def job_of(config: StudyConfig, folder: Path) -> Job:
    return new_job(config, folder)


class Store:
    """A folder whose store is a new database of the server."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._folder = TemporaryDirectory(prefix="moesearch-scale-")

    def __enter__(self) -> Path:
        self.url = self._server.new_database()
        with closing_store(open_storage(self.url)):
            pass
        use_store(Path(self._folder.name), self.url)
        return Path(self._folder.name)

    def __exit__(self, *_: object) -> None:
        close_stores()
        self._server.drop(self.url)
        self._folder.cleanup()
