"""Budgets of a whole study beside its number of trials: FLOPs by reservation in the store; hours are in leases.py.

docs/decisions/0012-study-budgets.md says why neither is overspent, whoever works on the study and whoever is killed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from moesearch.config.resolve import resolve
from moesearch.config.study import StudyConfig
from moesearch.config.trial import TrialConfig
from moesearch.errors import InputError
from moesearch.results.records import CONFIG, COST, LOST_MILESTONES, STOPPED_AT, confirm_study_name
from moesearch.results.standing import is_finished, is_stopped
from moesearch.search.trial_cost import TextSizes, largest_flops


@dataclass(frozen=True)
class FlopsLimit:
    """Training and evaluation FLOPs of a study, its confirmation included.

    A trial reserves its whole cost when it is claimed, and frees what it did not use when it ends.
    """

    limit: float
    kept_for_confirmation: float
    largest: float
    """Cost of the costliest trial of the space."""
    milestones: int
    flops_of: Callable[[TrialConfig], float]
    trials_of_study: Callable[[], Iterable[FrozenTrial]]
    """All trials, of the search and of its confirmation."""

    def has_room(self, trial: FrozenTrial | None = None) -> bool:
        """Whether a new trial, or the one that waits or was stopped, can be trained to its end."""
        trials = [other for other in self.trials_of_study() if trial is None or other._trial_id != trial._trial_id]
        is_known = trial is not None and COST in trial.system_attrs
        needed = self._reserved(trial, self._milestones_of(trial)) if trial is not None and is_known else self.largest
        return math.fsum([*map(self.charge, trials), needed]) <= self.limit - self.kept_for_confirmation

    def is_kept(self) -> bool:
        """Whether all that is reserved fits; another host may have reserved in the same moment."""
        return math.fsum(map(self.charge, self.trials_of_study())) <= self.limit - self.kept_for_confirmation

    def charge(self, trial: FrozenTrial) -> float:
        """What a trial has spent or may yet spend."""
        if COST not in trial.system_attrs:  # not resolved yet, or never trained
            return self.largest if trial.state is TrialState.RUNNING else 0.0
        if not trial.state.is_finished() and not is_stopped(trial):
            return self._reserved(trial, self._milestones_of(trial))
        # One that failed, or was taken from its worker, may have trained on until the next milestone.
        beyond = 0 if is_finished(trial) else 1
        return self._reserved(trial, min(self._milestones_of(trial), (trial.last_step or 0) + beyond))

    def _reserved(self, trial: FrozenTrial, milestones: int) -> float:
        """Cost of a trial up to a milestone, with what was trained in vain."""
        lost = int(trial.system_attrs.get(LOST_MILESTONES, 0))
        reserved = float(trial.system_attrs[COST]) * milestones / self._milestones_of(trial)
        return reserved + lost * self._dearest_milestone(trial) if lost else reserved

    def _dearest_milestone(self, trial: FrozenTrial) -> float:
        """What the last milestone costs, which is evaluated on the whole split.

        Up to any milestone a trial costs its part of the whole or less; what was trained in vain may be the last again.
        """
        config, flops = trial.system_attrs.get(CONFIG), float(trial.system_attrs[COST])
        if config is not None and config["budget"].get("milestone_share", 1.0) < 1:
            flops = self.flops_of(resolve(TrialConfig.model_validate(config), {"budget.milestone_share": 1.0}))
        return flops / self._milestones_of(trial)

    def _milestones_of(self, trial: FrozenTrial) -> int:
        """A confirmation run has fewer than a trial of the search."""
        config = trial.system_attrs.get(CONFIG)
        return self.milestones if config is None else int(config["budget"]["milestones"])


def lost_milestones(trial: FrozenTrial) -> int:
    """Milestones that were trained in vain, at most, when the worker of a trial dies now; earlier deaths included."""
    # Whoever is promoted has a checkpoint of the rung.
    since = (trial.last_step or 0) - int(trial.system_attrs.get(STOPPED_AT, 0))
    return int(trial.system_attrs.get(LOST_MILESTONES, 0)) + since + 1


def never() -> bool:
    """The answer where no hours are limited."""
    return False


@dataclass(frozen=True)
class Limits:
    """What claims look at: whether FLOPs and time are left."""

    flops: FlopsLimit | None = None
    is_time_up: Callable[[], bool] = never

    def has_room(self, trial: FrozenTrial | None = None) -> bool:
        """Whether a new trial, or the one that waits or was stopped, may be begun."""
        return not self.is_time_up() and (self.flops is None or self.flops.has_room(trial))

    def is_kept(self) -> bool:
        """Whether all that is reserved fits, now that a trial was claimed."""
        return self.flops is None or self.flops.is_kept()

    def what_is_spent(self) -> str:
        return "the study's hours are spent" if self.is_time_up() else "the study's FLOPs leave no room for a trial"


def flops_limit(config: StudyConfig, storage: RDBStorage, *, is_search: bool) -> FlopsLimit | None:
    """The limit as the search sees it, which leaves room for the confirmation, or as the confirmation does.

    Raises:
        InputError: the limit has no room for a trial of the search.
    """
    limit = config.limits.flops
    if limit is None:
        return None
    texts = TextSizes(config.base.data)
    largest = largest_flops(config, texts)
    num_confirm_runs = config.num_confirm_runs
    if limit < largest * (1 + num_confirm_runs):
        beside = f" beside the {num_confirm_runs} runs that may be confirmed" if num_confirm_runs else ""
        raise InputError(
            f"study {config.name}: limits.flops ({limit:.3g}) leaves no room for a trial{beside}; one takes up to "
            f"{largest:.3g} FLOPs. Raise it, or lower base.budget or confirm"
        )

    def trials_of_study() -> list[FrozenTrial]:
        names = {study.study_name: study._study_id for study in storage.get_all_studies()}
        own = [names[name] for name in (config.name, confirm_study_name(config.name)) if name in names]
        return [trial for study_id in own for trial in storage.get_all_trials(study_id, deepcopy=False)]

    return FlopsLimit(
        limit,
        kept_for_confirmation=num_confirm_runs * largest if is_search else 0.0,
        largest=largest,
        milestones=config.base.budget.milestones,
        flops_of=texts.flops_of,
        trials_of_study=trials_of_study,
    )
