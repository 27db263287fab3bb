"""A worker process: ``python -m moesearch.search.process``, started by the supervisor, never by hand.

Its order comes as one line of JSON on standard input, which then stays open: when it closes, because the supervisor
asks for a stop or is gone, the worker gives its trial back and leaves. The order is no argument of the process, where
all users could read it, since a store's URL may hold a password.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from optuna.storages import RDBStorage

from moesearch.cli import EXIT_USER_ERROR
from moesearch.config.study import MAX_LANES, StudyConfig
from moesearch.config.trial import TrialConfig
from moesearch.errors import InputError, TrackingError
from moesearch.model import cost
from moesearch.model.memory import peak_memory_bytes
from moesearch.results.records import (
    ACTIVE_PARAMS,
    BYTES_PER_TOKEN,
    CONTEXT_TOKENS,
    FLOPS_PER_TOKEN,
    TOTAL_PARAMS,
    VOCAB_SIZE,
    confirm_study_name,
)
from moesearch.search.checkpoint_files import checkpoints_at, is_url
from moesearch.search.claims import requeue_stale
from moesearch.search.confirm import plan_confirmation, queue_due_runs
from moesearch.search.disk import DiskCap, losers_first
from moesearch.search.faults import is_disk_full
from moesearch.search.headroom import MemoryCheck, Room, host_room, resident_bytes
from moesearch.search.job import Job
from moesearch.search.leases import Lease, time_account
from moesearch.search.order import ERROR_MARK, EXIT_NO_ROOM, WorkOrder
from moesearch.search.storage import open_storage, store_lock
from moesearch.search.study import join_study, open_claims
from moesearch.search.view import RunView
from moesearch.search.worker import run_worker
from moesearch.search.worker_names import worker_name
from moesearch.tracking.mlflow import MLflowTracker, prepare

if TYPE_CHECKING:
    from moesearch.data.tokens import Texts, TokenData
    from moesearch.training.text_trainer import TextTrainer

EXIT_TIME_IS_UP = 75
"""A worker that did not leave before its lease ended."""

_logger = logging.getLogger(__name__)


def work(order: WorkOrder, stop: threading.Event) -> None:
    """Work off the search, then its confirmation."""
    from moesearch.data.tokens import Texts
    from moesearch.training.host_memory import keep_freed_memory, measured_peak_bytes
    from moesearch.training.text_trainer import TextTrainer

    keep_freed_memory()
    config = order.config
    storage = open_storage(order.storage_url, on_stale=requeue_stale)
    texts = Texts()
    tokens = texts.of(config.base.data)
    trainer = TextTrainer(texts, tokens, num_lanes=num_lanes(order, tokens), device=order.device)
    tracker = _open_tracker(order)
    corpus = (tokens.corpus_name, tokens.corpus_sha256)

    def facts(trial: TrialConfig) -> Mapping[str, int | float]:
        text = texts.of(trial.data).facts
        fitted = trial.fitted(text.bytes_per_token)
        return {
            TOTAL_PARAMS: cost.total_params(fitted, text.vocab_size),
            ACTIVE_PARAMS: cost.active_params(fitted, text.vocab_size),
            FLOPS_PER_TOKEN: cost.flops_per_token(fitted, text.vocab_size),
            VOCAB_SIZE: text.vocab_size,
            CONTEXT_TOKENS: fitted.model.context,
            BYTES_PER_TOKEN: round(text.bytes_per_token, 4),
        }

    memory = memory_check(order, texts, trainer)

    def peak_memory() -> int | None:
        return measured_peak_bytes(order.device)

    with leased_time(config, storage) as lease:
        study, is_time_up = join_study(config, storage), None if lease is None else lease.is_up
        claims = open_claims(config, storage, study, is_search=True, is_time_up=is_time_up)
        view = RunView(tracker, config.name, "search", corpus)
        job = Job(config, claims, view, facts, memory=memory, peak_memory_bytes=peak_memory)
        run_worker(job, trainer, checkpoints_at(order.search_checkpoints, _disk_cap(order, storage)), stop)
        confirm = None if stop.is_set() or not claims.is_over() else plan_confirmation(config, storage)
        if confirm is None:
            return
        if lease is not None:
            lease.open_what_was_kept(config)
        claims = open_claims(config, storage, confirm, is_search=False, is_time_up=is_time_up)
        view = RunView(tracker, config.name, "confirm", corpus)
        job = Job(
            config,
            claims,
            view,
            facts,
            keeps_checkpoints=True,
            memory=memory,
            queue_more=lambda: queue_due_runs(config, storage, confirm),
        )
        run_worker(job, trainer, checkpoints_at(order.confirm_checkpoints, _disk_cap(order, storage)), stop)


def memory_check(order: WorkOrder, texts: Texts, trainer: TextTrainer) -> MemoryCheck:
    """What trials need and what is free, where this worker trains."""
    from moesearch.training.lane_count import free_and_total_bytes

    is_cpu = order.device == "cpu"
    at_start, num_lanes = resident_bytes(), len(trainer.free_lanes)

    def needed_bytes(trial: TrialConfig) -> int:
        text = texts.of(trial.data).facts
        fitted = trial.fitted(text.bytes_per_token)
        return peak_memory_bytes(fitted, text.vocab_size, device_type="cpu" if is_cpu else "cuda")

    def room() -> Room:
        if not is_cpu:
            return Room(*free_and_total_bytes(order.device))
        host, is_idle = host_room(), len(trainer.free_lanes) == num_lanes
        # What earlier trials left to this process is not the host's, but the next one takes it.
        kept = max(0, resident_bytes() - at_start) if is_idle else 0
        return Room(host.free + kept, host.total)

    return MemoryCheck(needed_bytes, room)


def _disk_cap(order: WorkOrder, storage: RDBStorage) -> DiskCap | None:
    gigabytes = order.config.run.max_disk_gb
    if gigabytes is None or is_url(order.search_checkpoints):
        return None
    root = Path(order.search_checkpoints)

    def dispensable() -> list[Path]:
        found = []
        names = {study.study_name: study._study_id for study in storage.get_all_studies()}
        places = {order.config.name: root}
        places[confirm_study_name(order.config.name)] = Path(order.confirm_checkpoints)
        for name, folder in places.items():
            if name in names:
                found += losers_first(folder, storage.get_all_trials(names[name], deepcopy=False))
        return found

    return DiskCap(root, int(gigabytes * 1e9), dispensable)


@contextmanager
def leased_time(config: StudyConfig, storage: RDBStorage) -> Iterator[Lease | None]:
    """The worker's share of the study's hours, held until it leaves; None where they are not limited."""
    account = time_account(config, storage, is_search=True)
    if account is None:
        yield None
        return
    with Lease(account, worker_name(), store_lock(storage), expire=lambda: os._exit(EXIT_TIME_IS_UP)) as lease:
        yield lease


def num_lanes(order: WorkOrder, tokens: TokenData) -> int:
    """How many trials this worker trains side by side."""
    lanes = order.config.run.lanes
    if lanes != "auto":
        return lanes
    if order.device == "cpu":
        return 1  # there, one process per core with one lane each is faster
    from moesearch.training.lane_count import measured_num_lanes

    max_lanes = min(MAX_LANES, order.config.num_trials)
    return measured_num_lanes(order.config.base, tokens, order.device, max_lanes=max_lanes)


def _open_tracker(order: WorkOrder) -> MLflowTracker | None:
    if order.tracking_uri is None:
        return None
    try:
        prepare(order.tracking_uri)
        return MLflowTracker(order.tracking_uri, order.config.name, order.artifacts)
    except TrackingError as error:
        _logger.warning("MLflow is left out, training goes on: %s", error)
        return None


def stop_at_end_of_input(stop: Callable[[], None]) -> None:
    """Call ``stop`` when standard input closes; from a thread, which reads the descriptor itself.

    A thread that waits inside ``sys.stdin`` would hold its lock when the interpreter ends.
    """

    def wait() -> None:
        while os.read(0, 1024):
            pass
        stop()

    threading.Thread(target=wait, name="stop", daemon=True).start()


def main(work: Callable[[WorkOrder, threading.Event], None] = work) -> int:
    """Read the order, do the work, and return the exit code."""
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", level=logging.WARNING)
    order = WorkOrder.from_json(_read_line())
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor decides
    stop_at_end_of_input(stop.set)
    try:
        work(order, stop)
    except InputError as error:
        sys.stderr.write(f"{ERROR_MARK}{error}\n")
        return EXIT_USER_ERROR
    except Exception as error:
        if not is_disk_full(error):
            raise
        _logger.warning("no room on the disk: %s", error)
        return EXIT_NO_ROOM
    return 0


def leave(code: int) -> NoReturn:
    """End at once: all is in the store and on disk, and taking torch and MLflow down in order costs half a second."""
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)


def _read_line() -> str:
    # Unbuffered: what follows the line is for the thread that waits for the end.
    line = bytearray()
    while (byte := os.read(0, 1)) not in (b"\n", b""):
        line += byte
    return line.decode()


if __name__ == "__main__":
    leave(main())
