"""Workers on a Ray cluster, an actor per GPU or per group of cores. The only module that imports Ray.

Where actors run, starting them again when they die, and moving them when a node is lost is Ray's part. Trials, and what
became of them, are in the store, so an actor that starts again just asks for the next one. Actors belong to this
command and end with it.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from moesearch.config.study import RunConfig, StudyConfig
from moesearch.errors import InputError, MoesearchError
from moesearch.search.crew import HEALTHY_SECONDS, MAX_RESTARTS
from moesearch.search.order import WorkOrder
from moesearch.search.process import work as work_off

POLL_SECONDS = 0.1
GROW_SECONDS = 1.0
LEAVE_SECONDS = 15.0
"""Once a worker has left, since nothing is left to do for anyone, the others have so long to find the same."""

Work = Callable[[WorkOrder, threading.Event], None]

# Read by Ray; set unless the caller's environment says otherwise.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Accelerators that a worker was not given stay hidden from it, and Ray does not warn that this will change.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
}
# With clusters off, as on a desktop, Ray listens on the loopback interface instead of on all of them.
_ENVIRONMENT_OF_ONE_HOST = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@dataclass(frozen=True)
class Share:
    """What each worker has of the cluster, and how many of them there are room for now."""

    device: Literal["cpu", "cuda"]
    num_workers: int
    cores: int
    """And threads, of each worker."""
    gpus: float
    """Of each worker; a part of one where more workers are asked for than there are GPUs."""

    def __str__(self) -> str:
        where = f"{self.gpus:g} GPU(s)" if self.gpus else f"CPU, {self.cores} thread(s)"
        return f"{self.num_workers} worker(s) on Ray, {where} each"


@contextmanager
def joined_cluster() -> Iterator[None]:
    """The cluster at RAY_ADDRESS, or a Ray of this host alone, which ends with the context.

    Raises:
        InputError: Ray is not installed, or no cluster answers there.
    """
    address = os.environ.get("RAY_ADDRESS", "").strip()
    for name, value in {**_ENVIRONMENT, **({} if address else _ENVIRONMENT_OF_ONE_HOST)}.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise InputError("cluster ray: Ray is not installed; `pip install moesearch[ray]` brings it") from None
    try:
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,  # what workers say goes to their logs, not into the live display
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"cluster ray: RAY_ADDRESS={address or '(unset)'}: {reason}; see what `ray status` says there, "
            "or leave RAY_ADDRESS unset to start Ray on this machine"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def cluster_share(config: StudyConfig) -> Share:
    """What each worker of a study has of the cluster as it is now; raises what `share` raises."""
    return share(config.run, [node["Resources"] for node in _nodes()], num_runs=config.num_trials)


def share(run: RunConfig, nodes: Sequence[Mapping[str, float]], *, num_runs: int) -> Share:
    """Divide the resources of nodes: a worker per GPU, else one per core, and never more than there are runs.

    Raises:
        InputError: a GPU is asked for, and no node has one.
    """
    cores, gpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    is_cuda = run.device != "cpu" and gpus > 0
    if run.device.startswith("cuda") and not is_cuda:
        raise InputError(f"device {run.device}: no node of the Ray cluster has a GPU; see what `ray status` says")
    units = int(gpus if is_cuda else cores)
    num_workers = max(1, min(units, num_runs)) if run.workers == "auto" else run.workers
    if is_cuda:
        per_worker = min(1.0, int(10_000 * gpus / num_workers) / 10_000)  # Ray counts in ten-thousandths
        # All GPUs of a node can be had at once.
        fit = min(node.get("CPU", 0.0) / node["GPU"] for node in nodes if node.get("GPU"))
        return Share("cuda", num_workers, max(1, int(fit * per_worker)) if fit >= 1 else int(fit), per_worker)
    largest = max((int(node.get("CPU", 0.0)) for node in nodes), default=1)
    return Share("cpu", num_workers, max(1, min(int(cores) // num_workers, largest)), 0.0)


def refuse_sqlite_on_other_hosts(storage_url: str) -> None:
    """The locks that SQLite rests on do not reach over a network.

    Raises:
        InputError: the store is SQLite's, and the cluster has another host.
    """
    others = sorted({node["NodeManagerHostname"] for node in _nodes()} - {socket.gethostname()})
    if storage_url.startswith("sqlite") and others:
        raise InputError(_no_sqlite(", ".join(others)))


def _no_sqlite(hosts: str) -> str:
    return (
        f"cluster ray: the store is SQLite, which {hosts} cannot share with {socket.gethostname()}, since its locks do "
        "not reach over a network; give all of them a server: --storage postgresql+psycopg://user@host/database"
    )


def _nodes() -> list[dict[str, Any]]:
    return [node for node in _ray().nodes() if node["Alive"]]


def _ray() -> Any:
    """Ray, once it was joined; its own types say too little to be of use."""
    import ray

    return ray


class _Worker:
    """The actor. One of its threads works, another hears the stop."""

    def __init__(self, work: Work, home: str) -> None:
        self._work = work
        self._home = home
        self._stop = threading.Event()

    def run(self, order_json: str, log: str) -> str | None:
        """Work until nothing is left to do, or `stop`; returns a person's mistake, if that is what it came upon."""
        order = WorkOrder.from_json(order_json)
        if order.storage_url.startswith("sqlite") and socket.gethostname() != self._home:
            return _no_sqlite(socket.gethostname())
        handler = logging.FileHandler(f"{log}-{socket.gethostname()}-{os.getpid()}.log", delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
        handler.setLevel(logging.WARNING)
        logger = logging.getLogger("moesearch")
        logger.addHandler(handler)
        try:
            order.logs.mkdir(parents=True, exist_ok=True)
            self._work(order, self._stop)
        except InputError as error:
            return str(error)
        finally:
            logger.removeHandler(handler)
            handler.close()
        return None

    def stop(self) -> None:
        self._stop.set()


@dataclass
class _Slot:
    """One worker, through all its restarts; those that Ray makes are not seen here."""

    actor: Any = None
    """Its handle; None once it is dismissed."""
    result: Any = None
    """The reference to what its work will have come to; None once that is known."""
    started: float = 0.0
    num_restarts: int = 0
    restart_at: float | None = None


class RayCrew:
    """`crew.Workers` as actors. More are hired as nodes join, up to a worker per run, unless their number was given."""

    def __init__(self, order: WorkOrder, shared: Share, *, work: Work = work_off) -> None:
        self._order = replace(order, device=shared.device)
        self._share = shared
        self._work = work
        self._slots: list[_Slot] = []
        self._grown = 0.0
        self._first_left: float | None = None
        self._kill_at: float | None = None
        self._log = order.logs / f"ray-{socket.gethostname()}-{os.getpid()}"

    def __enter__(self) -> Self:
        self._order.logs.mkdir(parents=True, exist_ok=True)
        self._grow()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def __str__(self) -> str:
        return str(self._share)

    @property
    def num_workers(self) -> int:
        return self._share.num_workers

    @property
    def device(self) -> str:
        return self._share.device

    # Ray tells neither why an actor ended nor where: the two below are for the processes of one host, whose trials over
    # their time end by their workers alone.
    innocent: frozenset[str] = frozenset()
    lacks_room = False

    def end(self, _worker: str) -> bool:
        return False

    @property
    def is_at_work(self) -> bool:
        return any(slot.result is not None or slot.restart_at is not None for slot in self._slots)

    @property
    def is_stopping(self) -> bool:
        return self._kill_at is not None

    @property
    def notes(self) -> tuple[Path, ...]:
        return tuple(sorted(self._log.parent.glob(f"{self._log.name}-*.log")))

    def wait(self) -> None:
        time.sleep(POLL_SECONDS)
        now = time.monotonic()
        if self._kill_at is not None and now >= self._kill_at:
            self.kill()
        elif self._first_left is not None and now >= self._first_left + LEAVE_SECONDS:
            self._dismiss()  # those that wait for a node of which none comes, above all
        elif self._kill_at is None and self._first_left is None:
            self._grow()
        for slot in self._slots:
            if slot.restart_at is not None and now >= slot.restart_at:
                self._start(slot)

    def stop(self, seconds: float) -> None:
        self._kill_at = time.monotonic() + seconds
        self._ask_to_leave()

    def kill(self) -> None:
        self._kill_at = time.monotonic()
        self._dismiss()

    def bury_the_dead(self) -> bool:
        ray, has_died = _ray(), False
        for slot in self._slots:
            if slot.result is None or not ray.wait([slot.result], timeout=0)[0]:
                continue
            result, slot.result = slot.result, None
            try:
                mistake: str | None = ray.get(result)
            except ray.exceptions.RayError as error:
                has_died = True
                if not self.is_stopping:
                    self._plan_restart(slot, error)
                continue
            if mistake is not None:
                raise InputError(mistake)
            if self._first_left is None:
                self._first_left = time.monotonic()
                self._ask_to_leave()
        return has_died

    def _grow(self) -> None:
        """Hire as many as there is room for now."""
        if time.monotonic() - self._grown < GROW_SECONDS and self._slots:
            return
        self._grown = time.monotonic()
        self._share = replace(self._share, num_workers=max(self._share.num_workers, self._room()))
        while len(self._slots) < self._share.num_workers:
            slot = _Slot()
            self._slots.append(slot)
            self._start(slot)

    def _room(self) -> int:
        if self._order.config.run.workers != "auto":
            return 0
        return cluster_share(self._order.config).num_workers

    def _start(self, slot: _Slot) -> None:
        actor_class = (
            _ray()
            .remote(_Worker)
            .options(
                num_cpus=self._share.cores,
                num_gpus=self._share.gpus,
                scheduling_strategy="SPREAD",
                max_concurrency=2,
                max_restarts=MAX_RESTARTS,
                max_task_retries=-1,  # the work goes on in the actor that was started again
            )
        )
        slot.actor = actor_class.remote(self._work, socket.gethostname())
        slot.result = slot.actor.run.remote(self._order.to_json(), str(self._log))
        slot.started, slot.restart_at = time.monotonic(), None

    def _plan_restart(self, slot: _Slot, error: Exception) -> None:
        """Of an actor that raised, or that Ray gave up."""
        now = time.monotonic()
        if slot.actor is not None:
            _ray().kill(slot.actor)
        if now - slot.started >= HEALTHY_SECONDS:
            slot.num_restarts = 0
        if slot.num_restarts >= MAX_RESTARTS:
            raise MoesearchError(f"a worker on Ray died {MAX_RESTARTS + 1} times in a row:\n{str(error).strip()}")
        slot.restart_at = now + 0.5 * 2**slot.num_restarts
        slot.num_restarts += 1

    def _ask_to_leave(self) -> None:
        for slot in self._slots:
            slot.restart_at = None
            if slot.actor is not None and slot.result is not None:
                slot.actor.stop.remote()

    def _dismiss(self) -> None:
        ray = _ray()
        for slot in self._slots:
            if slot.actor is not None:
                with suppress(ray.exceptions.RayError):
                    ray.kill(slot.actor)
            slot.actor = slot.result = slot.restart_at = None
