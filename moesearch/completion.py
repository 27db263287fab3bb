"""python -m moesearch.completion: print the script that makes a shell complete ``moesearch``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from moesearch.cli import new_parser, parser_of, run_command
from moesearch.main import COMMANDS

SHELLS = ("bash", "zsh")

EXAMPLES = """\
  python -m moesearch.completion bash > ~/.local/share/bash-completion/completions/moesearch
  python -m moesearch.completion zsh > ~/.zfunc/_moesearch    where ~/.zfunc is in $fpath"""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    import shtab

    print(shtab.complete(_moesearch_parser(), args.shell))
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser("completion", "Print the script that makes a shell complete `moesearch`.", EXAMPLES)
    parser.add_argument("shell", metavar="bash|zsh", choices=SHELLS, help="the shell")
    return parser.parse_args(argv)


def _moesearch_parser() -> argparse.ArgumentParser:
    """All commands as one parser, which only describes them: ``moesearch`` itself imports none that it does not run."""
    parser = argparse.ArgumentParser(prog="moesearch", allow_abbrev=False)
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers()
    for command in COMMANDS:
        described = parser_of(import_module(command.module).main)
        for action in described._actions:
            _complete(action)
        commands.add_parser(command.name, help=command.summary, parents=[described], add_help=False)
    return parser


def _complete(action: argparse.Action) -> None:
    """Say what a shell can offer for an argument."""
    import shtab

    from moesearch.config.reference import all_fields

    if action.metavar == "FIELD":
        action.choices = [facts.path for facts in all_fields()]
    # shtab reads `complete`, which argparse's actions do not declare.
    elif action.metavar in ("DIR", "FOLDER"):
        action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    elif action.type is Path or action.metavar in ("STUDY", "CONFIG.yaml"):
        action.complete = shtab.FILE  # type: ignore[attr-defined]


if __name__ == "__main__":
    run_command(main)
