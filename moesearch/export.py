"""python -m moesearch.export: write a configuration of a study, to train it elsewhere or for longer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moesearch.cli import add_store_flags, new_parser, run_command, storage_url
from moesearch.errors import InputError

if TYPE_CHECKING:
    from moesearch.results.provenance import Choice

EXAMPLES = """\
  python -m moesearch.export experts_topk -o best.yaml
  python -m moesearch.export studies/experts_topk.yaml --trial base -o base.yaml
  python -m moesearch.export experts_topk --trial 7 -o trial7.yaml && python -m moesearch.train trial7.yaml"""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    from moesearch.results.lookup import study_name_of
    from moesearch.results.provenance import choose, export_yaml
    from moesearch.results.study import read_study
    from moesearch.search.storage import open_storage

    name = study_name_of(args.study)
    results = read_study(open_storage(storage_url(args.storage, args.runs), create=False), name)
    text = export_yaml(results, args.trial)
    if args.output == "-":
        sys.stdout.write(text)
        return 0
    path = Path(args.output)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}; choose another -o") from None
    print(f"wrote {path}: {choose(results, args.trial).label}, from study {name}")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(
        "export", "Write a configuration of a study, every default spelled out, with its origin.", EXAMPLES
    )
    parser.add_argument("study", metavar="STUDY", help="a study's name in the store, or its file")
    parser.add_argument(
        "--trial",
        metavar="best|base|NUMBER",
        type=_choice,
        default="best",
        help="best by the verdict (default), base as the study file has it, or the number of a trial",
    )
    parser.add_argument("-o", "--output", metavar="CONFIG.yaml", required=True, help="the file to write; - prints it")
    add_store_flags(parser)
    return parser.parse_args(argv)


def _choice(text: str) -> Choice:
    if text in ("best", "base"):
        return "best" if text == "best" else "base"
    if text.isascii() and text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is none of best, base, or the number of a trial")


if __name__ == "__main__":
    run_command(main)
