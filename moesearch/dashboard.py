"""python -m moesearch.dashboard: optuna-dashboard and MLflow's pages on a study's files.

Both run as child processes on the loopback interface, and end with this command. optuna-dashboard opens the store
plainly, without the write locks that workers take, so in SQLite's write-ahead mode its reads stop no worker.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import signal
import sqlite3
import sys
import time
import webbrowser
from collections.abc import Collection, Sequence
from contextlib import closing
from pathlib import Path

from moesearch.cli import new_parser, run_command, storage_url
from moesearch.config.secrets import hide_secrets, mask_url
from moesearch.errors import InputError, StoreError
from moesearch.servers import Server, ServerProcess, free_port, running, why_not_free
from moesearch.tracking.database import default_tracking_uri, is_server, sqlite_path
from moesearch.tracking.labels import charts_route
from moesearch.tracking.mlflow import DEFAULT_PORT as DEFAULT_MLFLOW_PORT

OPTUNA_DASHBOARD = "optuna-dashboard"
MLFLOW = "MLflow"
DEFAULT_PORT = 8080
START_SECONDS = 120.0
WATCH_SECONDS = 0.3

# optuna-dashboard's own command, except that the store's URL, which may hold a password, is no argument of a process.
_OPTUNA_DASHBOARD_CODE = """
import os, sys
from optuna_dashboard._cli import main
sys.argv = ["optuna-dashboard", os.environ.pop("MOESEARCH_DASHBOARD_STORAGE"), *sys.argv[1:]]
main()
"""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    servers = _servers(args)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    with running(servers) as processes:
        living = _wait_until_ready(processes)
        if living:
            _point_to_pages(living, open_browser=not args.no_browser)
        while living:
            time.sleep(WATCH_SECONDS)
            living = _report_the_dead(living)
    return 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(
        "dashboard",
        "Open optuna-dashboard and MLflow on a study's files, while it runs or after.",
        "  python -m moesearch.dashboard\n"
        "  python -m moesearch.dashboard --runs /data/runs --port 8090\n"
        "  python -m moesearch.dashboard --storage postgresql+psycopg://me@db/optuna --no-browser",
    )
    parser.add_argument("--runs", metavar="DIR", type=Path, default=Path("runs"), help="the folder of both databases")
    parser.add_argument("--storage", metavar="URL", help="Optuna storage; default sqlite:///DIR/optuna.db in --runs")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve on; any other than 127.0.0.1 shows the studies to others"
    )
    parser.add_argument("--port", type=_port, help=f"of optuna-dashboard; default {DEFAULT_PORT}, or a free one")
    parser.add_argument("--mlflow-port", type=_port, help=f"of MLflow; default {DEFAULT_MLFLOW_PORT}, or a free one")
    parser.add_argument("--no-browser", action="store_true", help="only print the addresses")
    return parser.parse_args(argv)


def _port(text: str) -> int:
    port = int(text)
    if not 1 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"a port is a number from 1 to 65535, not {text}")
    return port


def _servers(args: argparse.Namespace) -> list[Server]:
    """What to start, on ports that are free; prints what is not to be had.

    Raises:
        InputError: there is no store, or an address that was asked for cannot be had.
    """
    from moesearch.search.order import dashboard_files

    storage = storage_url(args.storage, args.runs)
    _see_that_a_store_is_there(storage)
    unusable = why_not_free(args.host, 0)
    if unusable is not None:
        raise InputError(f"--host {args.host}: this is no address of this machine ({unusable}); leave --host out")
    _say_what_is_exposed(args.host)
    port = _choose_port(OPTUNA_DASHBOARD, "--port", args.host, args.port, DEFAULT_PORT, taken=())
    servers = [_optuna_dashboard(storage, dashboard_files(args.runs), args.host, port)]
    tracking_uri = default_tracking_uri(args.runs, storage)
    database = sqlite_path(tracking_uri)
    if is_server(tracking_uri):
        print(f"{MLFLOW:<17} {mask_url(tracking_uri)} (MLFLOW_TRACKING_URI)")
    elif database is not None and not database.exists():
        print(f"{MLFLOW:<17} not started: there is no {database} yet; a study writes it while it runs")
    else:
        mlflow_port = _choose_port(
            MLFLOW, "--mlflow-port", args.host, args.mlflow_port, DEFAULT_MLFLOW_PORT, taken=(port,)
        )
        servers.append(_mlflow(tracking_uri, args.runs / "artifacts", args.host, mlflow_port))
    return servers


def _see_that_a_store_is_there(storage: str) -> None:
    path = sqlite_path(storage)
    if path is None:
        return
    if not path.is_file():
        raise StoreError(
            f"{path}: there is no store yet; run a study first (python -m moesearch.run studies/experts_topk.yaml), "
            "or say where it is with --runs DIR or --storage URL"
        )
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            database.execute("SELECT study_id FROM studies LIMIT 1")
    except sqlite3.Error as error:
        raise StoreError(f"{path}: this is no Optuna store ({error})") from error


def _say_what_is_exposed(host: str) -> None:
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = host == "localhost"
    if not is_loopback:
        print(
            f"Serving on {host}: everyone who can reach it can read, change and delete these studies and runs, "
            "and read their artifacts. Neither server asks for a password."
        )


def _choose_port(name: str, flag: str, host: str, wanted: int | None, default: int, *, taken: Collection[int]) -> int:
    """The port that was asked for, or the default, or, where the default is taken, a free one, and say so."""
    port = default if wanted is None else wanted
    reason = "the other server has it" if port in taken else why_not_free(host, port)
    if reason is None:
        return port
    if wanted is not None:
        raise InputError(f"{flag} {wanted}: {reason}; leave {flag} out for a free port")
    port = free_port(host)
    print(f"Port {default}: {reason}; {name} takes {port}")
    return port


def _optuna_dashboard(storage: str, files: Path, host: str, port: int) -> Server:
    # wsgiref: one process with a thread per request, so that no connection to the store crosses a fork.
    flags = ["--host", host, "--port", str(port), "--server", "wsgiref"]
    if files.is_dir():
        flags += ["--artifact-dir", str(files)]
    return Server(
        name=OPTUNA_DASHBOARD,
        host=host,
        port=port,
        health_path="/api/meta",
        command=[sys.executable, "-c", _OPTUNA_DASHBOARD_CODE, *flags],
        environment={"MOESEARCH_DASHBOARD_STORAGE": storage},
    )


def _mlflow(tracking_uri: str, artifacts: Path, host: str, port: int) -> Server:
    """MLflow at its leanest: one worker, no engine for background jobs, 0.5 GiB instead of 3."""
    return Server(
        name=MLFLOW,
        host=host,
        port=port,
        health_path="/health",
        command=[sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"],
        environment={
            "MLFLOW_BACKEND_STORE_URI": tracking_uri,
            "MLFLOW_ARTIFACTS_DESTINATION": str(artifacts.absolute()),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_ENABLE_AI_GATEWAY": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        },
    )


def _wait_until_ready(processes: Sequence[ServerProcess]) -> list[ServerProcess]:
    """Print each address as soon as its server answers; the servers that do."""
    waiting, ready = list(processes), []
    deadline = time.monotonic() + START_SECONDS
    while waiting and time.monotonic() < deadline:
        waiting = _report_the_dead(waiting)
        for process in [process for process in waiting if process.is_ready]:
            waiting.remove(process)
            ready.append(process)
            print(f"{process.server.name:<17} {process.server.url}", flush=True)
        time.sleep(0.1)
    for process in waiting:
        print(f"{process.server.name} does not answer after {START_SECONDS:.0f} s", file=sys.stderr)
        _print_last_lines(process)
    return ready


def _report_the_dead(processes: Sequence[ServerProcess]) -> list[ServerProcess]:
    """Say which servers have ended, and what they said last; the others."""
    for process in processes:
        if process.exit_code is not None:
            print(f"{process.server.name} ended with code {process.exit_code}", file=sys.stderr)
            _print_last_lines(process)
    return [process for process in processes if process.exit_code is None]


def _print_last_lines(process: ServerProcess) -> None:
    for line in process.last_lines:
        print(f"  {hide_secrets(line)}", file=sys.stderr, flush=True)


def _point_to_pages(processes: Sequence[ServerProcess], *, open_browser: bool) -> None:
    """Print where MLflow has each study's charts, which from its first page are hard to find; open the pages."""
    pages = []
    for process in processes:
        experiments = _experiments(process) if process.server.name == MLFLOW else {}
        charts = {name: f"{process.server.url}/{charts_route(id_)}" for name, id_ in experiments.items()}
        for name, url in charts.items():
            print(f"  {name:<15} {url}")
        pages.append(next(iter(charts.values()), process.server.url))
    print("Ctrl-C stops.", flush=True)
    # On a machine without a screen a text browser would take the terminal over.
    has_screen = sys.platform in ("darwin", "win32") or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    if open_browser and has_screen and sys.stdout.isatty():
        for page in pages:
            webbrowser.open(page)


def _experiments(mlflow: ServerProcess) -> dict[str, str]:
    """Names and ids of the experiments that were written to last, without MLflow's own empty one."""
    found = json.loads(mlflow.get("/api/2.0/mlflow/experiments/search?max_results=6") or "{}")
    return {
        str(experiment["name"]): str(experiment["experiment_id"])
        for experiment in found.get("experiments", [])
        if experiment["experiment_id"] != "0"
    }


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    run_command(main)
