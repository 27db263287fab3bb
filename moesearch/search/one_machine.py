"""A store in a SQLite file is for one machine: its locks do not hold over a network, and two machines would ruin it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.storages import RDBStorage

from moesearch.errors import InputError
from moesearch.results.records import SESSION_PREFIX, WORKER
from moesearch.search.worker_names import host_name

LIVE_SECONDS = 60
"""A sign of life that is older is none: workers give one every 30 seconds."""

_RUNNING = """
SELECT attrs.value_json, strftime('%s', 'now') - strftime('%s', beats.heartbeat)
FROM trials
JOIN trial_heartbeats AS beats ON beats.trial_id = trials.trial_id
JOIN trial_user_attributes AS attrs ON attrs.trial_id = trials.trial_id AND attrs.key = :worker
WHERE trials.state = 'RUNNING'
"""


def machine_id() -> str:
    """Names the kernel that runs this process, until it is started anew: one for all containers of a machine.

    Where there is no such name, the host's does, which a container may have for itself.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


def refuse_other_machines(storage: RDBStorage) -> None:
    """See that no other machine works in a SQLite file. Only its live signs count, so that nobody is locked out.

    A machine that was renamed is still the same one, and one that was killed stops counting after LIVE_SECONDS.

    Raises:
        InputError: another machine gave a sign of life just now.
    """
    if storage.engine.dialect.name != "sqlite":
        return
    ages = dict(_signs_of_others(storage))
    if not ages:
        return
    host = min(ages, key=lambda name: ages[name])
    path = storage.engine.url.database
    raise InputError(
        f"{path}: is a SQLite file, which only one machine can work in, and {host} gave a sign of life "
        f"{ages[host]:.0f} s ago. Two ways on: for several machines, give all of them one server, "
        f"`--storage postgresql+psycopg://...` (docs/several-machines.md); or stop {host}, and if it is gone already, "
        f"give this command again in {LIVE_SECONDS - ages[host]:.0f} s"
    )


def _signs_of_others(storage: RDBStorage) -> Iterator[tuple[str, float]]:
    """Other machines' hosts, each with the age in seconds of a sign of life that it gave in this store."""
    sessions = list(_sessions(storage))
    here = {host_name(), *(_host(session) for session in sessions if session.get("machine") == machine_id())}
    signs = [
        # A command's workers give none before their first trial.
        *((_host(session), time.time() - session["started"]) for session in sessions if session["ended"] is None),
        *_heartbeats(storage),
    ]
    for host, age in sorted(signs, key=lambda sign: -sign[1]):
        if host not in here and 0 <= age < LIVE_SECONDS:
            yield host, age


def _sessions(storage: RDBStorage) -> Iterator[Mapping[str, Any]]:
    for study in storage.get_all_studies():
        for key, value in storage.get_study_system_attrs(study._study_id).items():
            if key.startswith(SESSION_PREFIX) and "process" in value:  # of an early version: long over
                yield value


def _host(session: Mapping[str, Any]) -> str:
    return str(session["process"]).rsplit(":", 2)[0]


def _heartbeats(storage: RDBStorage) -> list[tuple[str, float]]:
    """Host and age of the last sign of life of every running trial."""
    with storage.engine.connect() as connection:
        rows = connection.execute(sqlalchemy.text(_RUNNING), {"worker": WORKER}).all()
    workers = ((json.loads(worker), float(age)) for worker, age in rows)
    return [(worker.rsplit(":", 2)[0], age) for worker, age in workers if worker]
