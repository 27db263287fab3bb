"""Optuna storage -> tidy DataFrames: a row per trial, a row per milestone. Read once, with no query per trial."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from moesearch.config.labels import config_label
from moesearch.config.quantities import CURVE_FIELDS, ROUTER_QUANTITIES, Loss, curve_of
from moesearch.results import records
from moesearch.results.standing import as_they_stand

CURVE_COLUMNS = ("number", *CURVE_FIELDS, *ROUTER_QUANTITIES)

# Columns of a trial before and after its knobs; each knob is a column under its dotted path.
LEADING_COLUMNS = ("number", "state", "outcome", "label")
TRAILING_COLUMNS = (
    "value",  # of the objective; complete trials only
    "val_loss",  # nats per token at the last milestone reached
    "val_bpb",
    "train_loss",
    "milestone",
    "num_milestones",
    "step",
    "tokens",
    "active_flops",  # training FLOPs spent
    "train_seconds",
    "eval_seconds",
    "total_params",
    "active_params",
    "flops_per_token",  # forward
    "fingerprint",
    "replicate",
    "seed",
    "reason",
    "started",
    "ended",
    "worker",
    "mlflow_run_id",
)

# Seeds have 63 bits and counts may be missing, so whole numbers are nullable integers, never floats.
_WHOLE = frozenset(
    {
        "number",
        "milestone",
        "num_milestones",
        "step",
        "tokens",
        "total_params",
        "active_params",
        "replicate",
        "seed",
    }
)
_REAL = frozenset(
    {
        "value",
        "val_loss",
        "val_bpb",
        "train_loss",
        "active_flops",
        "train_seconds",
        "eval_seconds",
        "flops_per_token",
        *ROUTER_QUANTITIES,
    }
)
_MOMENTS = frozenset({"started", "ended"})
_TEXT = frozenset({*LEADING_COLUMNS, *TRAILING_COLUMNS} - _WHOLE - _REAL - _MOMENTS)


def trials_frame(storage: BaseStorage, study_name: str) -> pd.DataFrame:
    """One row per trial of a study, in the order of their numbers.

    Raises:
        KeyError: the storage holds no study of that name.
    """
    study_id = storage.get_study_id_from_name(study_name)
    config = storage.get_study_system_attrs(study_id).get(records.STUDY_CONFIG, {})
    trials = storage.get_all_trials(study_id, deepcopy=False)
    return frame_of_trials(trials, tuple(config.get("search", ())), curve_of(config.get("objective", "val_loss")))


def curves_frame(storage: BaseStorage, study_name: str) -> pd.DataFrame:
    """One row per trial and milestone reached.

    Raises:
        KeyError: the storage holds no study of that name.
    """
    study_id = storage.get_study_id_from_name(study_name)
    config = storage.get_study_system_attrs(study_id).get(records.STUDY_CONFIG, {})
    return frame_of_curves(
        storage.get_all_trials(study_id, deepcopy=False), curve_of(config.get("objective", "val_loss"))
    )


def frame_of_trials(
    trials: Sequence[FrozenTrial], knobs: Sequence[str] = (), objective: Loss = "val_loss"
) -> pd.DataFrame:
    """The rows of ``trials_frame``. ``knobs`` are columns even if no trial has them yet."""
    trials = as_they_stand(trials)
    paths = tuple(dict.fromkeys([*knobs, *(path for trial in trials for path in trial.params)]))
    return _frame(
        [*LEADING_COLUMNS, *paths, *TRAILING_COLUMNS], [_trial_row(trial, paths, objective) for trial in trials]
    )


def frame_of_curves(trials: Sequence[FrozenTrial], objective: Loss = "val_loss") -> pd.DataFrame:
    """The rows of ``curves_frame``."""
    return _frame(CURVE_COLUMNS, [(trial.number, *point) for trial in trials for point in _curve(trial, objective)])


def outcome_of(trial: FrozenTrial) -> str:
    """The recorded outcome; a trial that has none yet is ``running`` or ``waiting``."""
    recorded = trial.user_attrs.get(records.OUTCOME)
    match trial.state:
        case TrialState.RUNNING:
            return "running"
        case TrialState.WAITING:
            return "waiting"
        case _ if recorded is not None:
            return str(recorded)
        case TrialState.FAIL:
            return "lost"  # its worker died before it could say anything
        case _:
            return trial.state.name.lower()


def last_point(trial: FrozenTrial) -> Mapping[str, Any]:
    """The EvalPoint of the last milestone that a trial reached, as JSON values; empty before the first."""
    names = [name for name in trial.system_attrs if name.startswith(records.MILESTONE_PREFIX)]
    return trial.system_attrs[max(names)] if names else {}


def knob_values(trial: FrozenTrial, paths: Sequence[str]) -> dict[str, Any]:
    """The value of each knob: what was proposed, else what its resolved configuration says."""
    config = trial.system_attrs.get(records.CONFIG, {})
    return {path: trial.params[path] if path in trial.params else lookup(config, path) for path in paths}


def lookup(config: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path of nested mappings; None where there is none."""
    node: Any = config
    for name in path.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node


