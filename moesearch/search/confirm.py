"""Confirmation: the leaders, the baseline and the dense control train again on fresh seeds.

The best of many trials is flattered by luck, so the verdict rests on these runs alone. Before them, each finalist tries
a few learning rates, on a seed apart. All of it is one queue, that grows as runs end and is planned anew by whichever
worker finds it empty, from the store alone.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from moesearch.config.confirm_runs import confirm_milestones
from moesearch.config.resolve import derive_seed, resolve
from moesearch.config.study import MAX_CONFIRM_SEEDS, StudyConfig
from moesearch.config.trial import TrialConfig
from moesearch.results.records import (
    CONFIG,
    FINGERPRINT,
    RATE,
    RATE_PARAM,
    REPLICATE,
    SEED,
    VERDICT,
    confirm_study_name,
)
from moesearch.results.verdict import OpenedTest, Verdict
from moesearch.search.finalists import Finalist, finalists
from moesearch.search.rates import best_doublings, impossible, next_doublings, rate_at
from moesearch.search.storage import store_lock

RATE_REPLICATE = MAX_CONFIRM_SEEDS
"""Index of the seed that learning rates are tried on: none of a confirmation."""
MAX_ATTEMPTS = 3
"""How often one confirmation run may fail before it is left out."""

TestSplit = Callable[[Sequence[str]], OpenedTest | None]
"""Evaluates the models of confirmation runs, by the keys of their checkpoints, on the test split."""


def plan_confirmation(config: StudyConfig, storage: RDBStorage) -> optuna.Study | None:
    """The study of the confirmation runs, with those queued that are due; None if the study file asks for none.

    Any number of workers may call this, at any time after the search.
    """
    if config.confirm.top == 0:
        return None
    with store_lock(storage):
        confirm = optuna.create_study(
            storage=storage,
            study_name=confirm_study_name(config.name),
            sampler=RandomSampler(seed=config.sampler.seed),
            pruner=NopPruner(),
            direction="minimize",
            load_if_exists=True,
        )
    queue_due_runs(config, storage, confirm)
    return confirm


def queue_due_runs(config: StudyConfig, storage: RDBStorage, confirm: optuna.Study) -> bool:
    """Queue the runs that are due by what has ended, each exactly once; returns whether there were any.

    A finalist's confirmation is due once its learning rate is settled, whatever the others do.
    """
    with store_lock(storage):
        search = optuna.load_study(study_name=config.name, storage=storage).get_trials(deepcopy=False)
        planned = _Planned(confirm.get_trials(deepcopy=False))
        due = [run for finalist in finalists(search, config) for run in _due(finalist, planned, config)]
        # Seed by seed, so that a confirmation that is cut short compares its configurations on the same seeds.
        # Rates come first, since more hangs on them.
        for run in sorted(due, key=lambda run: (RATE not in run.system_attrs, run.user_attrs[REPLICATE])):
            confirm.add_trial(run)
    return bool(due)


class _Planned:
    """What is in the queue, and what came of it; runs by (fingerprint as searched, doublings or None, seed index)."""

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        self._alive = {_key(trial): trial for trial in trials if trial.state is not TrialState.FAIL}
        self._failures = Counter(_key(trial) for trial in trials if trial.state is TrialState.FAIL)

    def is_due(self, run: FrozenTrial) -> bool:
        """Whether the run is not there, or has failed and may be tried again."""
        return _key(run) not in self._alive and self._failures[_key(run)] < MAX_ATTEMPTS

    def settled_rate(self, finalist: Finalist) -> float | None:
        """The learning rate that a finalist's confirmation has begun at."""
        runs = (run for (name, step, _), run in self._alive.items() if name == finalist.fingerprint and step is None)
        return next((run.params.get(RATE_PARAM, finalist.config.optim.lr) for run in runs), None)

    def losses(self, finalist: Finalist) -> dict[int, float]:
        """Doublings of the learning rate -> final loss of the runs that ended, infinite for those that came to none."""
        found = impossible(finalist.config)
        for (name, step, _), failures in self._failures.items():
            if name == finalist.fingerprint and step is not None and failures >= MAX_ATTEMPTS:
                found[step] = math.inf
        for (name, step, _), run in self._alive.items():
            if name == finalist.fingerprint and step is not None and run.state.is_finished():
                is_complete = run.state is TrialState.COMPLETE and run.last_step is not None
                found[step] = run.intermediate_values[run.last_step or 0] if is_complete else math.inf
        return found


