"""What every command shares: how it ends, and the flags that mean the same everywhere."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from moesearch.errors import InputError

EXIT_FAULT = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def run_command(main: Callable[[], int]) -> None:
    """Run a command and leave with its exit code: 0 done, 2 a person's mistake, 130 interrupted, 1 ours."""
    try:
        code = main()
    except InputError as error:
        print(error, file=sys.stderr)
        code = EXIT_USER_ERROR
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe went away (`| head`): nobody is left to tell.
        sys.stderr.close()
        code = 0
    sys.exit(code)


def new_parser(command: str, description: str, examples: str) -> argparse.ArgumentParser:
    """A parser whose help teaches by example, in the words in which the command was called."""
    module, script = f"python -m moesearch.{command}", f"moesearch {command}"
    is_script = sys.argv[0] == script
    parser = argparse.ArgumentParser(
        prog=script if is_script else module,
        description=description,
        epilog=f"examples:\n{examples.replace('python -m moesearch.', 'moesearch ') if is_script else examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(_SHOW_PARSER, action=_ShowParser, help=argparse.SUPPRESS)
    return parser


def parser_of(main: Callable[[], int]) -> argparse.ArgumentParser:
    """The parser of a command, which is asked for it as for its help: nothing else of the command is run."""
    before, sys.argv = sys.argv, [sys.argv[0], _SHOW_PARSER]
    try:
        main()
    except _ParserShown as shown:
        return shown.parser
    finally:
        sys.argv = before
    raise AssertionError(main)


_SHOW_PARSER = "--show-parser"


class _ParserShown(Exception):  # noqa: N818 - no error
    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


class _ShowParser(argparse.Action):
    """Does for a program what ``--help`` does for a person."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        raise _ParserShown(parser)


def add_place_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that say where a study and its report live; the defaults are folders beside the caller."""
    add_store_flags(parser)
    parser.add_argument("--reports", metavar="DIR", type=Path, default=Path("reports"), help="where reports go")


def add_store_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that say where a study lives."""
    parser.add_argument("--runs", metavar="DIR", type=Path, default=Path("runs"), help="databases and checkpoints")
    parser.add_argument(
        "--storage", metavar="URL", default=None, help="Optuna storage; default sqlite:///DIR/optuna.db in --runs"
    )


def storage_url(storage: str | None, runs: Path) -> str:
    """The storage that the flags mean."""
    return storage if storage is not None else f"sqlite:///{(runs / 'optuna.db').absolute()}"


def note(text: str) -> None:
    """Say something beside a command's output."""
    print(text, file=sys.stderr)


def torch_device(name: str) -> str:
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
