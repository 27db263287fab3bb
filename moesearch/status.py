"""python -m moesearch.status: every study of the store and what is being trained, from any terminal, at any time."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from moesearch.cli import add_store_flags, new_parser, run_command, storage_url
from moesearch.config.secrets import mask_url
from moesearch.snapshots import clock_text

if TYPE_CHECKING:
    from moesearch.results.overview import RunningTrial, StudyOverview

EXAMPLES = """\
  python -m moesearch.status
  python -m moesearch.status --runs /data/runs
  watch python -m moesearch.status
  python -m moesearch.status --json | jq '.studies[] | {name, state, finished}'"""

State = Literal["running", "paused", "done"]
Health = Literal["alive", "silent", "dead"]
"""A worker's: it is silent for two minutes and more, or known to have ended on this host."""

# Columns that hold numbers stand on the right.
_STUDY_COLUMNS = ("study", "state", "phase", ">trials", ">complete", ">pruned", ">failed", ">confirmed", "best so far")
_TRIAL_COLUMNS = ("running", ">trial", ">milestone", ">objective", ">for", "worker", "configuration")


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    from moesearch.results.overview import read_overview

    url = storage_url(args.storage, args.runs)
    studies = read_overview(url)
    now = datetime.now(UTC)
    if args.json:
        print(json.dumps({"storage": mask_url(url), "studies": [_as_json(study) for study in studies]}))
    elif not studies:
        print("The store holds no study yet; python -m moesearch.run STUDY.yaml starts one")
    else:
        print("\n".join(_lines(studies, now)))
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser("status", "Show every study of the store and what is being trained. Reads only.", EXAMPLES)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    add_store_flags(parser)
    return parser.parse_args(argv)


def state_of(study: StudyOverview) -> State:
    """Whether someone works on the study. Between two trials the command's word is taken for it."""
    if any(health_of(trial) == "alive" for trial in study.running):
        return "running"
    if study.phase == "done":
        return "done"
    return "running" if study.open_session is not None and not _is_over(study) else "paused"


def _is_over(study: StudyOverview) -> bool:
    """Whether the command that has not said its end is known to be gone."""
    from moesearch.search.worker_names import is_dead_here

    return bool(study.running) or bool(study.open_session and is_dead_here(study.open_session))


def health_of(trial: RunningTrial) -> Health:
    """Whether the trial's worker lives. Of other hosts only its signs of life are known."""
    from moesearch.search.worker_names import is_dead_here

    if trial.worker and is_dead_here(trial.worker):
        return "dead"
    return "silent" if trial.is_silent else "alive"


def _as_json(study: StudyOverview) -> dict[str, Any]:
    running = [
        {
            **asdict(trial),
            "started": None if trial.started is None else trial.started.isoformat(),
            "health": health_of(trial),
        }
        for trial in study.running
    ]
    return {**asdict(study), "running": running, "state": state_of(study), "phase": study.phase} | {
        "finished": study.finished
    }


def _lines(studies: Sequence[StudyOverview], now: datetime) -> list[str]:
    lines = _table(_STUDY_COLUMNS, [_study_row(study) for study in studies])
    trials = [_trial_row(study, trial, now) for study in studies for trial in study.running]
    return [*lines, "", *_table(_TRIAL_COLUMNS, trials)] if trials else lines


def _study_row(study: StudyOverview) -> list[str]:
    is_confirming = study.phase != "search" and study.num_confirm_runs > 0
    best = "" if study.best_value is None else f"{study.best_value:.4f} {study.objective} #{study.best_number}"
    return [
        study.name,
        state_of(study),
        study.phase,
        f"{study.finished}/{study.num_trials}",
        str(study.complete),
        str(study.pruned),
        str(study.failed),
        f"{study.confirmed}/{study.num_confirm_runs}" if is_confirming else "",
        f"{best} {study.best_label}".strip(),
    ]


def _trial_row(study: StudyOverview, trial: RunningTrial, now: datetime) -> list[str]:
    host_and_pid = trial.worker.rpartition(":")[0]
    health = health_of(trial)
    return [
        study.name if trial.phase == "search" else f"{study.name} (confirm)",
        f"#{trial.number}",
        f"{trial.milestone}/{trial.num_milestones}",
        "" if trial.value is None else f"{trial.value:.4f}",
        "" if trial.started is None else clock_text((now - trial.started).total_seconds()),
        host_and_pid if health == "alive" else f"{host_and_pid} ({health})",
        trial.label,
    ]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with their columns aligned; a heading that begins with ``>`` stands on the right with its column."""
    texts = [[column.lstrip(">") for column in columns], *([_printable(cell) for cell in row] for row in rows)]
    widths = [max(len(text[index]) for text in texts) for index in range(len(columns))]
    return [
        "  ".join(
            cell.rjust(width) if column.startswith(">") else cell.ljust(width)
            for column, cell, width in zip(columns, text, widths, strict=True)
        ).rstrip()
        for text in texts
    ]


def _printable(text: str) -> str:
    """The text with no control character left, whoever wrote the store."""
    return "".join(character if character.isprintable() else "?" for character in text)


if __name__ == "__main__":
    run_command(main)
