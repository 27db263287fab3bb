"""python -m moesearch.run: run a study to its end, from wherever it stands, and write its report."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesearch.cli import EXIT_FAULT, EXIT_INTERRUPTED, add_place_flags, new_parser, run_command, storage_url
from moesearch.config.secrets import mask_url
from moesearch.errors import InputError, MoesearchError, TrackingError

if TYPE_CHECKING:
    from moesearch import terminal
    from moesearch.config.study import StudyConfig
    from moesearch.search.crew import Workers
    from moesearch.search.order import WorkOrder
    from moesearch.search.progress import Progress
    from moesearch.search.supervisor import Outcome

EXAMPLES = """\
  python -m moesearch.run studies/experts_topk.yaml              the same again resumes, or shows that all is done
  python -m moesearch.run studies/experts_topk.yaml --dry-run    what it would try, and what that costs
  python -m moesearch.run my.yaml --trials 50 --set base.optim.lr=3e-4"""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    from moesearch.config.loader import load_study

    config = load_study(args.study, _overrides(args))
    if args.dry_run:
        return _print_plan(config, as_json=args.json)
    return _run(config, args)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(
        "run", "Run a study to its end, from wherever it stands, and write its report. Ctrl-C pauses it.", EXAMPLES
    )
    parser.add_argument("study", metavar="STUDY.yaml", type=Path, help="the study file")
    parser.add_argument("--trials", metavar="N", help="finished trials to end at, instead of the file's num_trials")
    parser.add_argument("--workers", metavar="N", help="worker processes; by default one per core, or one per GPU")
    parser.add_argument("--lanes", metavar="N", help="trials side by side in each worker; by default 1, more on a GPU")
    parser.add_argument("--device", metavar="D", help="auto (default), cpu, cuda or cuda:1")
    parser.add_argument("--seed", metavar="N", help="seed of the study, instead of the file's sampler.seed")
    parser.add_argument(
        "--set", metavar="path=value", action="append", default=[], help="change a field of the study; repeatable"
    )
    parser.add_argument("--dry-run", action="store_true", help="train nothing; print the space and what it costs")
    parser.add_argument("--fresh", action="store_true", help="delete what the store holds of this study first")
    parser.add_argument("--quiet", action="store_true", help="no progress, only the verdict")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output, nothing else")
    parser.add_argument(
        "--cluster", choices=["ray"], help="workers over a Ray cluster: RAY_ADDRESS's, or a new one here"
    )
    parser.add_argument("--files", metavar="URL", help="folder or URL of checkpoints and artifacts; default --runs")
    add_place_flags(parser)
    return parser.parse_args(argv)


def _overrides(args: argparse.Namespace) -> list[str]:
    """Flags are short names for fields of the study, and are checked as such."""
    flags = {
        "num_trials": args.trials,
        "run.workers": args.workers,
        "run.lanes": args.lanes,
        "run.device": args.device,
        "sampler.seed": args.seed,
    }
    return [*args.set, *(f"{path}={value}" for path, value in flags.items() if value is not None)]


def _print_plan(config: StudyConfig, *, as_json: bool) -> int:
    from moesearch.search.plan import plan, plan_lines

    planned = plan(config)
    print(json.dumps(planned.to_json()) if as_json else "\n".join(plan_lines(planned)))
    return 0


def _run(config: StudyConfig, args: argparse.Namespace) -> int:
    from moesearch.folders import make_folders
    from moesearch.live import LiveViews
    from moesearch.search.supervisor import run_study
    from moesearch.terminal import LiveDisplay

    was_full = False

    def show(progress: Progress) -> None:
        nonlocal was_full
        if progress.lacks_room != was_full:
            was_full = progress.lacks_room
            display.warn(_disk_news(order.runs, is_full=was_full))
        display.update(_snapshot(progress, workers.num_workers))

    command = shlex.join(["python", "-m", "moesearch.run", *map(mask_url, sys.argv[1:])])
    try:
        with _hired(config, args) as (order, workers), LiveDisplay(quiet=args.quiet) as display:
            make_folders(order, args.reports)
            display.note(f"{config.name}: {workers}; {order.runs}")
            with LiveViews(order, args.reports):
                outcome = run_study(
                    order,
                    workers,
                    fresh=args.fresh,
                    command=command,
                    show=show,
                    note=display.note,
                )
            for log in outcome.notes:
                display.warn(f"a worker wrote to {log}")
            folder = _report(order, args.reports)
            experiment_url = _finish_tracking(order, outcome, folder, display)
            _annotate(order, folder, experiment_url, display)
    except KeyboardInterrupt:
        print(f"{config.name}: paused; the same command goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED
    except InputError:
        raise
    except MoesearchError as error:
        print(error, file=sys.stderr)
        return EXIT_FAULT
    _print_outcome(config, outcome, folder, as_json=args.json)
    return 0


@contextmanager
def _hired(config: StudyConfig, args: argparse.Namespace) -> Iterator[tuple[WorkOrder, Workers]]:
    """What is to be done, and those who will do it: processes of this machine, or actors on a Ray cluster."""
    from moesearch.search.crew import Crew
    from moesearch.search.machine import place
    from moesearch.search.order import WorkOrder
    from moesearch.tracking.mlflow import default_tracking_uri

    is_local = args.cluster is None
    device, num_workers = (config.run.device, config.run.workers) if is_local else ("auto", 1)
    placement = place(device, num_workers, num_runs=config.num_trials)
    store = storage_url(args.storage, args.runs)
    order = WorkOrder(
        config=config,
        storage_url=store,
        runs=args.runs.absolute(),
        tracking_uri=default_tracking_uri(args.runs, store),
        device=placement.device,
        files=args.files if args.files is None or "://" in args.files else str(Path(args.files).absolute()),
    )
    if is_local:
        yield order, Crew(order, placement)
        return
    from moesearch.search import cluster

    with cluster.joined_cluster():
        cluster.refuse_sqlite_on_other_hosts(order.storage_url)
        yield order, cluster.RayCrew(order, cluster.cluster_share(config))


def _disk_news(folder: Path, *, is_full: bool) -> str:
    import shutil

    free = f"{shutil.disk_usage(folder).free / 1e6:,.0f} MB are free on the disk of {folder}"
    if is_full:
        return (
            f"no room for a checkpoint or the store: {free}; training pauses, and goes on by itself when there is room"
        )
    return f"{free}; training goes on"


def _report(order: WorkOrder, reports: Path) -> Path:
    from moesearch.report.build import build_report
    from moesearch.search.storage import open_storage

    try:
        return build_report(open_storage(order.storage_url), order.config.name, reports)
    except OSError as error:
        raise InputError(
            f"{reports}: cannot be written: {error.strerror}; the study is done, "
            f"`python -m moesearch.report {order.config.name} --reports DIR` writes its report elsewhere"
        ) from None


def _finish_tracking(order: WorkOrder, outcome: Outcome, folder: Path, display: terminal.LiveDisplay) -> str | None:
    """Bring MLflow's states in line with the store's, attach the report; the address of the study's experiment."""
    from moesearch.search.view import reconcile
    from moesearch.tracking.mlflow import MLflowTracker

    assert order.tracking_uri is not None
    try:
        tracker = MLflowTracker(order.tracking_uri, order.config.name, order.artifacts)
        reconcile(tracker, (*outcome.progress.search, *outcome.progress.confirm))
        tracker.log_summary(_summary_tags(outcome), (folder / "summary.md").read_text(encoding="utf-8"), folder)
        return tracker.experiment_url
    except TrackingError as error:
        display.warn(f"{error}; the report is complete without it")
        return None