def _key(run: FrozenTrial) -> tuple[str, int | None, int]:
    rate = run.system_attrs.get(RATE)
    if rate is not None:
        return rate["finalist"], rate["doublings"], 0
    return run.user_attrs[FINGERPRINT], None, run.user_attrs[REPLICATE]


def _due(finalist: Finalist, planned: _Planned, config: StudyConfig) -> list[FrozenTrial]:
    """The runs of one finalist that can be queued by what is known now."""
    rate = planned.settled_rate(finalist)  # so that all its runs are of one configuration, whatever the file says now
    if rate is None and config.confirm.lr_search and not finalist.keeps_its_rate:
        losses = planned.losses(finalist)
        doublings = next_doublings(losses)
        if doublings:
            return [run for step in doublings if planned.is_due(run := _rate_run(finalist, step, config))]
        rate = rate_at(finalist.config, best_doublings(losses))
    runs = [_confirmation(finalist, index, config, rate) for index in range(config.confirm.seeds)]
    return [run for run in runs if planned.is_due(run)]


def _rate_run(finalist: Finalist, doublings: int, config: StudyConfig) -> FrozenTrial:
    """The waiting run of a finalist at one learning rate; all its rates are on one seed, apart from every other one."""
    rate = rate_at(finalist.config, doublings)
    resolved = resolve(
        finalist.config,
        {RATE_PARAM: rate, **_milestones(finalist)},
        seed=derive_seed(config.sampler.seed, f"rate {finalist.fingerprint}", 0),
        order_seed=derive_seed(config.sampler.seed, "rate order", 0),
    )
    record = {"finalist": finalist.fingerprint, "doublings": doublings}
    return _waiting(finalist, resolved, resolved.fingerprint(), RATE_REPLICATE, {RATE: record})


def _confirmation(finalist: Finalist, index: int, config: StudyConfig, rate: float | None) -> FrozenTrial:
    """The waiting run of one configuration on one fresh seed.

    Runs of one index see the same batches in the same order, whatever their configuration: they are compared in pairs.
    """
    resolved = resolve(
        finalist.config,
        {RATE_PARAM: finalist.config.optim.lr if rate is None else rate, **_milestones(finalist)},
        seed=derive_seed(config.sampler.seed, f"confirm {finalist.fingerprint}", index),
        order_seed=derive_seed(config.sampler.seed, "confirm order", index),
    )
    return _waiting(finalist, resolved, finalist.fingerprint, index, {})


def _milestones(finalist: Finalist) -> dict[str, int]:
    return {"budget.milestones": confirm_milestones(finalist.config.budget.milestones)}


def _waiting(
    finalist: Finalist, resolved: TrialConfig, fingerprint: str, replicate: int, records: Mapping[str, Any]
) -> FrozenTrial:
    rate = resolved.optim.lr
    return optuna.create_trial(
        state=TrialState.WAITING,
        params={**finalist.params, RATE_PARAM: rate},
        # Of one kind for all: a control has a rate too where the study searches one, and Optuna refuses to mix kinds.
        distributions={**finalist.distributions, RATE_PARAM: FloatDistribution(rate, rate)},
        user_attrs={FINGERPRINT: fingerprint, REPLICATE: replicate, SEED: resolved.seed},
        system_attrs={CONFIG: resolved.model_dump(mode="json"), **records},
    )


def settle_verdict(config: StudyConfig, storage: RDBStorage, open_test_split: TestSplit) -> Verdict | None:
    """Decide by the confirmation runs, open the test split for the winner once, and record both in the store.

    The split is opened again only if other runs decide now than did at the last opening. None if nothing was confirmed.
    """
    from moesearch.results.confirmation import confirm_runs
    from moesearch.results.study import UNITS, read_study
    from moesearch.results.verdict import decide

    results = read_study(storage, config.name)
    if not results.confirm_trials:
        return None
    unit = UNITS[config.curve]
    verdict = decide(confirm_runs(results), num_searched=results.num_configurations, unit=unit)
    stored = results.stored_verdict
    if stored is not None and stored.test is not None and replace(stored, test=None) == verdict:
        return stored
    if verdict.best is not None:
        keys = [f"{verdict.best.fingerprint}-{index}" for index in range(config.confirm.seeds)]
        verdict = replace(verdict, test=open_test_split(keys))
    study_id = storage.get_study_id_from_name(config.name)
    storage.set_study_system_attr(study_id, VERDICT, verdict.to_json())
    return verdict


def new_opening(losses: Sequence[tuple[float, float]], sample: str) -> OpenedTest:
    """The record of an opening of the test split that took place now."""
    nats, bits_per_byte = zip(*losses, strict=True)
    return OpenedTest(nats, bits_per_byte, opened_at=time.time(), sample=sample)
