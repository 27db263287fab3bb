"""Look at what a run of the main job wrote: the store, MLflow's view, the report and the exported configuration."""

from __future__ import annotations

import argparse
import csv
import math
import sys
from pathlib import Path

import optuna
from mlflow.tracking import MlflowClient

from moesearch.config.loader import load_trial
from moesearch.results.standing import is_finished, key_of
from moesearch.search.storage import open_storage


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("reports", type=Path)
    parser.add_argument("--study", required=True)
    parser.add_argument("--trials", type=int, required=True)
    args = parser.parse_args()
    problems: list[str] = []

    def check(fact: bool, otherwise: str) -> None:
        if not fact:
            problems.append(otherwise)

    storage = open_storage(f"sqlite:///{args.runs / 'optuna.db'}")
    study = optuna.load_study(study_name=args.study, storage=storage)
    finished = [trial for trial in study.trials if is_finished(trial)]
    num_finished = sum(trial.state.is_finished() for trial in finished)
    check(num_finished == args.trials, f"the store holds {num_finished} finished trials, not {args.trials}")
    check(len(set(map(key_of, finished))) == len(finished), "a configuration was trained twice with one seed")
    unfinished = [trial.number for trial in study.trials if not trial.state.is_finished()]
    check(not unfinished, f"trials left RUNNING or WAITING: {unfinished}")
    check(0 < study.best_value < 4, f"best val_loss {study.best_value} is no loss of a trained model")

    client = MlflowClient(f"sqlite:///{args.runs / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(args.study)
    check(experiment is not None, "MLflow has no experiment of the study")
    if experiment is not None:
        runs = client.search_runs([experiment.experiment_id])
        check(len(runs) >= args.trials, f"MLflow holds {len(runs)} runs")
        unfinished = [run.info.run_name for run in runs if run.info.status == "RUNNING"]
        check(not unfinished, f"MLflow runs left RUNNING: {unfinished}")

    folder = args.reports / args.study
    for name in ("index.html", "summary.md", "trials.csv", "curves.csv", "best.yaml"):
        check((folder / name).is_file() and (folder / name).stat().st_size > 0, f"{folder / name} is missing or empty")
    if not problems:
        with (folder / "curves.csv").open(newline="", encoding="utf-8") as file:
            losses = [float(row["val_loss"]) for row in csv.DictReader(file)]
        check(bool(losses) and all(math.isfinite(loss) for loss in losses), "curves.csv holds a loss that is no number")
        load_trial(folder / "best.yaml")

    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"main job: {num_finished} trials, best val_loss {study.best_value:.4f}, report in {folder}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