def _annotate(order: WorkOrder, folder: Path, experiment_url: str | None, display: terminal.LiveDisplay) -> None:
    """Notes and pictures for optuna-dashboard."""
    from moesearch.report.notes import dashboard_notes
    from moesearch.results.study import read_study
    from moesearch.search.notes import write_files, write_notes
    from moesearch.search.storage import open_storage

    storage, name = open_storage(order.storage_url), order.config.name
    notes = dashboard_notes(read_study(storage, name), str(folder / "index.html"), experiment_url)
    write_notes(storage, name, notes.study, notes.trials)
    try:
        write_files(storage, name, order.dashboard_files, notes.study_files, notes.trial_files)
    except OSError as error:
        display.warn(f"optuna-dashboard shows no pictures: {error}")


def _summary_tags(outcome: Outcome) -> dict[str, str]:
    progress = outcome.progress
    tags = {"trials": str(progress.num_finished), "pruned": str(progress.num_pruned)}
    if progress.complete:
        tags[f"best_{progress.config.objective}"] = f"{progress.complete[0].values[0]:.6f}"
    if outcome.verdict is not None:
        tags["verdict"] = outcome.verdict.sentence
    return tags


def _print_outcome(config: StudyConfig, outcome: Outcome, folder: Path, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_outcome_json(config, outcome, folder)))
        return
    from moesearch.config.labels import config_label

    progress = outcome.progress
    if not outcome.had_work:
        print(f"{config.name}: all {progress.num_finished} trials were done before; --trials N asks for more")
    if outcome.search_end:
        print(f"The search ended early: {outcome.search_end}.")
    if outcome.verdict is not None:
        print(_wrapped(outcome.verdict.sentence))
    elif progress.complete:
        best = progress.complete[0]
        label = config_label(best.params)
        print(f"Best of {progress.num_finished} trials, not confirmed: {label}, {best.values[0]:.4f}")
    print(f"report  {folder / 'index.html'}")
    if (folder / "best.yaml").exists():
        print(f"next    python -m moesearch.train {folder / 'best.yaml'}")


