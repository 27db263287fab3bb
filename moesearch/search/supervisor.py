"""Runs a study on this machine: starts workers, sees dead ones, stops them in order, and settles the verdict.

Everything that matters is in the store, so any number of supervisors may work on one study, and any may be killed.
"""

from __future__ import annotations

import json
import logging
import platform
import signal
import socket
import subprocess  # nosec B404: our own commands, no shell
import sys
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import FrameType

import optuna
from optuna.storages import RDBStorage

from moesearch.config.study import StudyConfig
from moesearch.errors import InputError, LostTrialError, MoesearchError, TrackingError
from moesearch.results import records
from moesearch.results.records import SESSION_PREFIX, VERDICT_MAKER, WORKER, confirm_study_name
from moesearch.results.verdict import OpenedTest, Verdict
from moesearch.search.assignments import finish
from moesearch.search.checkpoint_files import checkpoints_at
from moesearch.search.claims import Claims, requeue_stale
from moesearch.search.confirm import new_opening, plan_confirmation, settle_verdict
from moesearch.search.crew import Workers
from moesearch.search.faults import is_disk_full
from moesearch.search.limits import time_out_reason
from moesearch.search.machine import Placement
from moesearch.search.one_machine import machine_id, refuse_other_machines
from moesearch.search.order import WorkOrder
from moesearch.search.progress import Progress, hopeless
from moesearch.search.stopped import end_all_stopped
from moesearch.search.storage import closing_store, open_storage, store_lock
from moesearch.search.study import open_claims, open_study
from moesearch.search.worker_names import host_name, worker_name
from moesearch.tracking.mlflow import MLflowTracker, prepare

SHOW_SECONDS = 1.0
STOP_SECONDS = 10.0
"""How long workers have to checkpoint and leave."""
HANG_SECONDS = 10.0
"""How far over its time a trial must be before its worker is taken to hang: by itself it would have ended the trial."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a run of the command ended."""

    progress: Progress
    verdict: Verdict | None
    """None if nothing was confirmed."""
    seconds: float
    had_work: bool
    """False if all that the study file asks for had been done before."""
    search_end: str
    """What ended the search before its number of trials, as a sentence; empty where nothing did."""
    notes: tuple[Path, ...]
    """Logs in which workers wrote a warning or an error."""


def run_study(
    order: WorkOrder,
    workers: Workers,
    *,
    fresh: bool,
    command: str,
    show: Callable[[Progress], None],
    note: Callable[[str], None],
) -> Outcome:
    """Bring a study to the end that its file asks for, from wherever it stands.

    Args:
        order: what the workers are told.
        workers: those who work it off; they are started if there is work.
        fresh: delete what the store holds of the study first.
        command: the command line, for the record.
        show: called about once a second with the state of the study.
        note: called with a sentence about what this command waits for.

    Raises:
        InputError: a person's mistake, here or in a worker.
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM; every trial is back in the queue.
    """
    started = time.monotonic()
    with closing_store(open_storage(order.storage_url, on_stale=requeue_stale)) as storage:
        refuse_other_machines(storage)
        study = open_study(order.config, storage, fresh=fresh, checkpoints=checkpoints_at(order.search_checkpoints))
        _check_corpus(order.config, storage)
        if fresh:
            _forget_runs(order)
        supervisor = _Supervisor(order, storage, study, show, note)
        supervisor.recover()
        had_work = supervisor.has_work()
        if had_work:
            with _session(storage, order, workers, command):
                supervisor.run(workers)
        verdict = supervisor.settle()
        return Outcome(
            supervisor.progress(),
            verdict,
            time.monotonic() - started,
            had_work,
            supervisor.search.why_over(),
            supervisor.notes,
        )


