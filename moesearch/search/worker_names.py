"""Names of worker processes, by which any other process can tell whether one of this host still lives."""

from __future__ import annotations

import os
import socket

import psutil

_PID_NAMESPACE_OF_HOSTS = 0xEFFFFFFC
"""A constant of Linux (PROC_PID_INIT_INO): the number of the namespace that every host begins with."""


def host_name() -> str:
    """Names this host, and the container on it: in another one, the same process id is another process."""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:  # no Linux, no containers
        namespace = _PID_NAMESPACE_OF_HOSTS
    return socket.gethostname() + (f"-{namespace}" if namespace != _PID_NAMESPACE_OF_HOSTS else "")


def worker_name(process_id: int | None = None) -> str:
    """Names a process of this host, by default this one, for good: a pid alone may be given to another process."""
    process = psutil.Process(process_id)
    return f"{host_name()}:{process.pid}:{process.create_time():.2f}"


def is_dead_here(worker: str) -> bool:
    """Whether the worker was a process of this host and is no more. Of other hosts nothing is known: False."""
    host, pid, started = worker.rsplit(":", 2)
    if host != host_name():
        return False
    try:
        process = psutil.Process(int(pid))
        return f"{process.create_time():.2f}" != started or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
