"""python -m moesearch.report: build the report of a study from the store, at any stage, or compare several."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from moesearch.cli import add_place_flags, new_parser, storage_url
from moesearch.errors import InputError

EXAMPLES = """\
  python -m moesearch.report experts_topk
  python -m moesearch.report studies/experts_topk.yaml studies/init.yaml    the report of each, and a comparison"""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    from moesearch.report.build import build_comparison, build_report
    from moesearch.results.lookup import study_name_of
    from moesearch.search.storage import open_storage

    names = list(dict.fromkeys(study_name_of(study) for study in args.studies))
    storage = open_storage(storage_url(args.storage, args.runs), create=False)
    try:
        for name in names:
            print(build_report(storage, name, args.reports) / "index.html")
        if len(names) > 1:
            print(build_comparison(storage, names, args.reports) / "index.html")
    except OSError as error:
        place = error.filename or args.reports
        raise InputError(f"{place}: cannot be written: {error.strerror}; choose another --reports") from None
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(
        "report", "Build the report of a study from the store, at any stage; several are compared too.", EXAMPLES
    )
    parser.add_argument("studies", metavar="STUDY", nargs="+", help="a study's name in the store, or its file")
    add_place_flags(parser)
    return parser.parse_args(argv)
