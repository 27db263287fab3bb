"""``python -m moesearch.bench``: how fast moesearch is on this machine, measured against what it claims to beat."""

from __future__ import annotations

import argparse
import json
import sys
import time

from moesearch.cli import new_parser, run_command
from moesearch.errors import InputError

LETTERS = "abcdef"

DESCRIPTION = """\
Measure the speed of moesearch on this machine, side by side and in turns with what it claims to beat:
  a  one training step against the makeMoE article's way of writing it
  b  one training step against a dense model of equal active FLOPs
  c  growth of a step with the number of experts, 4 to 64
  d  the article's whole run, from measured parts
  e  trials per hour by lanes (trials trained as one model) and by worker processes
  f  the share of a step that its bare matrix products would take
Let nothing else run meanwhile.
"""

EXAMPLES = """\
  python -m moesearch.bench --quick
  python -m moesearch.bench --only a,f --threads 1
  python -m moesearch.bench --json > bench.json
"""


def main() -> int:
    """Run the bench and print its figures."""
    started = time.perf_counter()
    args = _parser().parse_args()

    import torch

    from moesearch.bench.cases import CASES, FULL, QUICK, Bench
    from moesearch.bench.measure import device_clock
    from moesearch.bench.output import Facts, as_object, as_table, name_of_device
    from moesearch.bench.settings import article_tokens, search_tokens
    from moesearch.training.host_memory import keep_freed_memory

    device = _device(args.device)
    keep_freed_memory()
    threads = torch.get_num_threads() if args.threads is None else args.threads
    torch.set_num_threads(threads)
    plays = search_tokens()
    bench = Bench(device, device_clock(device), QUICK if args.quick else FULL, article_tokens(plays), plays)
    figures = []
    for letter in args.only:
        figures += CASES[letter](bench)
        if not args.json:
            print(f"({letter}) done after {time.perf_counter() - started:.0f} s", file=sys.stderr)
    seconds = round(time.perf_counter() - started, 1)
    facts = Facts(device, name_of_device(device), threads, torch.__version__, args.quick, seconds)
    print(json.dumps(as_object(figures, facts), indent=2) if args.json else as_table(figures, facts))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("bench", DESCRIPTION, EXAMPLES)
    parser.add_argument("--quick", action="store_true", help="rough figures within 50 s on two cores")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--only", metavar="LETTERS", type=_letters, default=LETTERS, help="cases, such as a,c")
    parser.add_argument("--device", metavar="D", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--threads", metavar="N", type=_count, help="CPU threads; default: one per core")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of threads; give 1 or more")
    return int(text)


def _letters(text: str) -> str:
    """The letters of some cases, in the bench's order."""
    letters = set(text.replace(",", ""))
    if not letters or letters - set(LETTERS):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of cases; give letters from a to f, such as a,c")
    return "".join(sorted(letters))


def _device(name: str) -> str:
    """The device that is meant; InputError if this machine lacks it."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: no such device; give auto, cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name}: torch sees no GPU here; give cpu, or install a CUDA build of torch")
    return name


if __name__ == "__main__":
    run_command(main)
