"""MLflow beside a study store on PostgreSQL: another database of the same server."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy

from moesearch.errors import TrackingError
from moesearch.tracking.database import default_tracking_uri, prepare
from moesearch.tracking.mlflow import MLflowTracker
from tests.postgres import PostgresServer


@pytest.fixture
def uri(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where MLflow would be, beside a store of that server; nobody has created it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = default_tracking_uri(Path("runs"), postgres.url("study"))
    yield uri
    postgres.execute("DROP DATABASE IF EXISTS study_mlflow WITH (FORCE)")


def test_beside_a_store_on_a_server_it_is_another_database_of_it(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert default_tracking_uri(Path("runs"), postgres.url("study")) == postgres.url("study_mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert default_tracking_uri(Path("runs"), postgres.url("study")) == "http://127.0.0.1:5000"


def _start_run(uri: str, artifacts: Path) -> str:
    prepare(uri)
    return MLflowTracker(uri, "experts_topk", artifacts).start_run("run", {"moe.top_k": 2}, {"trial": "0"})


def test_hosts_that_start_together_create_it_once_and_share_it(uri: str, tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        run_ids = pool.starmap(_start_run, [(uri, tmp_path / "artifacts")] * 2, chunksize=1)
    assert len(set(run_ids)) == 2


def test_an_optuna_store_is_refused_without_its_password(uri: str, postgres: PostgresServer) -> None:
    postgres.execute("CREATE DATABASE study_mlflow")
    postgres.execute("CREATE TABLE studies (x int)", "study_mlflow")
    with pytest.raises(TrackingError, match="is an Optuna store") as error:
        prepare(uri)
    assert postgres.password not in str(error.value)


def test_a_role_that_may_create_no_database_is_told_how_to_go_on(uri: str, postgres: PostgresServer) -> None:
    postgres.execute("CREATE ROLE reader LOGIN PASSWORD 'reader'")
    as_reader = sqlalchemy.make_url(uri).set(username="reader", password="reader")
    with pytest.raises(TrackingError, match=r"may not create it .*`createdb study_mlflow`"):
        prepare(as_reader.render_as_string(hide_password=False))
