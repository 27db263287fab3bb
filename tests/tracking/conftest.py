from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from moesearch.tracking.database import open_client, prepare
from moesearch.tracking.mlflow import MLflowTracker


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that MLflow has just made: making one takes most of a second, copying it nothing."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    prepare(f"sqlite:///{path}")
    return path


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path) -> str:
    path = tmp_path / "runs of today" / "mlflow.db"
    path.parent.mkdir()
    with closing(sqlite3.connect(empty_database)) as source, closing(sqlite3.connect(path)) as target:
        source.backup(target)
    return f"sqlite:///{path}"


@pytest.fixture
def tracker(uri: str, tmp_path: Path) -> MLflowTracker:
    return MLflowTracker(uri, "experts_topk", tmp_path / "runs of today" / "artifacts")


@pytest.fixture
def client(uri: str) -> MlflowClient:
    """MLflow's own eyes on what the tracker wrote."""
    return open_client(uri)
