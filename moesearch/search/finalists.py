"""Who is trained again before the verdict: the search's leaders, the baseline and the dense control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial

from moesearch.config.dense import dense_control
from moesearch.config.resolve import resolve
from moesearch.config.study import StudyConfig
from moesearch.config.trial import TrialConfig
from moesearch.results.front import front, objective_means
from moesearch.results.records import CONTROL, FINGERPRINT, RATE_PARAM
from moesearch.results.standing import first_value, is_finished


@dataclass(frozen=True)
class Finalist:
    """A configuration that is trained again. Its seeds say nothing; each run gets its own."""

    fingerprint: str
    """As it was searched, whatever learning rate it is confirmed at."""
    config: TrialConfig
    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]

    @property
    def keeps_its_rate(self) -> bool:
        """Whether the search has chosen its learning rate, so that none is searched now."""
        return RATE_PARAM in self.params


def finalists(trials: Sequence[FrozenTrial], config: StudyConfig) -> list[Finalist]:
    """The best configurations by the mean over their seeds, the first one of ``enqueue``, and the control.

    The control has the active FLOPs of the best one.
    """
    values: dict[str, list[float]] = {}
    first: dict[str, FrozenTrial] = {}
    for trial in trials:
        if is_finished(trial):
            first.setdefault(trial.user_attrs[FINGERPRINT], trial)
            if (value := first_value(trial)) is not None:
                values.setdefault(trial.user_attrs[FINGERPRINT], []).append(value)
    means = {fingerprint: sum(losses) / len(losses) for fingerprint, losses in values.items()}
    if len(config.all_objectives) > 1:
        # What another one beats in every objective is no answer, however well it does in the first.
        means = {name: means[name] for name in front(objective_means(trials), config.all_objectives)}
    chosen = sorted(means, key=means.__getitem__)[: config.confirm.top]
    baseline = next((trial for trial in first.values() if _is_baseline(trial, config)), None)
    if baseline is not None and baseline.user_attrs[FINGERPRINT] not in chosen:
        chosen.append(baseline.user_attrs[FINGERPRINT])
    found = [_searched(first[fingerprint], config) for fingerprint in chosen]
    control = _control(found[0], config) if means else None
    return found if control is None else [*found, control]


def _searched(trial: FrozenTrial, config: StudyConfig) -> Finalist:
    return Finalist(
        trial.user_attrs[FINGERPRINT], resolve(config.base, trial.params), dict(trial.params), dict(trial.distributions)
    )


def _control(best: Finalist, config: StudyConfig) -> Finalist | None:
    """None where none is asked for, or the best one is dense itself."""
    if config.control == "none":
        return None
    dense = dense_control(best.config)
    if dense.fingerprint() == best.fingerprint:
        return None
    # Its learning rate starts from the best one's, whoever chose that.
    return Finalist(dense.fingerprint(), dense, {CONTROL: "dense"}, {CONTROL: CategoricalDistribution(["dense"])})


def _is_baseline(trial: FrozenTrial, config: StudyConfig) -> bool:
    queued = config.enqueue[0] if config.enqueue else None
    return queued is not None and trial.system_attrs.get("fixed_params") == queued
