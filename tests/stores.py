"""The stores that a study can live in, as fixtures of all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import PostgresServer


@pytest.fixture(params=["sqlite", "postgresql"])
def every_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Runs a test on every kind of store that a study can live in: `url_of(tmp_path)` is its URL."""
    if request.param == "sqlite":
        yield request.param
        return
    from tests.search.stand_ins import close_stores, use_store

    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.new_database(template=request.getfixturevalue("empty_postgres_store"))
    use_store(tmp_path, url)
    yield request.param
    close_stores()
    server.drop(url)


@pytest.fixture(scope="session")
def empty_postgres_store(postgres: PostgresServer) -> str:
    """A database with Optuna's tables, to be copied: creating them takes half a second."""
    from moesearch.search.storage import open_storage

    url = postgres.new_database()
    open_storage(url).engine.dispose()
    return url
