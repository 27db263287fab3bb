"""python -m moesearch.train: train one configuration for its full budget.

The folder that it writes holds all of the run, so the same command again continues it, or shows it if it is done.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from moesearch.cli import EXIT_INTERRUPTED, EXIT_USER_ERROR, new_parser, note, run_command, torch_device
from moesearch.errors import InputError
from moesearch.final_view import FinalView

if TYPE_CHECKING:
    from moesearch.config.trial import TrialConfig
    from moesearch.training.full_run import FullRun
    from moesearch.training.peers import Peers
    from moesearch.training.points import EvalPoint

EXAMPLES = """\
  python -m moesearch.train best.yaml
  python -m moesearch.train best.yaml --set budget.steps=20000 --out runs/train/long
  python -m moesearch.train best.yaml --scale width=4,tokens=20x --patience 3
  torchrun --nproc-per-node 2 -m moesearch.train best.yaml
  python -m moesearch.train best.yaml --json > curve.jsonl"""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    from moesearch.config.loader import load_trial

    config = load_trial(args.config, args.set)
    if args.scale is not None:
        config = _scaled(config, args.scale)
    out: Path = args.out or args.runs / "train" / args.config.stem
    from moesearch.training.peers import joined_peers

    with joined_peers() as peers:
        if peers is not None and not peers.is_first:
            return _train_along(config, out, args, peers)
        with _readable_failures(out), _locked(out):
            return _train(config, out, args, peers)


def _scaled(config: TrialConfig, scale: str) -> TrialConfig:
    from moesearch.config.scaling import parsed_scale, scaled

    larger, unproven = scaled(config, parsed_scale(scale))
    for sentence in unproven:
        note(f"--scale: {sentence}")
    return larger


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser("train", "Train one configuration for its full budget; again, to go on or to see it.", EXAMPLES)
    parser.add_argument("config", metavar="CONFIG.yaml", type=Path, help="a best.yaml, or another export of a study")
    parser.add_argument(
        "--set", metavar="path=value", action="append", default=[], help="change a field of the trial; repeatable"
    )
    parser.add_argument(
        "--scale",
        metavar="AXIS=FACTOR,…",
        help="a larger or longer run, such as width=4,experts=2,tokens=20x: learning rate and init follow the width",
    )
    ends = parser.add_mutually_exclusive_group()
    ends.add_argument(
        "--patience",
        metavar="N",
        type=_count,
        help="stop after N milestones without a lower validation loss; keep the lowest's weights. All milestones are "
        "then evaluated on the whole validation split, whatever budget.milestone_share is",
    )
    ends.add_argument(
        "--average", metavar="N", type=_count, default=1, help="keep the mean of the last N milestones' weights"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder of this run; default train/CONFIG in --runs")
    parser.add_argument("--runs", metavar="DIR", type=Path, default=Path("runs"), help="where runs and mlflow.db lie")
    parser.add_argument("--device", metavar="D", default="auto", help="auto (default), cpu, cuda or cuda:1")
    parser.add_argument("--json", action="store_true", help="one JSON object per milestone on standard output")
    return parser.parse_args(argv)


def _count(text: str) -> int:
    if text.isascii() and text.isdecimal() and 1 <= int(text) <= 10_000:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to 10000")


def _train_along(config: TrialConfig, out: Path, args: argparse.Namespace, peers: Peers) -> int:
    """Train this process' part of the batches, in silence: the first process writes and speaks for all."""
    run = _full_run(config, out, args, peers)
    with _stop_on_signals() as stop:
        for _ in run.train(stop.is_set):
            pass
    return 0


def _full_run(config: TrialConfig, out: Path, args: argparse.Namespace, peers: Peers | None) -> FullRun:
    device = torch_device(args.device)
    from moesearch.data.tokens import load_tokens
    from moesearch.training.full_run import FullRun
    from moesearch.training.host_memory import keep_freed_memory
    from moesearch.training.peers import own_device

    tokens = load_tokens(config.data)
    keep_freed_memory()
    patience, average = args.patience, args.average
    return FullRun(config, tokens, own_device(device), out, patience=patience, average=average, peers=peers)


def _train(config: TrialConfig, out: Path, args: argparse.Namespace, peers: Peers | None) -> int:
    from moesearch.training.model_folder import RESULT_FILES

    run = _full_run(config, out, args, peers)
    view = FinalView(out, args.runs, config, run.tokens)
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
            of_all = "" if run.num_steps is None else f" of {run.num_steps:,}"
            note(f"stopped at step {run.step:,}{of_all}; the same command goes on from there")
            return EXIT_INTERRUPTED
        view.finish("FAILED")
        note(
            f"diverged at step {last.step:,}: a loss or gradient was not finite; "
            "lower optim.lr, or set optim.grad_clip, in another --out"
        )
        return EXIT_USER_ERROR
    if run.is_stopped_early and not run.points[-1].is_last:
        note(f"stopped early at step {run.step:,}: no lower validation loss since step {run.best.step:,}")
    sample = run.write_results()
    view.finish("FINISHED", [out / name for name in RESULT_FILES])
    if not args.json:
        print(f"\n{sample}\n\nwrote {', '.join(RESULT_FILES)} to {out}")
    return 0


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


def _line_printer(num_steps: int | None) -> Callable[[EvalPoint], None]:
    """Says a milestone in a line. Without a number of steps, a budget in seconds, it counts milestones."""
    total = "" if num_steps is None else f"{num_steps:,}"

    def say(point: EvalPoint) -> None:
        tokens_per_second = point.tokens / point.train_seconds if point.train_seconds else 0.0
        left = (point.train_seconds + point.eval_seconds) * (point.num_milestones / point.milestone - 1)
        step = f"step {point.step:>{len(total)},} of {total}" if total else f"step {point.step:,}"
        print(
            f"{step}   train {point.train_loss:.4f}   val {point.val_loss:.4f}   "
            f"{point.val_bpb:.4f} bits per byte   {tokens_per_second:,.0f} tokens/s   {_duration(left)} left",
            flush=True,
        )

    return say


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


if __name__ == "__main__":
    run_command(main)
