"""Optuna's gRPC proxy, weighed: the same asking and telling, through it and without it."""

from __future__ import annotations

import importlib.util
import multiprocessing
import socket
import time
from typing import Any

import optuna
from optuna.storages import BaseStorage, GrpcStorageProxy, RDBStorage, run_grpc_proxy_server

from moesearch.search.storage import open_storage
from tests.postgres import PostgresServer
from tests.scale.studies import Store
from tests.search.processes import start
from tests.search.stand_ins import MILESTONES, url_of

NUM_CLIENTS = 8
TRIALS_EACH = 20


def print_proxy(server: PostgresServer) -> None:
    if importlib.util.find_spec("grpc") is None:
        print("grpcio is not installed, so Optuna's proxy is not measured")
        return
    direct, proxied = (_trials_per_second(server, uses_proxy=uses_proxy) for uses_proxy in (False, True))
    print(
        f"ask, five values, {MILESTONES} reports and tell, by {NUM_CLIENTS} clients: "
        f"{direct:.1f} trials/s to the server, {proxied:.1f} through Optuna's proxy"
    )


def _trials_per_second(server: PostgresServer, *, uses_proxy: bool) -> float:
    context = multiprocessing.get_context("forkserver")
    ready, go, done = context.Semaphore(0), context.Event(), context.Semaphore(0)
    with Store(server) as folder, socket.socket() as probe:
        url = url_of(folder)
        optuna.create_study(storage=RDBStorage(url), study_name="plain")
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        processes = [start(_serve, url, port)] if uses_proxy else []
        processes += [start(_client, url, port if uses_proxy else None, ready, go, done) for _ in range(NUM_CLIENTS)]
        try:
            for _ in range(NUM_CLIENTS):
                ready.acquire(timeout=120)
            before = time.perf_counter()
            go.set()
            for _ in range(NUM_CLIENTS):
                done.acquire(timeout=300)
            return NUM_CLIENTS * TRIALS_EACH / (time.perf_counter() - before)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _serve(url: str, port: int) -> None:
    run_grpc_proxy_server(open_storage(url), host="127.0.0.1", port=port)


def _client(url: str, port: int | None, ready: Any, go: Any, done: Any) -> None:
    storage: BaseStorage
    if port is None:
        storage = open_storage(url)
    else:
        storage = GrpcStorageProxy(host="127.0.0.1", port=port)
        storage.wait_server_ready(timeout=60)
    study = optuna.load_study(study_name="plain", storage=storage, sampler=optuna.samplers.RandomSampler())
    ready.release()
    go.wait()
    for _ in range(TRIALS_EACH):
        trial = study.ask()
        for name in "abcde":
            trial.suggest_float(name, 0, 1)
        for step in range(MILESTONES):
            trial.report(1.0, step)
        study.tell(trial, 1.0)
    done.release()
