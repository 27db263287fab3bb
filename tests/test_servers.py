from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable

import pytest

from moesearch.servers import Server, ServerProcess, free_port, running, why_not_free

# Serves its own last argument on every path, and does what it is told before.
SERVE = """
import http.server, os, signal, subprocess, sys
{before}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.environ["GREETING"].encode())
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def server(before: str = "", code: str | None = None) -> Server:
    port = free_port("127.0.0.1")
    command = [sys.executable, "-c", SERVE.format(before=before) if code is None else code, str(port)]
    return Server("tiny", "127.0.0.1", port, "/health", command, {"GREETING": "hello"})


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_server_gets_its_environment_and_answers() -> None:
    with running([server()]) as (process,):
        wait_until(lambda: process.is_ready)
        assert process.get("/anything") == b"hello"


def test_no_server_is_left_when_the_block_ends() -> None:
    one = server()
    with running([one]) as (process,):
        wait_until(lambda: process.is_ready)
    assert process.exit_code is not None
    assert why_not_free("127.0.0.1", one.port) is None


def test_all_servers_end_when_the_block_fails() -> None:
    with pytest.raises(KeyboardInterrupt), running([server(), server()]) as processes:
        raise KeyboardInterrupt
    assert all(process.exit_code is not None for process in processes)


def test_the_children_of_a_server_end_with_it() -> None:
    with running([server("child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True)")]) as (process,):
        wait_until(lambda: process.is_ready)
    child = int(process.last_lines[0])
    wait_until(lambda: not _is_alive(child))


def _is_alive(pid: int) -> bool:
    # An orphan of a container without an init stays behind as a zombie: dead enough.
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_server_that_will_not_end_is_made_to() -> None:
    process = ServerProcess(server("signal.signal(signal.SIGTERM, signal.SIG_IGN)"))
    wait_until(lambda: process.is_ready)
    process.ask_to_stop()
    process.make_stop(grace_seconds=0.1)
    assert process.exit_code == -9


def test_the_last_lines_of_a_server_that_died_are_kept() -> None:
    with running([server(code="for n in range(50): print('line', n)\nraise SystemExit(3)")]) as (process,):
        wait_until(lambda: process.exit_code is not None)
        assert process.exit_code == 3
        assert process.last_lines == tuple(f"line {n}" for n in range(30, 50))


def test_a_port_with_a_listener_is_not_free() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert why_not_free("127.0.0.1", listener.getsockname()[1]) == "Address already in use"


def test_a_browser_finds_a_server_of_all_addresses_on_the_loopback() -> None:
    assert Server("any", "0.0.0.0", 8080, "/", (), {}).url == "http://127.0.0.1:8080"
