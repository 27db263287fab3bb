"""python -m moesearch.train: train one configuration for its full budget.

The folder that it writes holds all of the run, so the same command again continues it, or shows it if it is done.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from moesearch.cli import EXIT_INTERRUPTED, EXIT_USER_ERROR, new_parser, run_command
from moesearch.config.secrets import mask_url
from moesearch.errors import InputError, TrackingError

if TYPE_CHECKING:
    from moesearch.config.trial import TrialConfig
    from moesearch.data.tokens import TokenData
    from moesearch.tracking.mlflow import MLflowTracker, RunStatus
    from moesearch.training.points import EvalPoint

EXPERIMENT = "final"
"""MLflow's experiment of all runs of this command."""

EXAMPLES = """\
  python -m moesearch.train best.yaml
  python -m moesearch.train best.yaml --set budget.steps=20000 --out runs/train/long
  python -m moesearch.train best.yaml --json > curve.jsonl"""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    from moesearch.config.loader import load_trial

    config = load_trial(args.config, args.set)
    out: Path = args.out or args.runs / "train" / args.config.stem
    with _readable_failures(out), _locked(out):
        return _train(config, out, args)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser("train", "Train one configuration for its full budget; again, to go on or to see it.", EXAMPLES)
    parser.add_argument("config", metavar="CONFIG.yaml", type=Path, help="a best.yaml, or another export of a study")
    parser.add_argument(
        "--set", metavar="path=value", action="append", default=[], help="change a field of the trial; repeatable"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder of this run; default train/CONFIG in --runs")
    parser.add_argument("--runs", metavar="DIR", type=Path, default=Path("runs"), help="where runs and mlflow.db lie")
    parser.add_argument("--device", metavar="D", default="auto", help="auto (default), cpu, cuda or cuda:1")
    parser.add_argument("--json", action="store_true", help="one JSON object per milestone on standard output")
    return parser.parse_args(argv)


def _train(config: TrialConfig, out: Path, args: argparse.Namespace) -> int:
    device = _device(args.device)
    from moesearch.data.tokens import load_tokens
    from moesearch.training.full_run import RESULT_FILES, FullRun
    from moesearch.training.host_memory import keep_freed_memory

    tokens = load_tokens(config.data)
    keep_freed_memory()
    run = FullRun(config, tokens, device, out)
    view = _View(out, args.runs, config, tokens)
    say = _say_json if args.json else _line_printer(run.num_steps)
    for point in run.points:
        say(point)
    with _stop_on_signals() as stop:
        for point in run.train(stop.is_set):
            say(point)
            view.log(point)
    if not run.is_complete:
        last = run.points[-1] if run.points else None
        if last is None or not last.is_diverged:
            view.pause()
            _note(f"stopped at step {run.step:,} of {run.num_steps:,}; the same command goes on from there")
            return EXIT_INTERRUPTED
        view.finish("FAILED")
        _note(
            f"diverged at step {last.step:,}: a loss or gradient was not finite; "
            "lower optim.lr, or set optim.grad_clip, in another --out"
        )
        return EXIT_USER_ERROR
    sample = run.write_results()
    view.finish("FINISHED", [out / name for name in RESULT_FILES])
    if not args.json:
        print(f"\n{sample}\n\nwrote {', '.join(RESULT_FILES)} to {out}")
    return 0


def _device(name: str) -> str:
    """The device as torch names it; InputError if it is not there."""
    import torch

    count = torch.cuda.device_count()
    match name.split(":"):
        case ["auto"]:
            return "cuda" if count else "cpu"
        case ["cpu"]:
            return "cpu"
        case ["cuda"] if count:
            return "cuda"
        case ["cuda", index] if index.isdecimal() and int(index) < count:
            return name
        case ["cuda", *_]:
            raise InputError(f"--device {name}: torch sees {count} CUDA device(s) here; `--device cpu` always works")
        case _:
            raise InputError(f"--device {name}: is none of auto, cpu, cuda, cuda:0, cuda:1, …")


class _View:
    """This run in MLflow: whatever goes wrong there costs the view, never the run."""

    def __init__(self, out: Path, runs: Path, config: TrialConfig, tokens: TokenData) -> None:
        from moesearch.tracking.database import default_tracking_uri, prepare
        from moesearch.tracking.labels import flat_params
        from moesearch.tracking.mlflow import MLflowTracker

        self._out = out
        self._tracker: MLflowTracker | None = None
        self._run_id = ""
        uri = default_tracking_uri(runs)
        params = {**flat_params(config.model_dump(mode="json")), "corpus_sha256": tokens.corpus_sha256}
        try:
            prepare(uri)
            self._tracker = MLflowTracker(uri, EXPERIMENT, runs / "artifacts" / EXPERIMENT)
            self._run_id = self._resumed(mask_url(uri)) or self._started(mask_url(uri), params)
        except TrackingError as error:
            self._leave_out(error)

    def _resumed(self, place: str) -> str | None:
        """The run of this folder's earlier command, if MLflow is where it was and still has it."""
        assert self._tracker is not None
        try:
            record = json.loads((self._out / "mlflow.json").read_text(encoding="utf-8"))
            if record["place"] != place:
                return None
            self._tracker.resume_run(record["run_id"])
            return str(record["run_id"])
        except (OSError, ValueError, KeyError, TypeError, TrackingError):
            return None

    def _started(self, place: str, params: Mapping[str, object]) -> str:
        from moesearch.training.checkpoints import write_durably

        assert self._tracker is not None
        run_id = self._tracker.start_run(self._out.name, params, {"phase": "final"})
        write_durably(self._out / "mlflow.json", json.dumps({"place": place, "run_id": run_id}).encode())
        return run_id

    def log(self, point: EvalPoint) -> None:
        from moesearch.tracking.labels import milestone_metrics

        metrics = milestone_metrics(asdict(point))
        self._try(lambda tracker: tracker.log_metrics(self._run_id, metrics, point.step))

    def pause(self) -> None:
        self._try(lambda tracker: tracker.pause_run(self._run_id))

    def finish(self, status: RunStatus, files: Sequence[Path] = ()) -> None:
        """End the run, with these files attached."""
        with tempfile.TemporaryDirectory() as folder:
            for path in files:
                shutil.copy(path, folder)
            self._try(lambda tracker: tracker.log_artifacts(self._run_id, Path(folder)))
        self._try(lambda tracker: tracker.finish_run(self._run_id, status, {}))

    def _try(self, write: Callable[[MLflowTracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            write(self._tracker)
        except TrackingError as error:
            self._leave_out(error)

    def _leave_out(self, error: TrackingError) -> None:
        self._tracker = None
        _note(f"MLflow is left out from here on, training goes on: {error}")


@contextmanager
def _readable_failures(out: Path) -> Iterator[None]:
    """Turn a full disk, or a folder that cannot be written, into a message."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = f"{error.filename or out}: {error.strerror or error}"
        raise InputError(f"{reason}; mend that, and the same command goes on from its last checkpoint") from error


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the run's folder, so that no second command trains into it."""
    from filelock import FileLock, Timeout

    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"{out}: another command is training there; wait for it, or give another --out") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; a second one leaves at once."""
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(_number: int, _frame: object) -> None:
        stop.set()
        restore()

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        restore()


def _say_json(point: EvalPoint) -> None:
    health = {} if point.router_health is None else point.router_health.summary()
    values = {**asdict(point), **health}
    for name in ("val_block_losses", "router_health"):
        del values[name]
    # JSON has no NaN.
    finite = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
    print(json.dumps(finite), flush=True)


def _line_printer(num_steps: int) -> Callable[[EvalPoint], None]:
    total = f"{num_steps:,}"

    def say(point: EvalPoint) -> None:
        tokens_per_second = point.tokens / point.train_seconds if point.train_seconds else 0.0
        left = (point.train_seconds + point.eval_seconds) * (num_steps - point.step) / max(point.step, 1)
        print(
            f"step {point.step:>{len(total)},} of {total}   train {point.train_loss:.4f}   val {point.val_loss:.4f}   "
            f"{point.val_bpb:.4f} bits per byte   {tokens_per_second:,.0f} tokens/s   {_duration(left)} left",
            flush=True,
        )

    return say


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _note(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
