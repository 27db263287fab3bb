"""python -m moesearch.replay: try strategies of search on recorded curves, in simulated time."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesearch.cli import add_store_flags, new_parser, run_command, storage_url
from moesearch.errors import InputError

if TYPE_CHECKING:
    from moesearch.results.table import CurveTable
    from moesearch.search.comparison import Strategy

BENCHMARK = Path("tables/experts_topk.csv.gz")
"""The table that is committed, of studies/table.yaml."""

EXAMPLES = """\
  python -m moesearch.replay --compare                                 ours against others on the committed table
  python -m moesearch.replay experts_topk --strategy auto+asha         a study in the store
  python -m moesearch.replay TABLE.csv.gz --strategy tpe+median --strategy random+none --trials 40
  python -m moesearch.replay table --write tables/experts_topk.csv.gz  the table of a study in the store, as a file
  python -m moesearch.replay --planted                                 how often the verdict errs, on planted truths"""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    if args.planted:
        return _print_planted(as_json=args.json)
    table = _table(args)
    if args.write is not None:
        return _write(table, args.write)
    return _compare(table, args)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser("replay", "Try strategies of search on recorded curves, in simulated time.", EXAMPLES)
    parser.add_argument(
        "table",
        metavar="TABLE",
        nargs="?",
        default=str(BENCHMARK),
        help=f"a file of curves, or a study in the store; default {BENCHMARK}",
    )
    task = parser.add_mutually_exclusive_group()
    task.add_argument(
        "--strategy",
        metavar="SAMPLER+PRUNER",
        action="append",
        default=[],
        help="a sampler and a pruner of a study file, such as auto+asha; repeatable",
    )
    task.add_argument("--compare", action="store_true", help="ours against Optuna's defaults and others, side by side")
    task.add_argument("--planted", action="store_true", help="error rates of the verdict on tables with a known truth")
    task.add_argument("--write", metavar="FILE", type=Path, help="write the table as a file (.csv or .csv.gz)")
    parser.add_argument("--trials", metavar="N", type=_count, help="budget of each study; default as the comparison")
    parser.add_argument("--repetitions", metavar="N", type=_count, default=100, help="seeds of each strategy (100)")
    parser.add_argument("--workers", metavar="N", type=_count, default=1, help="virtual workers of a --strategy (1)")
    parser.add_argument("--unit", choices=("active_flops", "tokens"), default="active_flops", help="what compute is")
    parser.add_argument("--quick", action="store_true", help="10 repetitions: rough, in seconds")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output, nothing else")
    add_store_flags(parser)
    return parser.parse_args(argv)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 1,000,000")
    return int(text)


def _table(args: argparse.Namespace) -> CurveTable:
    """The table that is meant by a path or by the name of a study."""
    from moesearch.results.table import read_table, table_of

    path = Path(args.table)
    if path.suffix in (".gz", ".csv") or path.is_file():
        return read_table(path)
    from moesearch.results.study import read_study
    from moesearch.search.storage import open_storage

    return table_of(read_study(open_storage(storage_url(args.storage, args.runs), create=False), args.table))


def _write(table: CurveTable, path: Path) -> int:
    from moesearch.results.table import write_table

    try:
        write_table(table, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}; choose another file") from None
    print(f"{path}: {len(table.curves)} curves of {len(table.seeds)} configurations, {path.stat().st_size:,} bytes")
    return 0


def _compare(table: CurveTable, args: argparse.Namespace) -> int:
    from moesearch.search.comparison import compare, comparison_lines, default_strategies, strategy

    if args.compare or not args.strategy:
        strategies: Sequence[Strategy] = default_strategies(table, args.trials)
    else:
        strategies = [strategy(table, name, args.trials, args.workers) for name in args.strategy]
    started = time.monotonic()
    found = compare(table, strategies, repetitions=10 if args.quick else args.repetitions, unit=args.unit)
    found["seconds"] = round(time.monotonic() - started, 1)
    print(json.dumps(found) if args.json else "\n".join(comparison_lines(found)))
    return 0


def _print_planted(*, as_json: bool) -> int:
    from dataclasses import asdict

    from moesearch.results.planted import DIFFERENCE, planted_rates

    rates = planted_rates()
    if as_json:
        print(json.dumps(asdict(rates)))
        return 0
    lines: Mapping[str, Any] = {
        "a winner is claimed where all are equal": rates.false_winner_rate,
        "a winner is claimed of two equal ones among worse": rates.false_winner_rate_of_two,
        "any difference is claimed where all are equal": rates.false_claim_rate,
        f"the true winner is found, {DIFFERENCE:g} seed deviations ahead": rates.true_winner_rate,
    }
    print(f"{rates.num_studies:,} studies of {rates.num_configs} configurations and {rates.num_seeds} seeds each")
    for name, rate in lines.items():
        print(f"  {name:55} {100 * rate:5.1f} %")
    return 0


if __name__ == "__main__":
    run_command(main)
