"""python -m moesearch.reference: explain the fields of a study file and of a trial."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from moesearch.cli import new_parser, run_command
from moesearch.errors import InputError

if TYPE_CHECKING:
    from moesearch.config.reference import FieldFacts

EXAMPLES = """\
  python -m moesearch.reference moe.top_k              one field: meaning, values, default
  python -m moesearch.reference moe optim              all fields of two sections
  python -m moesearch.reference > docs/reference.md    every field, as a page"""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    from moesearch.config.reference import reference_markdown

    if args.fields:
        print("\n\n".join(_text(facts) for name in args.fields for facts in _named(name)))
    else:
        print(reference_markdown(), end="")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser("reference", "Explain the fields of a study file and of a trial.", EXAMPLES)
    parser.add_argument("fields", metavar="FIELD", nargs="*", help="a field or section; without one, the whole page")
    return parser.parse_args(argv)


def _named(name: str) -> list[FieldFacts]:
    """The field of this name, or the fields of the section.

    Raises:
        InputError: there is neither.
    """
    from moesearch.config.messages import did_you_mean
    from moesearch.config.reference import all_fields

    path = name.removeprefix("base.").removeprefix("search.")
    fields = {facts.path: facts for facts in all_fields()}
    if path in fields:
        return [fields[path]]
    section = [facts for facts in fields.values() if facts.path.startswith(f"{path}.")]
    if not section:
        # A person who forgets the section, or misspells the field, means the same.
        last_parts = {other.rpartition(".")[2]: other for other in fields}
        meant = last_parts.get(path.rpartition(".")[2])
        hint = f"; did you mean {meant}?" if meant else did_you_mean(path, fields)
        raise InputError(f"{name} names no field of a study file or trial{hint}")
    return section


def _text(facts: FieldFacts) -> str:
    lines = [facts.path, f"  {facts.meaning}", f"  values   {facts.values}"]
    lines.append(f"  default  {'none: it must be given' if facts.default is None else facts.default}")
    if facts.knob_sentence is not None:
        lines.append(f"  knob     {facts.knob_sentence}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