def _wrapped(text: str) -> str:
    """The text in lines that a terminal does not break within words; in one line for anything else."""
    import shutil
    import textwrap

    if not sys.stdout.isatty():
        return text
    return textwrap.fill(text, shutil.get_terminal_size().columns, break_long_words=False, break_on_hyphens=False)


def _outcome_json(config: StudyConfig, outcome: Outcome, folder: Path) -> dict[str, Any]:
    progress = outcome.progress
    best = progress.complete[0] if progress.complete else None
    return {
        "study": config.name,
        "finished": progress.num_finished,
        "complete": len(progress.complete),
        "pruned": progress.num_pruned,
        "failed": progress.num_failed,
        "infeasible": progress.num_infeasible,
        "best": None if best is None else {"number": best.number, "value": best.values[0], "params": best.params},
        "verdict": None if outcome.verdict is None else outcome.verdict.to_json(),
        "sentence": None if outcome.verdict is None else outcome.verdict.sentence,
        "report": str(folder),
        "search_end": outcome.search_end,
        "seconds": round(outcome.seconds, 1),
    }


def _snapshot(progress: Progress, num_workers: int) -> terminal.Snapshot:
    """What the display shows, from what the store says."""
    from moesearch.config.labels import config_label, running_label
    from moesearch.results.records import EVAL_SECONDS, TRAIN_SECONDS
    from moesearch.results.standing import is_finished, milestones_of
    from moesearch.terminal import Leader, RunningTrial, Snapshot, estimate_seconds_left

    config = progress.config
    running = tuple(
        RunningTrial(
            trial.number,
            running_label(trial.params),
            trial.last_step or 0,
            milestones_of(trial, config.base.budget.milestones),
            None if trial.last_step is None else trial.intermediate_values[trial.last_step],
        )
        for trial in progress.running
    )
    leaders = tuple(
        Leader(trial.number, config_label(trial.params), trial.values[0]) for trial in progress.complete[:5]
    )
    ended = [trial for trial in (*progress.search, *progress.confirm) if is_finished(trial)]
    num_confirm_runs = max(len(progress.confirm), config.num_confirm_runs)
    to_do = config.num_trials - progress.num_finished + num_confirm_runs - progress.num_confirmed - len(running)
    return Snapshot(
        study_name=config.name,
        objective=config.objective,
        phase=progress.phase,
        num_trials=config.num_trials,
        complete=len(progress.complete),
        pruned=progress.num_pruned,
        infeasible=progress.num_infeasible,
        failed=progress.num_failed,
        running=running,
        leaders=leaders,
        elapsed_seconds=progress.seconds,
        seconds_left=estimate_seconds_left(
            [trial.user_attrs.get(TRAIN_SECONDS, 0.0) + trial.user_attrs.get(EVAL_SECONDS, 0.0) for trial in ended],
            max(0, to_do),
            [trial.milestone / trial.num_milestones for trial in running],
            num_workers,
        ),
        confirmed=progress.num_confirmed,
        num_confirm_runs=num_confirm_runs,
    )


if __name__ == "__main__":
    run_command(main)
