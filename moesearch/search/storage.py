"""The one record of truth: Optuna's RDBStorage, opened so that many processes can share it.

Optuna on SQLite hands one waiting trial to two workers, and fails when several processes create one store at once.
`open_storage` cures both. What must happen one after another, claims above all, happens under `store_lock`.
"""

from __future__ import annotations

import getpass
import hashlib
import sqlite3
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

import optuna
import sqlalchemy
from filelock import FileLock, Timeout
from optuna.storages import RDBStorage
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from moesearch.config.secrets import mask_url
from moesearch.errors import StoreError
from moesearch.locks import ServerLock
from moesearch.search.memory import MemoryStorage, Store

SQLITE_TIMEOUT_SECONDS = 60
POOL_SIZE = 2
"""Connections that a process keeps to a server: one for the lock, one for what is done under it."""
Purpose = Literal["lock", "verdict"]
_MAX_LOCK_SECONDS: dict[Purpose, int] = {"lock": 120, "verdict": 3600}
"""Silence after which a server frees a lock; under that of the verdict, models are evaluated."""

StaleCallback = Callable[[optuna.Study, optuna.trial.FrozenTrial], None]


def open_storage(
    url: str,
    *,
    heartbeat_interval: int = 30,
    grace_period: int = 120,
    on_stale: StaleCallback | None = None,
    create: bool = True,
) -> RDBStorage:
    """Open the store at an SQLAlchemy URL, creating its folder, file and tables as needed.

    Every process opens its own: the hooks below do not survive pickling.

    Args:
        url: ``sqlite:///path`` or that of a server, ``postgresql+psycopg://user:password@host/database``.
        heartbeat_interval: seconds between two signs of life of a running trial.
        grace_period: seconds of silence after which a running trial may be taken over.
        on_stale: called with the study and the trial that was taken from its silent worker.
        create: False refuses a file that is not there, for those who only read.

    Raises:
        StoreError: the URL cannot be opened, or what lies there is no study store.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # "A new study created …" is not for a person
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite":
        if not create and not Path(parsed.database or "").is_file():
            raise StoreError(f"{parsed.database}: no study store is here; name another with --runs or --storage")
        _make_folder(parsed)
    try:
        with _creation_lock(parsed):
            if parsed.get_backend_name() == "sqlite":
                _create_whole(Path(parsed.database or ""))
            _refuse_other_databases(parsed)
            storage = _connect(parsed, heartbeat_interval, grace_period, on_stale)
            if parsed.get_backend_name() == "sqlite":
                _cure_sqlite(storage)
            # A transaction of our own finds out now, not in the middle of a study, that the store is read-only.
            with storage.engine.begin() as connection:
                connection.execute(sqlalchemy.text("SELECT 1"))
    except StoreError:
        raise
    except ImportError as error:
        raise StoreError(
            f"{mask_url(url)}: the driver {error.name or parsed.drivername!r} is not installed; "
            "`pip install moesearch[postgres]` brings PostgreSQL's (postgresql+psycopg://...)"
        ) from None
    except (SQLAlchemyError, sqlite3.Error, optuna.exceptions.OptunaError, OSError) as error:
        raise StoreError(f"{mask_url(url)}: cannot be opened as a study store: {_reason(error)}") from None
    except RuntimeError as error:  # Optuna's word for a schema of another version
        raise StoreError(f"{mask_url(url)}: {error}") from None
    except Exception as error:  # of a damaged file the libraries raise whatever they stumble over
        raise StoreError(f"{mask_url(url)}: is damaged, or no study store: {error!r}") from None
    return storage


@contextmanager
def closing_store(storage: RDBStorage) -> Iterator[RDBStorage]:
    """The store until the end of the context, then none of its connections."""
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def store_lock(
    storage: RDBStorage, purpose: Purpose = "lock", on_wait: Callable[[], None] | None = None
) -> AbstractContextManager[object]:
    """A lock that all workers of one store share, freed when its holder dies; its holder may take it again.

    On PostgreSQL the server keeps it, for all hosts. Otherwise it is a file, for the processes of this host.
    ``on_wait`` is called before waiting, if somebody else holds it.
    """
    if storage.engine.dialect.name == "postgresql":
        return ServerLock(storage.engine, purpose, _MAX_LOCK_SECONDS[purpose], on_wait)
    lock = FileLock(_lock_file(storage.engine.url, purpose))
    return lock if on_wait is None else _taken(lock, on_wait)


@contextmanager
def _taken(lock: FileLock, on_wait: Callable[[], None]) -> Iterator[None]:
    try:
        lock.acquire(blocking=False)
    except Timeout:
        on_wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def locks_all_workers(storage: Store) -> bool:
    """Whether ``store_lock`` holds for all workers that a store can have: SQLite's are on one host."""
    return isinstance(storage, MemoryStorage) or storage.engine.dialect.name in ("sqlite", "postgresql")


@contextmanager
def _creation_lock(parsed: URL) -> Iterator[None]:
    """The lock of a store that may not be there yet."""
    if parsed.get_backend_name() != "postgresql":
        with FileLock(_lock_file(parsed, "lock")):
            yield
        return
    engine = sqlalchemy.create_engine(parsed, poolclass=sqlalchemy.NullPool)
    with ServerLock(engine, "creation", _MAX_LOCK_SECONDS["lock"]):
        yield


def _lock_file(parsed: URL, purpose: Purpose) -> Path:
    if parsed.get_backend_name() == "sqlite":
        return Path(f"{Path(parsed.database or '').absolute()}.{purpose}")
    digest = hashlib.sha256(parsed.render_as_string(hide_password=True).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"moesearch-{getpass.getuser()}-{digest}.{purpose}"


def _parse(url: str) -> URL:
    try:
        parsed = sqlalchemy.make_url(url)
        parsed.get_dialect()
    except NoSuchModuleError:  # an ArgumentError too
        raise StoreError(
            f"{mask_url(url)}: no database is called {url.split(':')[0]!r}; write sqlite:///... or postgresql+psycopg://..."
        ) from None
    except (ArgumentError, ValueError):
        raise StoreError(
            f"{mask_url(url)!r} is no storage URL; write sqlite:///runs/optuna.db or postgresql+psycopg://user@host/database"
        ) from None
    except ImportError as error:
        raise StoreError(f"{mask_url(url)}: the driver {error.name!r} is not installed; pip can install it") from None
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise StoreError(f"{url}: a store in memory cannot be shared by workers; write sqlite:///runs/optuna.db")
    return parsed


def _make_folder(parsed: URL) -> None:
    path = Path(parsed.database or "")
    if path.is_dir():
        raise StoreError(f"{path} is a folder; name a file in it: sqlite:///{path / 'optuna.db'}")
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path.parent}: cannot be made a folder: {error.strerror}; choose another --runs") from None
    # Closing any handle of a file frees all locks that this process has on it, SQLite's included, and other processes
    # would then ruin the store under our connections. So the file is looked into only where no store was ever opened.
    if path.exists() and not _lock_file(parsed, "lock").exists():
        try:
            with path.open("rb") as file:
                header = file.read(16)
        except OSError as error:
            raise StoreError(f"{path}: cannot be read: {error.strerror}; choose another --runs or --storage") from None
        if header not in (b"", b"SQLite format 3\0"):
            raise StoreError(f"{path} is no SQLite database; choose another --runs or --storage")


def _refuse_other_databases(parsed: URL) -> None:
    engine = sqlalchemy.create_engine(parsed)
    try:
        tables = set(sqlalchemy.inspect(engine).get_table_names())
    finally:
        engine.dispose()
    if not tables or "studies" in tables:
        return
    place = mask_url(parsed.render_as_string(hide_password=False))
    if {"experiments", "runs"} <= tables:
        raise StoreError(f"{place} is an MLflow database; the study store needs one of its own")
    # A server's database may serve others too, unless they claim the table that holds Optuna's schema version.
    if parsed.get_backend_name() == "sqlite" or "alembic_version" in tables:
        raise StoreError(f"{place} holds something else (tables {', '.join(sorted(tables)[:3])}, …); name another")


def _connect(parsed: URL, heartbeat_interval: int, grace_period: int, on_stale: StaleCallback | None) -> RDBStorage:
    engine_kwargs: dict[str, Any] = {}
    match parsed.get_backend_name():
        case "sqlite":
            engine_kwargs = {"connect_args": {"timeout": SQLITE_TIMEOUT_SECONDS}}
        case "postgresql":
            # A server allows a hundred connections by default, and may have been started anew since the last question.
            engine_kwargs = {"pool_size": POOL_SIZE, "pool_pre_ping": True}
    url = parsed.render_as_string(hide_password=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats
        return RDBStorage(
            url.replace("{", "{{").replace("}", "}}"),  # Optuna formats it, as a template of its own
            engine_kwargs=engine_kwargs,
            heartbeat_interval=heartbeat_interval,
            grace_period=grace_period,
            heartbeat_stale_trial_callback=on_stale,
        )


def _create_whole(path: Path) -> None:
    """Put a new store in place as a whole, if there is none.

    A kill while Optuna creates its tables can leave one without its index, and two studies of one name later on.
    """
    if path.exists() and path.stat().st_size > 0:
        return
    draft = path.with_name(f"{path.name}.draft")
    draft.unlink(missing_ok=True)
    storage = _connect(sqlalchemy.make_url(f"sqlite:///{draft}"), 30, 120, None)
    storage.remove_session()
    storage.engine.dispose()
    draft.replace(path)


def _cure_sqlite(storage: RDBStorage) -> None:
    """Make every transaction take the write lock as it begins, so that read-then-write is one step.

    SQLite ignores the FOR UPDATE that Optuna relies on: of 40 waiting trials, 4 workers ran 4 to 6 twice. The hooks
    sit on this engine alone; on the Engine class they would deadlock with other databases of the process.
    """
    engine = storage.engine
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("PRAGMA journal_mode=WAL"))

    @sqlalchemy.event.listens_for(engine, "connect")
    def _on_connect(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # the driver's own BEGIN would come first, and be a read lock
        connection.execute("PRAGMA synchronous=NORMAL")

    @sqlalchemy.event.listens_for(engine, "begin")
    def _on_begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections made before the hooks do not have them


def _reason(error: BaseException) -> str:
    cause = error.__cause__ if isinstance(error, optuna.exceptions.OptunaError) and error.__cause__ else error
    text = str(cause.orig) if isinstance(cause, DBAPIError) else str(cause)
    return text.strip().splitlines()[0] if text.strip() else type(cause).__name__
