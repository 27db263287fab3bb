"""A lock that a PostgreSQL server keeps, for processes of many hosts; on one host a lock on a file does."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

_logger = logging.getLogger(__name__)


class ServerLock:
    """An advisory lock of a database, held by one session at a time. For one thread, which may take it again inside.

    The server frees it when its holder's connection ends, so when the holder dies; and also when a holder has asked
    nothing through that connection for ``max_seconds``, since a host that is cut off closes no connection.
    """

    def __init__(self, engine: Engine, name: str, max_seconds: int, on_wait: Callable[[], None] | None = None) -> None:
        """``on_wait`` is called before waiting, if another session has the lock."""
        self._engine = engine
        self._key = int.from_bytes(hashlib.sha256(f"moesearch/{name}".encode()).digest()[:8], "big", signed=True)
        self._max_seconds = max_seconds
        self._on_wait = on_wait
        self._depth = 0
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        if self._depth == 0:
            self._connection = self._take()
        self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0 and self._connection is not None:
            connection, self._connection = self._connection, None
            self._free(connection)

    def _take(self) -> Connection:
        from sqlalchemy import text

        # Outside of any transaction: one that stays open would keep the server from tidying up.
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            if self._on_wait is not None and self._is_held(connection):
                self._on_wait()
            connection.execute(
                text("SELECT set_config('idle_session_timeout', :limit, false), pg_advisory_lock(:key)"),
                {"limit": f"{self._max_seconds}s", "key": self._key},
            )
        except BaseException:
            connection.invalidate()  # it may or may not have the lock now
            connection.close()
            raise
        return connection

    def _is_held(self, connection: Connection) -> bool:
        from sqlalchemy import text

        # Taken and freed in one statement: whoever asks for it in between waits no longer than that takes.
        tried = text("SELECT CASE WHEN pg_try_advisory_lock(:key) THEN pg_advisory_unlock(:key) ELSE false END")
        return not connection.execute(tried, {"key": self._key}).scalar()

    def _free(self, connection: Connection) -> None:
        from sqlalchemy import text
        from sqlalchemy.exc import SQLAlchemyError

        try:
            connection.execute(
                text("SELECT pg_advisory_unlock(:key), set_config('idle_session_timeout', '0', false)"),
                {"key": self._key},
            )
        except SQLAlchemyError as error:
            # What is done under it bears another holder beside this one: no number is given twice, no trial ends twice.
            _logger.warning("the store's lock was lost meanwhile: %s", str(error.__cause__).splitlines()[0])
            connection.invalidate()
        finally:
            connection.close()
