"""The ranking: intervals of the compared configurations, and tables of all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from moesearch.report import figures
from moesearch.report.blocks import Block, Gallery, Picture, Section, Table
from moesearch.report.numbers import MISSING, OBJECTIVES, duration, exact, loss, percent
from moesearch.results.study import StudyResults
from moesearch.results.verdict import Candidate

MAX_TABLE_ROWS = 20


def ranking_section(results: StudyResults) -> Section | None:
    """Intervals of the compared configurations, and a table of all."""
    verdict = results.verdict
    if results.ranking.empty:
        return None
    blocks: list[Block] = []
    pictures: list[Picture] = []
    if verdict.ranking:
        is_confirmed = verdict.conclusion != "unconfirmed"
        interval = f"{percent(verdict.confidence)} interval of the mean over fresh seeds"
        caption = (
            f"Bar: {interval}. Dots: seeds. Diamond: value in the search."
            if is_confirmed
            else "Values of the search, which chose by them; not confirmed on fresh seeds."
        )
        described = "; ".join(f"{candidate.label} {candidate.mean:.4f}" for candidate in verdict.ranking)
        title = "Confirmed losses" if is_confirmed else "Leaders of the search"
        pictures.append(Picture("ranking", title, figures.ranking_figure(results), described, caption, in_summary=True))
    if verdict.comparisons:
        described = "; ".join(
            f"{other.label} +{other.difference:.4f}, interval {other.low:.4f} to {other.high:.4f}"
            for other in verdict.comparisons
        )
        caption = (
            "Corrected for the number of comparisons (Holm). An interval that holds zero, with a hollow dot, shows "
            "no difference."
        )
        figure = figures.differences_figure(verdict)
        pictures.append(Picture("differences", "Against the best", figure, described, caption, in_summary=True))
    if pictures:
        blocks.append(Gallery(tuple(pictures)))
    blocks.append(_ranking_table(results))
    if verdict.num_seeds > 1 and verdict.conclusion != "unconfirmed":
        blocks.append(_seeds_table(results))
    return Section("ranking", "Ranking", "Ranking", tuple(blocks))


def _ranking_table(results: StudyResults) -> Table:
    verdict = results.verdict
    is_confirmed = verdict.conclusion not in ("unconfirmed", "nothing")
    confirmed = {candidate.fingerprint: candidate for candidate in verdict.ranking} if is_confirmed else {}
    places = {fingerprint: place for place, fingerprint in enumerate(confirmed)}
    ranking = pd.concat([results.ranking, _never_searched(results, confirmed)], ignore_index=True)
    ranking = ranking.assign(place=ranking["fingerprint"].map(places))
    ranking = ranking.sort_values(["place", "rank"], na_position="last").head(MAX_TABLE_ROWS)
    rows: list[tuple[str, ...]] = []
    for place, row in enumerate(ranking.to_dict("records"), start=1):
        candidate = confirmed.get(str(row["fingerprint"]))
        rows.append(
            (
                str(place),
                str(row["label"]) + (" (baseline)" if row["fingerprint"] == results.baseline_fingerprint else ""),
                MISSING if candidate is None else _with_margin(candidate),
                loss(row["value"]) if row["num_seeds"] else _unfinished(row),
                exact(row["num_seeds"]),
                exact(row["active_params"]),
                exact(row["total_params"]),
                exact(row["flops_per_token"]),
                duration(row["train_seconds"]),
            )
        )
    more = len(results.ranking) - len(rows)
    return Table(
        f"Configurations, best first: confirmed ones, then by the search's {OBJECTIVES[results.config.objective]}"
        + (f"; {more:,} more in trials.csv" if more > 0 else ""),
        ("", "configuration", "confirmed", "search", "seeds", "active params", "total params", "FLOPs/token", "time"),
        tuple(rows),
        num_names=2,
        row_name=1,
        in_summary=True,
    )


def _never_searched(results: StudyResults, confirmed: Mapping[str, Candidate]) -> pd.DataFrame:
    """Rows as the ranking's of what was confirmed alone: the dense control."""
    others = {name: each for name, each in confirmed.items() if name not in set(results.ranking["fingerprint"])}
    costs = results.costs.reindex(list(others)).rename_axis("fingerprint").reset_index()
    return costs.assign(label=[each.label for each in others.values()], num_seeds=0, num_pruned=0)


def _unfinished(row: Mapping[Any, Any]) -> str:
    """What stands in place of a value that there is not: where a configuration was pruned, or is."""
    if pd.isna(row["rank"]):
        return MISSING
    if pd.isna(row["reached"]):
        return "running"
    return f"{'pruned' if row['num_pruned'] else 'running,'} at {loss(row['reached'])}"


def _with_margin(candidate: Candidate) -> str:
    if candidate.high is None:
        return loss(candidate.mean)
    return f"{loss(candidate.mean)} ± {candidate.high - candidate.mean:.4f}"


def _seeds_table(results: StudyResults) -> Table:
    """Every confirmation loss: what the statistics are made from."""
    runs = results.confirm[results.confirm["outcome"] == "complete"]
    losses = runs.pivot_table(index="fingerprint", columns="replicate", values=results.config.curve)
    by_config = losses.to_dict("index")
    return Table(
        "Validation loss of each confirmation run, one column per seed index; a column shares its order of batches",
        ("configuration", *(f"seed {seed}" for seed in losses.columns)),
        tuple(
            (candidate.label, *map(loss, by_config[candidate.fingerprint].values()))
            for candidate in results.verdict.ranking
        ),
    )