class _Supervisor:
    def __init__(
        self,
        order: WorkOrder,
        storage: RDBStorage,
        study: optuna.Study,
        show: Callable[[Progress], None],
        note: Callable[[str], None],
    ) -> None:
        self.order = order
        self.config = order.config
        self.storage = storage
        self.show = show
        self.note = note
        self.started = time.monotonic()
        self.search = open_claims(self.config, storage, study, is_search=True)
        self.confirm: Claims | None = None
        self.notes: tuple[Path, ...] = ()

    def _confirm(self) -> Claims | None:
        """The confirmation, once it was planned."""
        if self.confirm is None:
            with suppress(KeyError):
                study = optuna.load_study(study_name=confirm_study_name(self.config.name), storage=self.storage)
                self.confirm = open_claims(self.config, self.storage, study, is_search=False)
        return self.confirm

    def _claimed(self) -> Iterator[Claims]:
        yield self.search
        confirm = self._confirm()
        if confirm is not None:
            yield confirm

    def recover(self, innocent: Collection[str] = ()) -> None:
        """Put trials of dead workers back into the queue."""
        for claims in self._claimed():
            claims.recover(innocent=innocent)

    def _end_hung(self, workers: Workers) -> None:
        """End trials that are far over their time with the workers that do not end them, which so must hang."""
        seconds = self.config.run.max_trial_seconds
        if seconds is None:
            return
        for claims in self._claimed():
            for trial in claims.overdue(seconds + HANG_SECONDS):
                if workers.end(trial.user_attrs[WORKER]):
                    with suppress(LostTrialError), claims.lock:
                        hung = optuna.Trial(claims.study, trial._trial_id)
                        reason = f"{time_out_reason(self.config.run)}, and its worker did not react"
                        finish(claims.study, hung, "timed_out", reason=reason)
                    self.recover(workers.innocent)

    def has_work(self) -> bool:
        if not self.search.is_over():
            return True
        self._end_stopped()
        confirm = plan_confirmation(self.config, self.storage)
        return confirm is not None and not open_claims(self.config, self.storage, confirm, is_search=False).is_over()

    def _end_stopped(self) -> None:
        """End what is stopped at a rung, once the search is over; a worker does it, unless it is killed first."""
        if self.search.is_over() or hopeless(self.search.study.get_trials(deepcopy=False)):
            end_all_stopped(self.search, checkpoints_at(self.order.search_checkpoints))

    def progress(self) -> Progress:
        confirm = self._confirm()
        return Progress(
            self.config,
            tuple(self.search.study.get_trials(deepcopy=False)),
            () if confirm is None else tuple(confirm.study.get_trials(deepcopy=False)),
            time.monotonic() - self.started,
        )

    def run(self, workers: Workers) -> None:
        """Keep workers at work until they leave of their own accord."""
        with workers, _signals(workers):
            shown, is_behind = 0.0, False
            while workers.is_at_work:
                is_behind |= workers.bury_the_dead()
                if time.monotonic() - shown >= SHOW_SECONDS:
                    shown = time.monotonic()
                    # Apart, since a full disk shall not keep from being shown that it is full.
                    with _unless_disk_is_full():
                        self.show(replace(self.progress(), lacks_room=workers.lacks_room))
                    with _unless_disk_is_full():
                        self._end_hung(workers)
                        if is_behind:
                            self.recover(workers.innocent)
                            is_behind = False
                workers.wait()
            self.notes = workers.notes
            if workers.is_stopping:
                with _unless_disk_is_full():
                    self.recover(workers.innocent)
                raise KeyboardInterrupt
        self._end_stopped()
        reason = hopeless(self.search.study.get_trials(deepcopy=False))
        if reason is not None:
            raise InputError(f"study {self.config.name} stops: {reason}")

    def settle(self) -> Verdict | None:
        """The verdict on the confirmation runs. One supervisor at a time, so that the test split is opened once.

        Of the models that were confirmed, only the winner's stay on disk.
        """
        study_id = self.storage.get_study_id_from_name(self.config.name)
        self.storage.set_study_system_attr(study_id, records.SEARCH_END, self.search.why_over())

        def say_who_makes_it() -> None:
            maker = self.storage.get_study_system_attrs(study_id).get(VERDICT_MAKER, "another command")
            self.note(f"{self.config.name}: waiting for the verdict that {maker} makes")

        with store_lock(self.storage, "verdict", say_who_makes_it):
            self.storage.set_study_system_attr(study_id, VERDICT_MAKER, host_name())
            verdict = settle_verdict(self.config, self.storage, lambda keys: open_test_split(self.order, keys))
        if verdict is not None and verdict.best is not None:
            models = checkpoints_at(self.order.confirm_checkpoints)
            for key in models.list():
                if not key.startswith(f"{verdict.best.fingerprint}-"):
                    models.delete(key)
        return verdict


