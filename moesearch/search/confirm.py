"""Confirmation: the leaders and the baseline train again on fresh seeds.

The best of many trials is flattered by luck, so the verdict rests on these runs alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from moesearch.config.resolve import derive_seed, resolve
from moesearch.config.study import StudyConfig
from moesearch.results.continuations import is_finished
from moesearch.results.records import CONFIG, FINGERPRINT, REPLICATE, SEED, VERDICT, confirm_study_name
from moesearch.results.verdict import OpenedTest, Verdict
from moesearch.search.storage import store_lock

MAX_ATTEMPTS = 3
"""How often one confirmation run may fail before it is left out."""

TestSplit = Callable[[Sequence[str]], OpenedTest | None]
"""Evaluates the models of confirmation runs, by the keys of their checkpoints, on the test split."""


@dataclass(frozen=True)
class Finalist:
    """A configuration that is trained again."""

    fingerprint: str
    params: Mapping[str, Any]
    distributions: Mapping[str, optuna.distributions.BaseDistribution]


def plan_confirmation(config: StudyConfig, storage: RDBStorage) -> optuna.Study | None:
    """Queue what is missing of the confirmation runs, each exactly once; None if the study file asks for none.

    Any number of workers may call this, at any time after the search.
    """
    if config.confirm.top == 0:
        return None
    with store_lock(storage):
        search = optuna.load_study(study_name=config.name, storage=storage).get_trials(deepcopy=False)
        confirm = optuna.create_study(
            storage=storage,
            study_name=confirm_study_name(config.name),
            sampler=RandomSampler(seed=config.sampler.seed),
            pruner=NopPruner(),
            direction="minimize",
            load_if_exists=True,
        )
        planned = confirm.get_trials(deepcopy=False)
        failures = Counter(_key(trial) for trial in planned if trial.state is TrialState.FAIL)
        alive = {_key(trial) for trial in planned if trial.state is not TrialState.FAIL}
        # Seed by seed, so that a confirmation that is cut short still compares all of them on the same seeds.
        for index in range(config.confirm.seeds):
            for finalist in finalists(search, config):
                key = (finalist.fingerprint, index)
                if key not in alive and failures[key] < MAX_ATTEMPTS:
                    confirm.add_trial(_confirmation(finalist, index, config))
    return confirm


def finalists(trials: Sequence[FrozenTrial], config: StudyConfig) -> list[Finalist]:
    """The best configurations by the mean over their seeds, and the baseline: the first one of ``enqueue``."""
    values: dict[str, list[float]] = {}
    first: dict[str, FrozenTrial] = {}
    for trial in trials:
        if is_finished(trial):
            first.setdefault(trial.user_attrs[FINGERPRINT], trial)
            if trial.state is TrialState.COMPLETE and trial.value is not None:
                values.setdefault(trial.user_attrs[FINGERPRINT], []).append(trial.value)
    means = {fingerprint: sum(losses) / len(losses) for fingerprint, losses in values.items()}
    chosen = sorted(means, key=means.__getitem__)[: config.confirm.top]
    baseline = next((trial for trial in first.values() if _is_baseline(trial, config)), None)
    if baseline is not None and baseline.user_attrs[FINGERPRINT] not in chosen:
        chosen.append(baseline.user_attrs[FINGERPRINT])
    return [Finalist(key, first[key].params, first[key].distributions) for key in chosen]


def _is_baseline(trial: FrozenTrial, config: StudyConfig) -> bool:
    queued = config.enqueue[0] if config.enqueue else None
    return queued is not None and trial.system_attrs.get("fixed_params") == queued


def _confirmation(finalist: Finalist, index: int, config: StudyConfig) -> FrozenTrial:
    """The waiting trial of one configuration on one fresh seed.

    Runs of one index see the same batches in the same order, whatever their configuration: they are compared in pairs.
    """
    study_seed = config.sampler.seed
    seed = derive_seed(study_seed, f"confirm {finalist.fingerprint}", index)
    order_seed = derive_seed(study_seed, "confirm order", index)
    resolved = resolve(config.base, finalist.params, seed=seed, order_seed=order_seed)
    return optuna.create_trial(
        state=TrialState.WAITING,
        params=dict(finalist.params),
        distributions=dict(finalist.distributions),
        user_attrs={FINGERPRINT: finalist.fingerprint, REPLICATE: index, SEED: seed},
        system_attrs={CONFIG: resolved.model_dump(mode="json")},
    )


def _key(trial: FrozenTrial) -> tuple[str, int]:
    return trial.user_attrs[FINGERPRINT], trial.user_attrs[REPLICATE]


def settle_verdict(config: StudyConfig, storage: RDBStorage, open_test_split: TestSplit) -> Verdict | None:
    """Decide by the confirmation runs, open the test split for the winner once, and record both in the store.

    The split is opened again only if other runs decide now than did at the last opening. None if nothing was confirmed.
    """
    from moesearch.results.study import UNITS, confirm_runs, read_study
    from moesearch.results.verdict import decide

    results = read_study(storage, config.name)
    if not results.confirm_trials:
        return None
    unit = UNITS[config.objective]
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


def new_opening(losses: Sequence[float], bits_per_byte: Sequence[float]) -> OpenedTest:
    """The record of an opening of the test split that took place now."""
    return OpenedTest(tuple(losses), tuple(bits_per_byte), opened_at=time.time())
