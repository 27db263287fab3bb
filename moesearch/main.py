"""The command ``moesearch``: the module commands under one name, ``moesearch run`` for ``python -m moesearch.run``."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from moesearch import __version__
from moesearch.cli import run_command
from moesearch.errors import InputError


@dataclass(frozen=True)
class Command:
    """A command by the module whose ``main`` it is; the module is imported when the command is run."""

    name: str
    module: str
    summary: str


COMMANDS = (
    Command("init", "moesearch.init", "write a commented study file to start from"),
    Command("run", "moesearch.run", "run a study to its end, from wherever it stands, and write its report"),
    Command("status", "moesearch.status", "show every study of the store and what is being trained"),
    Command("dashboard", "moesearch.dashboard", "open optuna-dashboard and MLflow on the studies"),
    Command("report", "moesearch.report_cli", "rebuild the report of a study from the store"),
    Command("export", "moesearch.export", "write a configuration of a study, every default spelled out"),
    Command("train", "moesearch.train", "train one configuration for its full budget"),
    Command("generate", "moesearch.generate", "let a trained model continue a text"),
    Command("replay", "moesearch.replay", "try strategies of search on recorded curves, in simulated time"),
    Command("bench", "moesearch.bench.__main__", "measure the speed of moesearch on this machine"),
    Command("reference", "moesearch.reference", "explain the fields of a study file and of a trial"),
    Command("completion", "moesearch.completion", "print the completion script of a shell"),
)

_HELP = f"""\
usage: moesearch COMMAND …

Which sparse mixture-of-experts language model should I train?

commands:
{{commands}}

  moesearch COMMAND --help explains one; python -m moesearch.COMMAND is the same
  moesearch --version      {__version__}

A first study, from question to final run:
  moesearch init my_study.yaml
  moesearch run my_study.yaml
  moesearch train reports/my_study/best.yaml"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names, and leave with its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    run_command(lambda: _main(args))


def _main(args: list[str]) -> int:
    match args:
        case [] | ["-h" | "--help" | "help"]:
            print(_help())
            return 0
        case ["--version"]:
            print(f"moesearch {__version__}")
            return 0
        case ["help", name, *_]:
            return _run(_named(name), ["--help"])
        case [name, *rest]:
            return _run(_named(name), rest)
        case _:
            raise AssertionError(args)


def _help() -> str:
    return _HELP.format(commands="\n".join(f"  {command.name:<11} {command.summary}" for command in COMMANDS))


def _run(command: Command, args: Sequence[str]) -> int:
    # As if the module had been run: its parser, and whoever records the command line, reads the process's own.
    sys.argv = [f"moesearch {command.name}", *args]
    code: int = import_module(command.module).main()
    return code


def _named(name: str) -> Command:
    """The command of this name.

    Raises:
        InputError: there is none.
    """
    commands = {command.name: command for command in COMMANDS}
    if name in commands:
        return commands[name]
    if name.endswith((".yaml", ".yml")):
        raise InputError(f"moesearch: {name} is no command; did you mean moesearch run {name}?")
    close = difflib.get_close_matches(name, commands, n=1)
    hint = f"did you mean {close[0]}?" if close else f"the commands are {', '.join(commands)}"
    raise InputError(f"moesearch: {name!r} is no command; {hint}")
