"""The long mode: ``python -m tests.fuzz --seconds 3600`` feeds every target in turn until the time is up.

Each input is made of its number alone, so ``--first N --inputs 1 --target NAME`` repeats one.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
import traceback
import warnings
from collections import Counter
from itertools import count
from pathlib import Path

from tests.fuzz.targets import TARGETS, feed

SLOW_SECONDS = 10.0
"""Of processor time for one input, since the machine may have better to do."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default 60)")
    parser.add_argument("--inputs", type=int, help="inputs per target at most")
    parser.add_argument("--first", type=int, default=0, help="number of the first input (default 0)")
    parser.add_argument("--target", choices=TARGETS, action="append", help="only this one; repeatable")
    args = parser.parse_args()
    warnings.simplefilter("error")
    logging.disable()
    started, names = time.monotonic(), args.target or list(TARGETS)
    tried, failures, slowest = Counter[str](), Counter[str](), 0.0
    with tempfile.TemporaryDirectory() as scratch:
        for number in count(args.first):
            for name in names:
                began = time.process_time()
                try:
                    feed(TARGETS[name], number, Path(scratch) / "input")
                except Exception:
                    failures[name] += 1
                    print(f"{name} {number}:\n{traceback.format_exc()}", flush=True)
                tried[name] += 1
                seconds = time.process_time() - began
                slowest = max(slowest, seconds)
                if seconds > SLOW_SECONDS:
                    failures[f"{name} (slow)"] += 1
                    print(f"{name} {number}: took {seconds:.1f} s", flush=True)
            is_enough = args.inputs is not None and number + 1 >= args.first + args.inputs
            if is_enough or time.monotonic() - started > args.seconds:
                break
    result = {
        "seconds": round(time.monotonic() - started, 1),
        "inputs": tried.total(),
        "tracebacks": failures.total(),
        "slowest_seconds": round(slowest, 2),
        "tried": tried,
        "failures": failures,
    }
    print(json.dumps(result))
    return int(bool(failures))


if __name__ == "__main__":
    raise SystemExit(main())
