"""Trials -> configurations: the seeds of one configuration are one row."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from moesearch.config.quantities import Loss

RANKING_COLUMNS = (
    "fingerprint",
    "label",
    "value",  # mean of the objective over complete seeds
    "deviation",  # over its complete seeds
    "num_seeds",  # complete ones
    "num_pruned",
    "milestone",  # the last that any of its trials reached
    "reached",  # the objective: mean over complete seeds, else at that milestone
    "best_number",  # its complete trial with the lowest value, else its first trial
    "total_params",
    "active_params",
    "flops_per_token",
    "active_flops",  # training FLOPs, mean over complete seeds
    "train_seconds",
)

COSTS = ("total_params", "active_params", "flops_per_token", "active_flops", "train_seconds")
"""Columns that say what a configuration costs."""


def configurations(trials: pd.DataFrame, knobs: Sequence[str], objective: Loss = "val_loss") -> pd.DataFrame:
    """One row per configuration that was trained at all, best first.

    Complete configurations come first, by their mean value; then those that were pruned or still run, by how far they
    came and by their loss there. Configurations that never could be trained (infeasible, diverged) have no row.
    """
    columns = ["rank", *RANKING_COLUMNS[:2], *knobs, *RANKING_COLUMNS[2:]]
    trained = trials[trials["outcome"].isin(["complete", "pruned", "running"]) & trials["fingerprint"].notna()]
    if trained.empty:
        return pd.DataFrame(columns=columns)
    complete = trained["outcome"] == "complete"
    # Sorted so that "first" of a group is its best complete trial, else its first trial.
    ordered = trained.assign(
        is_pruned=trained["outcome"] == "pruned",
        complete_flops=trained["active_flops"].where(complete),
        complete_seconds=trained["train_seconds"].where(complete),
    ).sort_values(["value", "number"], na_position="last")
    groups = ordered.groupby("fingerprint", sort=False)
    best = groups.head(1).set_index("fingerprint")
    furthest = ordered.sort_values("milestone", ascending=False, kind="stable").groupby("fingerprint").head(1)
    furthest = furthest.set_index("fingerprint")
    table = best[["label", *knobs, "total_params", "active_params", "flops_per_token"]].assign(
        value=groups["value"].mean(),
        deviation=groups["value"].std(),
        num_seeds=groups["value"].count(),
        num_pruned=groups["is_pruned"].sum(),
        milestone=furthest["milestone"],
        reached=groups["value"].mean().fillna(furthest[objective]),
        best_number=best["number"],
        active_flops=groups["complete_flops"].mean(),
        train_seconds=groups["complete_seconds"].mean(),
    )
    table = table.sort_values(
        ["value", "milestone", "reached"], ascending=[True, False, True], na_position="last"
    ).reset_index()
    table["rank"] = range(1, len(table) + 1)
    return table[columns]
