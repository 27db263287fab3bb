from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from moesearch import __version__, completion
from moesearch.cli import parser_of
from moesearch.main import COMMANDS, Command, main

PACKAGE = Path(__file__).parents[1] / "moesearch"
HEAVY = ("torch", "optuna", "mlflow", "pandas", "pydantic", "ruamel", "rich", "shtab")


def exit_code(*argv: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(argv)
    return left.value.code if isinstance(left.value.code, int) else 1


@pytest.fixture(autouse=True)
def _own_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["moesearch"])


def test_every_module_that_is_a_command_is_a_command_of_moesearch() -> None:
    files = [*PACKAGE.glob("*.py"), *PACKAGE.glob("*/__main__.py")]
    runnable = {file for file in files if 'if __name__ == "__main__":\n    run_command(main)' in file.read_text()}
    listed = {PACKAGE.parent / f"{command.module.replace('.', '/')}.py" for command in COMMANDS}
    # `python -m moesearch.report` begins in its package, and its command is report_cli.py.
    assert {str(file) for file in runnable - listed} <= {str(PACKAGE / "report" / "__main__.py")}, "add it to COMMANDS"
    assert listed - runnable <= {PACKAGE / "report_cli.py"}


@pytest.mark.parametrize("argv", [(), ("--help",), ("help",)])
def test_help_lists_each_command_with_a_line(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(*argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(f"  {command.name:<11} {command.summary}" in lines for command in COMMANDS)


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--version") == 0
    assert capsys.readouterr().out == f"moesearch {__version__}\n"


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("rum", "did you mean run?"),
        ("stauts", "did you mean status?"),
        ("x.yaml", "did you mean moesearch run x.yaml?"),
        ("--trials", "the commands are init, run"),
    ],
)
def test_an_unknown_command_exits_2_with_a_way_on(word: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(word) == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_each_command_answers_for_its_own_help(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(command.name, "--help") == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: moesearch {command.name}")
    assert f"  moesearch {command.name}" in printed.partition("examples:")[2]


def test_arguments_and_the_exit_code_are_those_of_the_command(tmp_path: Path) -> None:
    assert exit_code("init", str(tmp_path / "x.yaml")) == 0
    assert exit_code("init", str(tmp_path / "x.yaml")) == 2


@pytest.mark.parametrize("argv", [["--help"], ["--version"], *([command.name, "--help"] for command in COMMANDS)])
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    code = f"""
import sys
sys.argv = ["moesearch", *{argv!r}]
from moesearch.main import main
try:
    main()
finally:
    print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stderr.strip() == "[]"


def test_the_module_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "moesearch", "--version"], capture_output=True, text=True, cwd=PACKAGE.parent, check=True
    )
    assert done.stdout == f"moesearch {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_parser_of_a_command_is_had_without_running_it(command: Command) -> None:
    before = list(sys.argv)
    parser = parser_of(import_module(command.module).main)
    assert parser.prog == f"python -m moesearch.{command.name}"
    assert sys.argv == before


COMPLETE = """
source "$1"; shift
COMP_WORDS=(moesearch "$@"); COMP_CWORD=$#; COMPREPLY=()
_shtab_moesearch; printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("words", "offers"),
    [
        (["re"], {"report", "reference"}),
        (["run", "--tr"], {"--trials"}),
        (["run", "my"], {"my_study.yaml"}),
        (["export", "--runs", "my"], {"my_folder"}),
        (["reference", "moe.t"], {"moe.top_k"}),
        (["completion", ""], {"bash", "zsh"}),
    ],
)
def test_bash_completes_commands_flags_files_and_fields(
    words: list[str], offers: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert completion.main(["bash"]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "my_study.yaml").write_text("")
    (tmp_path / "my_folder").mkdir()
    command = ["bash", "-c", COMPLETE, "bash", str(script), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert offers <= set(done.stdout.split()), done.stderr


def test_zsh_gets_a_script_with_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    completion.main(["zsh"])
    printed = capsys.readouterr().out
    assert printed.startswith("#compdef moesearch\n")
    assert all(f"{command.name}:'{command.summary}'" in printed for command in COMMANDS)
