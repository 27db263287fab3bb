"""Signs of life: a trial whose worker gives none for long is taken from it."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import optuna

from moesearch.search.memory import Store


class Heartbeat:
    """Signs of life for the trials that this process works on, from a thread of its own."""

    def __init__(self, storage: Store) -> None:
        self._storage = storage
        self._trial_ids: frozenset[int] = frozenset()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def watch(self, trial: optuna.Trial) -> None:
        self._trial_ids |= {trial._trial_id}

    def forget(self, trial: optuna.Trial) -> None:
        self._trial_ids -= {trial._trial_id}

    def _run(self) -> None:
        while not self._stop.wait(self._storage.get_heartbeat_interval()):
            for trial_id in self._trial_ids:
                try:
                    self._storage.record_heartbeat(trial_id)
                except (optuna.exceptions.OptunaError, KeyError):
                    # A store that is briefly away costs a beat, not the trial; the next write of the loop will say so.
                    continue
        self._storage.remove_session()
