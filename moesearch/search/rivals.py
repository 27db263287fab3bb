"""What others would run on the same table: Optuna as its documentation has it, samplers and pruners as they come."""

from __future__ import annotations

import warnings
from typing import Literal, assert_never

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from moesearch.config.resolve import resolve
from moesearch.errors import InfeasibleError
from moesearch.results.table import CurveTable
from moesearch.search.replay import Reached, Replayed, Seeds, Unit, milestone_cost
from moesearch.search.suggest import suggest

Sampler = Literal["tpe", "random"]
Pruner = Literal["median", "none", "halving", "hyperband"]
"""``halving`` stops all but the best third at milestones 1, 3, 9, …, for good: Optuna's successive halving."""


def run_rival(
    table: CurveTable, sampler: Sampler, pruner: Pruner, *, seed: int, horizon: float, unit: Unit = "active_flops"
) -> Replayed:
    """``study.optimize`` on a table until ``horizon`` of compute is spent.

    A configuration that breaks a rule is a pruned trial and costs nothing. One that comes again is trained again, as
    Optuna does, on its next recorded seed.
    """
    seeds = Seeds(table, seed)
    reached: list[Reached] = []
    num_runs: dict[str, int] = {}

    def objective(trial: optuna.Trial) -> float:
        params = suggest(trial, table.config.search)
        try:
            fingerprint = resolve(table.config.base, params).fingerprint()
        except InfeasibleError as error:
            raise optuna.TrialPruned from error
        replicate = num_runs.get(fingerprint, 0)
        num_runs[fingerprint] = replicate + 1
        curve = seeds.curve(fingerprint, replicate)
        for index, point in enumerate(curve.points):
            spent = (reached[-1].spent if reached else 0.0) + milestone_cost(curve, index, unit)
            milestone, loss = int(point["milestone"]), point["val_loss"]
            reached.append(Reached(spent, fingerprint, replicate, milestone, loss))
            trial.report(loss, milestone)
            if trial.should_prune():
                raise optuna.TrialPruned
        return curve.final_loss

    def stop(study: optuna.Study, _: optuna.trial.FrozenTrial) -> None:
        if reached and reached[-1].spent >= horizon:
            study.stop()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(sampler=_sampler(sampler, seed), pruner=_pruner(pruner, table))
        study.optimize(objective, callbacks=[stop])
    return Replayed(tuple(reached), len(study.get_trials(deepcopy=False)))


def _sampler(name: Sampler, seed: int) -> BaseSampler:
    match name:
        case "tpe":
            return TPESampler(seed=seed)
        case "random":
            return RandomSampler(seed=seed)
        case _:
            assert_never(name)


def _pruner(name: Pruner, table: CurveTable) -> BasePruner:
    match name:
        case "median":
            return MedianPruner()
        case "none":
            return NopPruner()
        case "halving":
            return SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
        case "hyperband":
            return HyperbandPruner(max_resource=table.config.base.budget.milestones)
        case _:
            assert_never(name)
