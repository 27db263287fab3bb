"""A PostgreSQL server for tests: Debian's, on a free loopback port, in a folder of its own, gone at the end.

Where there is none, tests that ask for it are skipped, and say so.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sqlalchemy

USER = "postgres"
MAX_CONNECTIONS = 400


@dataclass
class PostgresServer:
    """A running server; each test has a database of its own."""

    port: int
    password: str
    process: subprocess.Popen[bytes]
    _databases: list[str] = field(default_factory=list)

    def url(self, database: str = USER) -> str:
        return f"postgresql+psycopg://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def new_database(self, *, template: str | None = None) -> str:
        """The URL of a new database, which is a copy of the one that the template's URL names."""
        name = f"test_{len(self._databases)}"
        copied = "" if template is None else f" TEMPLATE {sqlalchemy.make_url(template).database}"
        self.execute(f"CREATE DATABASE {name}{copied}")
        self._databases.append(name)
        return self.url(name)

    def drop(self, url: str) -> None:
        """Drop a database, whoever is connected to it."""
        self.execute(f"DROP DATABASE {sqlalchemy.make_url(url).database} WITH (FORCE)")

    def execute(self, statement: str, database: str = USER) -> None:
        engine = sqlalchemy.create_engine(self.url(database), poolclass=sqlalchemy.NullPool)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sqlalchemy.text(statement))


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    reason = why_no_server()
    if reason is not None:
        pytest.skip(reason)
    with running_server() as server:
        yield server


def why_no_server() -> str | None:
    """Why there can be no server here; None if there can."""
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed: pip install 'moesearch[postgres]'"
    return None if _binaries() is not None else "PostgreSQL is not installed: apt-get install postgresql"


class running_server:  # noqa: N801 - used as a context
    """A server from here to the end of the context."""

    def __enter__(self) -> PostgresServer:
        # Not pytest's folder for temporary files, which is closed to the server's user.
        self._folder = Path(tempfile.mkdtemp(prefix="moesearch-postgres-"))
        password = secrets.token_hex(8)
        (self._folder / "password").write_text(password)
        if os.getuid() == 0:
            account = pwd.getpwnam(USER)
            for path in (self._folder, self._folder / "password"):
                os.chown(path, account.pw_uid, account.pw_gid)
        data = self._folder / "data"
        options = ["--auth=scram-sha-256", f"--username={USER}", f"--pwfile={self._folder / 'password'}"]
        made = subprocess.run(
            [*_as_server_user("initdb"), "--no-sync", "--encoding=UTF8", "--locale=C", *options, str(data)],
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stderr
        self.server = self._start(data, password)
        return self.server

    def _start(self, data: Path, password: str) -> PostgresServer:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": "",
            "max_connections": MAX_CONNECTIONS,
            "fsync": "off",  # tests end processes, never the machine
        }
        with (self._folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    *_as_server_user("postgres"),
                    *("-D", str(data)),
                    *(part for name, value in settings.items() for part in ("-c", f"{name}={value}")),
                ],
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )
        server = PostgresServer(port, password, process)
        deadline = time.monotonic() + 30
        while True:
            try:
                server.execute("SELECT 1")
            except sqlalchemy.exc.OperationalError:
                has_ended = process.poll() is not None or time.monotonic() > deadline
                assert not has_ended, (self._folder / "log").read_text()
                time.sleep(0.05)
            else:
                return server

    def __exit__(self, *_: object) -> None:
        self.server.process.send_signal(signal.SIGQUIT)  # at once, as nothing of it will be wanted
        self.server.process.wait(30)
        shutil.rmtree(self._folder, ignore_errors=True)


def _binaries() -> Path | None:
    """The folder of the newest server that is installed; Debian keeps it out of PATH."""
    found = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").exists()]
    if found:
        return max(found, key=lambda path: float(path.parent.name))
    on_path = shutil.which("initdb")
    return None if on_path is None else Path(on_path).parent


def _as_server_user(program: str) -> list[str]:
    """The command of a server's program, which ends with its parent, and is never root's."""
    folder = _binaries()
    assert folder is not None
    user = [f"--reuid={USER}", f"--regid={USER}", "--init-groups"] if os.getuid() == 0 else []
    setpriv = shutil.which("setpriv")
    assert setpriv is not None or not user, "setpriv of util-linux is needed to leave root"
    prefix = [] if setpriv is None else [setpriv, "--pdeathsig=QUIT", *user]
    return [*prefix, str(folder / program)]
