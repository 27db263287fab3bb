"""Where MLflow keeps its runs: which place is meant, making it once, and opening it.

Costs, measured on two cores: importing MLflow 1.4 s (all of it, whichever of its modules one asks for), opening a
database that exists 0.06 s (half of it the check of its schema), creating one 0.8 s. So MLflow is imported when a
client is opened, and never for a command's ``--help``.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from moesearch.config.secrets import hide_secrets, mask_url
from moesearch.errors import TrackingError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient
    from sqlalchemy.engine import URL

MAX_CREATION_SECONDS = 120
"""What MLflow's tables may take; another process waits so long for the one that creates them."""

# Read by MLflow; set unless the caller's environment says otherwise.
_ENVIRONMENT = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # MLflow would retry for four minutes, and training would wait. A view may be lost sooner than that.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


def default_tracking_uri(runs: Path, storage_url: str | None = None) -> str:
    """Where MLflow's runs are, unless a flag says: MLFLOW_TRACKING_URI if it is set, else beside the study store.

    Beside a store on PostgreSQL that is another database of the same server (the two cannot share one), else the file
    ``mlflow.db`` in the folder ``runs``.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    return given or _beside_store(storage_url) or f"sqlite:///{(runs / 'mlflow.db').absolute()}"


def _beside_store(storage_url: str | None) -> str | None:
    if storage_url is None or not storage_url.startswith("postgresql"):
        return None
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        store = make_url(storage_url)
    except ArgumentError:
        return None  # whoever opens the store will say so
    database = f"{store.database or store.username}_mlflow"
    return store.set(database=database).render_as_string(hide_password=False)


def prepare(tracking_uri: str) -> None:
    """Create or migrate the database once, before workers start, or see that the server answers.

    Several processes that open a new database at once would each try to create it, and most of them fail.

    Raises:
        TrackingError: there is no such place, or it holds something else.
    """
    with failures(tracking_uri, "open it"):
        path = sqlite_path(tracking_uri)
        if path is not None:
            _prepare_sqlite(path, tracking_uri)
        elif tracking_uri.startswith("postgresql"):
            _prepare_postgres(tracking_uri)
        else:
            # To open a server's client asks nothing of it yet.
            open_client(tracking_uri).search_experiments(max_results=1)


def is_server(tracking_uri: str) -> bool:
    """Whether the URI is of an ``mlflow server``, which has its own database and keeps artifacts itself."""
    return tracking_uri.startswith(("http://", "https://"))


def sqlite_path(tracking_uri: str) -> Path | None:
    """The file of a SQLite database; None for every other kind of URI."""
    if not re.match(r"sqlite(\+\w+)?:///.", tracking_uri):
        return None
    return Path(tracking_uri.partition(":///")[2].partition("?")[0])


def _prepare_sqlite(path: Path, tracking_uri: str) -> None:
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock", timeout=120):
        with closing(sqlite3.connect(path, timeout=60)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "studies" in tables and "experiments" not in tables:
                raise TrackingError(
                    f"{path} is an Optuna store, and MLflow cannot share one: give it a database of its own"
                )
        if not tables:
            _create(path)
        with closing(sqlite3.connect(path, timeout=60)) as database:
            # With a write-ahead log, a browser that reads never stops a worker that writes.
            database.execute("PRAGMA journal_mode = WAL")
        try:
            open_client(tracking_uri)
        except Exception as error:
            if "out-of-date database schema" not in str(error):
                raise
            _migrate(path, tracking_uri)
            open_client(tracking_uri)


def _prepare_postgres(tracking_uri: str) -> None:
    """Create the database of a server, and MLflow's tables in it, one process of all hosts at a time."""
    import sqlalchemy
    from sqlalchemy.exc import OperationalError

    from moesearch.locks import ServerLock

    url = sqlalchemy.make_url(tracking_uri)
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    try:
        sqlalchemy.inspect(engine)
    except OperationalError as error:
        if "does not exist" not in str(error):
            raise
        _create_database(url)
    with ServerLock(engine, "mlflow", MAX_CREATION_SECONDS):
        tables = set(sqlalchemy.inspect(engine).get_table_names())
        if "studies" in tables and "experiments" not in tables:
            raise TrackingError(
                f"{mask_url(tracking_uri)} is an Optuna store, and MLflow cannot share one: name another database "
                "in MLFLOW_TRACKING_URI"
            )
        open_client(tracking_uri).search_experiments(max_results=1)


def _create_database(url: URL) -> None:
    import sqlalchemy
    from sqlalchemy.exc import ProgrammingError

    engine = sqlalchemy.create_engine(url.set(database="postgres"), poolclass=sqlalchemy.NullPool)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        name = connection.dialect.identifier_preparer.quote(str(url.database))
        try:
            connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
        except sqlalchemy.exc.IntegrityError:
            pass  # another host was faster
        except ProgrammingError as error:
            if "already exists" not in str(error):
                raise TrackingError(
                    f"the server has no database {url.database}, and {url.username} may not create it "
                    f"({str(error.orig).strip()}); have it made (`createdb {url.database}`), or set MLFLOW_TRACKING_URI"
                ) from error


def _create(path: Path) -> None:
    """Put a new database in place as a whole. MLflow cannot go on with one whose creation was cut short by a kill."""
    draft, copy = path.with_name(f"{path.name}.draft"), path.with_name(f"{path.name}.new")
    try:
        for leftover in (draft, copy):
            leftover.unlink(missing_ok=True)
        open_client(f"sqlite:///{draft.absolute()}")
        # MLflow keeps its connection to the draft for good, so a copy takes its place.
        with closing(sqlite3.connect(draft)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
        copy.replace(path)
    finally:
        for leftover in (draft, copy):
            leftover.unlink(missing_ok=True)


def _migrate(path: Path, tracking_uri: str) -> None:
    """Bring the database of an older MLflow up to date; a copy of it stays beside it."""
    copy = path.with_name(f"{path.name}.before-migration")
    with closing(sqlite3.connect(path, timeout=60)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    from mlflow.db import upgrade

    try:
        upgrade.main([tracking_uri], standalone_mode=False)
    except Exception as error:
        raise TrackingError(
            f"{path} was written by another version of MLflow and cannot be migrated: {error}"
        ) from error


def open_client(tracking_uri: str) -> MlflowClient:
    """A client of the place, with MLflow kept quiet. Raises what MLflow raises."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        # MLflow's own use of deprecated parts of its dependencies is not for our users to mend.
        warnings.simplefilter("ignore")
        from mlflow.tracking import MlflowClient

        # Whatever goes wrong is raised, so MLflow's log lines would only tear the live display.
        logging.getLogger("mlflow").setLevel(logging.CRITICAL)
        return MlflowClient(tracking_uri)


@contextmanager
def failures(tracking_uri: str, task: str) -> Iterator[None]:
    """Turn whatever MLflow, its database driver or its network raises into one TrackingError without secrets."""
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TrackingError(hide_secrets(f"MLflow at {tracking_uri}: could not {task}: {reason}")) from error