def _frame(columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
    by_column = zip(*rows, strict=True) if rows else [() for _ in columns]
    return pd.DataFrame({name: _series(name, list(values)) for name, values in zip(columns, by_column, strict=True)})


def _series(name: str, values: list[Any]) -> pd.Series[Any]:
    if name in _WHOLE:
        return pd.Series(pd.array(values, dtype="Int64"))
    if name in _REAL:
        return pd.Series(values, dtype="float64")
    if name in _MOMENTS:
        return pd.Series(values, dtype="datetime64[us, UTC]")
    if name in _TEXT:
        return pd.Series(values, dtype="str")
    # A knob. Values stay as they were proposed: without a type of their own, True and 1 would become one number.
    return pd.Series(values, dtype="object")


def _trial_row(trial: FrozenTrial, paths: Sequence[str], objective: Loss) -> tuple[Any, ...]:
    outcome = outcome_of(trial)
    attrs = trial.user_attrs
    values = knob_values(trial, paths)
    is_known = any(value is not None for value in values.values())
    reached = max(trial.intermediate_values, default=0)
    # Written by another tool, a curve has the objective alone.
    point = last_point(trial) or {objective: trial.intermediate_values.get(reached)}
    return (
        trial.number,
        trial.state.name,
        outcome,
        # By what was proposed: a knob whose condition did not hold is not, and stands at the base's value.
        config_label({path: values[path] for path in paths if path in trial.params} or values) if is_known else "",
        *values.values(),
        trial.values[0] if outcome == "complete" and trial.values else None,
        point.get("val_loss"),
        point.get("val_bpb"),
        point.get("train_loss"),
        point.get("milestone", reached),
        point.get("num_milestones"),
        point.get("step"),
        point.get("tokens"),
        point.get("active_flops"),
        attrs.get(records.TRAIN_SECONDS, point.get("train_seconds")),
        attrs.get(records.EVAL_SECONDS, point.get("eval_seconds")),
        attrs.get(records.TOTAL_PARAMS),
        attrs.get(records.ACTIVE_PARAMS),
        attrs.get(records.FLOPS_PER_TOKEN),
        attrs.get(records.FINGERPRINT),
        attrs.get(records.REPLICATE),
        attrs.get(records.SEED),
        attrs.get(records.REASON),
        as_utc(trial.datetime_start),
        as_utc(trial.datetime_complete),
        attrs.get(records.WORKER),
        attrs.get(records.MLFLOW_RUN_ID),
    )


def _curve(trial: FrozenTrial, objective: Loss) -> Iterator[tuple[Any, ...]]:
    for milestone, value in sorted(trial.intermediate_values.items()):
        # Written by another tool, a curve has the objective alone.
        bare = {"milestone": milestone, objective: value}
        point = trial.system_attrs.get(f"{records.MILESTONE_PREFIX}{milestone:04d}", bare)
        health = point.get("router_health") or {}
        yield (*(point.get(field) for field in CURVE_FIELDS), *(health.get(name) for name in ROUTER_QUANTITIES))


def as_utc(moment: datetime | None) -> datetime | None:
    """Optuna's local time without a zone, as UTC."""
    return None if moment is None else moment.astimezone(UTC)
