"""Servers as child processes: started together, watched, and ended with whatever they started themselves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess  # nosec B404: fixed argument lists, no shell
import threading
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass

STOP_SECONDS = 5.0
"""How long a server that was asked to end has, before it is made to."""
LAST_LINES = 20
"""How much of a server's output is kept."""

# No proxy stands between this machine and itself.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Server:
    """A server to start: its name, where it answers, and the command with what its environment needs."""

    name: str
    host: str
    port: int
    health_path: str
    """A path that it serves once it is ready."""
    command: Sequence[str]
    environment: Mapping[str, str]

    @property
    def url(self) -> str:
        """Where a browser on this machine finds it, without a slash at the end."""
        is_wildcard = self.host == "0.0.0.0"  # noqa: S104  # nosec B104: only compared
        return f"http://{'127.0.0.1' if is_wildcard else self.host}:{self.port}"


class ServerProcess:
    """A server that was started, with the last lines that it printed."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        # A session of its own: Ctrl-C reaches the command alone, which then ends the server with all its children.
        self._process = subprocess.Popen(  # noqa: S603  # nosec B603: our own commands, no shell
            server.command,
            env={**os.environ, **server.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._keep_last_lines, daemon=True)
        self._reader.start()

    def _keep_last_lines(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            self._lines.extend(line.rstrip() for line in stdout)

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    @property
    def last_lines(self) -> tuple[str, ...]:
        # What a server said last may still be in the pipe when it is found dead.
        self._reader.join(timeout=1)
        return tuple(self._lines)

    @property
    def is_ready(self) -> bool:
        return self.get(self.server.health_path) is not None

    def get(self, path: str) -> bytes | None:
        """What the server serves at a path; None if it does not."""
        try:
            with closing(_OPENER.open(self.server.url + path, timeout=5)) as response:
                return bytes(response.read())
        except (urllib.error.URLError, OSError):
            return None

    def ask_to_stop(self) -> None:
        self._signal_group(signal.SIGTERM)

    def make_stop(self, grace_seconds: float) -> None:
        """Wait for the end, then end by force whatever is left of the server and its children."""
        try:
            self._process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._signal_group(signal.SIGKILL)
            self._process.wait()
            self._reader.join(timeout=1)

    def _signal_group(self, number: signal.Signals) -> None:
        # The group may be gone; macOS says of its zombies that they are not ours to signal.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


@contextmanager
def running(servers: Sequence[Server]) -> Iterator[list[ServerProcess]]:
    """Servers that end with the block, however it ends."""
    processes: list[ServerProcess] = []
    try:
        # One by one: should the second fail to start, the first is on the list of those to stop.
        for server in servers:
            processes.append(ServerProcess(server))  # noqa: PERF401
        yield processes
    finally:
        for process in processes:
            process.ask_to_stop()
        for process in processes:
            process.make_stop(STOP_SECONDS)


def why_not_free(host: str, port: int) -> str | None:
    """Why no server can listen there; None if one can."""
    try:
        _listen(host, port).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def free_port(host: str) -> int:
    """A port of this address that nobody listens on."""
    with closing(_listen(host, 0)) as listener:
        return int(listener.getsockname()[1])


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # As servers do: a port whose last connections are only fading away counts as free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener
