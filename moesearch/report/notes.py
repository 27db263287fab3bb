"""What optuna-dashboard shows beside its own charts: notes in Markdown and pictures, for the study and its trials."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moesearch.config.labels import short_value
from moesearch.config.trial import TrialConfig
from moesearch.report import canvas, figures
from moesearch.report.build import status_line
from moesearch.report.numbers import MISSING, duration, exact, loss
from moesearch.report.routers import layer_loads, load_figure
from moesearch.report.summary import escape
from moesearch.results import records, wording
from moesearch.results.frames import outcome_of
from moesearch.results.study import StudyResults

MAX_NOTES = 100
"""Trials that get a note, best first: notes lie in the study's own record, which is read as one."""
MAX_PICTURES = 10
"""Trials that get pictures, best first; the baseline comes on top."""


@dataclass(frozen=True)
class Notes:
    """Texts in Markdown; files by name, PNG or text."""

    study: str
    trials: Mapping[int, str]
    study_files: Mapping[str, bytes]
    trial_files: Mapping[int, Mapping[str, bytes]]


def dashboard_notes(results: StudyResults, report: str, experiment_url: str | None) -> Notes:
    """Notes of a study at any stage.

    Args:
        results: the study.
        report: path of its report's page.
        experiment_url: address of its experiment in MLflow, which a run's id is added to; None where there is none.
    """
    ranked = [int(number) for number in results.ranking["best_number"]]
    rest = [number for number in map(int, results.trials["number"]) if number not in set(ranked)]
    numbers = [*ranked, *rest][:MAX_NOTES]
    baseline = results.ranking.loc[results.ranking["fingerprint"] == results.baseline_fingerprint, "best_number"]
    pictured = dict.fromkeys([*ranked[:MAX_PICTURES], *map(int, baseline)])
    opened = results.verdict.test
    sample = {"sample.txt": opened.sample.encode()} if opened is not None and opened.sample else {}
    with canvas.style():
        return Notes(
            study=_study_note(results, report, experiment_url),
            trials={number: _trial_note(results, number, experiment_url) for number in numbers},
            study_files={"learning_curves.png": canvas.to_png(figures.curves_figure(results)), **sample}
            if ranked
            else {},
            trial_files={number: _pictures(results, number) for number in pictured},
        )


def _study_note(results: StudyResults, report: str, experiment_url: str | None) -> str:
    headline, rest = wording.headline_and_rest(results.verdict)
    lines = [f"**{escape(headline)}**", "", *([escape(rest), ""] if rest else [])]
    for detail in wording.details(results.verdict):
        lines += [escape(detail), ""]
    lines += [f"- {escape(status_line(results))}", f"- Report: `{report}`"]
    if experiment_url is not None:
        lines.append(f"- [MLflow experiment]({experiment_url}), while `python -m moesearch.dashboard` runs")
    lines += [
        f"- Take the best: `python -m moesearch.export {results.name} -o best.yaml`",
        "",
        "Red in the history is infeasible: such a trial cost nothing and counts against no budget.",
    ]
    return "\n".join(lines) + "\n"


def _trial_note(results: StudyResults, number: int, experiment_url: str | None) -> str:
    row = results.trials.set_index("number").loc[number].to_dict()
    outcome = outcome_of(results.trial(number)).replace("_", " ")
    lines = [f"**{escape(str(row['label']))}**: {outcome}", ""]
    if isinstance(row["reason"], str) and row["reason"]:
        lines += [escape(row["reason"]), ""]
    lines += [*_place(results, number), "", "| knob | value | baseline |", "| :-- | :-- | :-- |"]
    baseline = results.knobs_of(results.baseline)
    resolved = results.trial(number).system_attrs.get(records.CONFIG)
    config = None if resolved is None else TrialConfig.model_validate(resolved)
    for path in results.config.search:
        value = short_value(row[path]) if config is None or config.reads(path) else MISSING
        lines.append(f"| {escape(path)} | {escape(value)} | {escape(short_value(baseline[path]))} |")
    lines += [
        "",
        f"val_loss {loss(row['val_loss'])} at milestone {exact(row['milestone'])}; "
        f"{exact(row['active_params'])} of {exact(row['total_params'])} parameters active; "
        f"trained {duration(row['train_seconds'])}; seed {row['seed']}",
        "",
    ]
    run_id = results.trial(number).user_attrs.get(records.MLFLOW_RUN_ID)
    if experiment_url is not None and run_id is not None:
        lines.append(f"- [MLflow run]({experiment_url}/runs/{run_id})")
    lines.append(f"- Train it alone: `python -m moesearch.export {results.name} --trial {number} -o trial.yaml`")
    return "\n".join(lines) + "\n"


def _place(results: StudyResults, number: int) -> list[str]:
    """Where the trial's configuration stands in the search, and what confirmation said of it."""
    ranking = results.ranking
    lines: list[str] = []
    for rank, fingerprint in ranking.loc[ranking["best_number"] == number, ["rank", "fingerprint"]].itertuples(
        index=False
    ):
        lines.append(f"Place {rank} of {len(ranking)} configurations in the search.")
        for candidate in results.verdict.ranking:
            if candidate.fingerprint == fingerprint and results.verdict.conclusion != "unconfirmed":
                margin = "" if candidate.high is None else f" ± {candidate.high - candidate.mean:.4f}"
                lines.append(f"Confirmed on {candidate.num_seeds} fresh seeds: {loss(candidate.mean)}{margin}.")
    return lines


def _pictures(results: StudyResults, number: int) -> dict[str, bytes]:
    pictures = {"learning_curve.png": canvas.to_png(figures.curves_figure(results, highlighted=number))}
    if loads := layer_loads(results, number):
        pictures["expert_load.png"] = canvas.to_png(load_figure(loads))
    return pictures
