"""The confirmation's runs as the verdict takes them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial

from moesearch.config.knobs import active_values
from moesearch.config.labels import config_label
from moesearch.config.trial import TrialConfig
from moesearch.results import records
from moesearch.results.frames import knob_values, last_point, outcome_of
from moesearch.results.runs import ConfirmRun, Rate

if TYPE_CHECKING:  # The results hand their confirmation to this module, so a plain import would be circular.
    from moesearch.results.study import StudyResults

CONTROL_LABEL = "the dense control"


def confirm_runs(results: StudyResults) -> list[ConfirmRun]:
    """The confirmation runs that ended, as ``decide`` takes them."""
    complete = results.ranking[results.ranking["num_seeds"] > 0]
    search_values = dict(zip(complete["fingerprint"], complete["value"], strict=True))
    runs: list[ConfirmRun] = []
    for trial in results.confirm_trials:
        outcome = outcome_of(trial)
        if outcome not in ("complete", "diverged"):
            continue
        point = last_point(trial)
        params = knob_values(trial, tuple(results.config.search))
        fingerprint = str(trial.user_attrs[records.FINGERPRINT])
        is_control = records.CONTROL in trial.params
        runs.append(
            ConfirmRun(
                fingerprint,
                label=CONTROL_LABEL if is_control else config_label(active_values(results.config.search, params)),
                params=params,
                seed_index=int(trial.user_attrs[records.REPLICATE]),
                val_loss=float(point[results.config.curve]) if outcome == "complete" else math.nan,
                search_value=search_values.get(fingerprint),
                is_baseline=fingerprint == results.baseline_fingerprint,
                block_losses=tuple(point.get("val_block_losses", ())) if outcome == "complete" else (),
                is_control=is_control,
                rate=_rate(trial, results),
            )
        )
    return runs


def _rate(run: FrozenTrial, results: StudyResults) -> Rate | None:
    """The learning rate of a confirmation run; None if none was searched."""
    tried: dict[float, float | None] = {}
    searched_lr = None
    for trial in results.rate_trials:
        record = trial.system_attrs[records.RATE]
        if record["finalist"] != run.user_attrs[records.FINGERPRINT]:
            continue
        lr = _lr(trial)
        searched_lr = lr / 2.0 ** record["doublings"]
        if outcome_of(trial) == "complete":
            tried[lr] = float(last_point(trial)[results.config.curve])
        elif outcome_of(trial) == "diverged":
            tried.setdefault(lr, None)
    if searched_lr is None:
        return None
    return Rate(_lr(run), searched_lr, tuple(sorted(tried.items())))


def _lr(trial: FrozenTrial) -> float:
    return TrialConfig.model_validate(trial.system_attrs[records.CONFIG]).optim.lr