def _forget_runs(order: WorkOrder) -> None:
    """Clear MLflow's view of a study that was deleted."""
    if order.tracking_uri is None:
        return
    try:
        prepare(order.tracking_uri)
        MLflowTracker(order.tracking_uri, order.config.name, order.artifacts).delete_runs()
    except TrackingError as error:
        _logger.warning("MLflow still shows the deleted study: %s", error)


def _check_corpus(config: StudyConfig, storage: RDBStorage) -> None:
    """Record the text that the study is about, or see that it is still the same."""
    from moesearch.data.corpora import load_corpus

    facts = load_corpus(config.base.data).facts
    if config.base.data.tokenizer == "char" and config.base.data.context_bytes is None:
        facts.check_length(config.base.model.context)
    study_id = storage.get_study_id_from_name(config.name)
    stored = storage.get_study_system_attrs(study_id).get(records.CORPUS_FACTS)
    if stored is not None and stored["sha256"] != facts.sha256:
        raise InputError(
            f"study {config.name} began on another text (sha256 {stored['sha256'][:12]}…, {facts.name} now has "
            f"{facts.sha256[:12]}…); bring that text back, give the file a new `name:`, or start again with --fresh"
        )
    storage.set_study_system_attr(
        study_id,
        records.CORPUS_FACTS,
        {
            "name": facts.name,
            "sha256": facts.sha256,
            "characters": facts.num_characters,
            "distinct_characters": facts.vocab_size,
            "train_bytes": facts.train_bytes,
            "val_bytes": facts.val_bytes,
            "test_bytes": facts.test_bytes,
        },
    )


@contextmanager
def _session(storage: RDBStorage, order: WorkOrder, workers: Workers, command: str) -> Iterator[None]:
    """Record who ran the study, on what and when; one that was killed has no end."""
    study_id = storage.get_study_id_from_name(order.config.name)
    key = f"{SESSION_PREFIX}{uuid.uuid4().hex[:12]}"
    facts = {
        "started": time.time(),
        "ended": None,
        "workers": workers.num_workers,
        "device": workers.device,
        "host": socket.gethostname(),
        "process": worker_name(),
        "machine": machine_id(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "optuna", "mlflow", "tokenizers")},
        },
        "command": command,
    }
    storage.set_study_system_attr(study_id, key, facts)
    try:
        yield
    finally:
        with _unless_disk_is_full():
            storage.set_study_system_attr(study_id, key, {**facts, "ended": time.time()})


@contextmanager
def _unless_disk_is_full() -> Iterator[None]:
    """Leave undone what a full disk prevents, and can be done later; that workers lack room is shown anyhow."""
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        _logger.info("no room on the disk: %s", error)


@contextmanager
def _signals(workers: Workers) -> Iterator[None]:
    """Ctrl-C or SIGTERM once lets the workers checkpoint and leave; twice ends them at once."""

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if workers.is_stopping:
            workers.kill()
        else:
            workers.stop(STOP_SECONDS)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, on_signal) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def open_test_split(order: WorkOrder, keys: Sequence[str]) -> OpenedTest | None:
    """Evaluate confirmation models on the test split, in a process of its own; None where none is on this machine."""
    request = {"place": order.confirm_checkpoints, "keys": list(keys), "device": order.device}
    done = subprocess.run(
        [sys.executable, "-m", "moesearch.search.sealed"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        # One thread, as the models were trained: beside another busy program two would wait for each other.
        env=Placement("cpu", (), 1, threads=1).environment(0),
    )
    if done.returncode:
        raise MoesearchError(f"the test split could not be evaluated:\n{done.stderr.strip()}")
    seen = json.loads(done.stdout)
    return new_opening(seen["losses"], seen["sample"]) if seen["losses"] else None
