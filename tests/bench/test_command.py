from __future__ import annotations

import subprocess
import sys


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "moesearch.bench", *arguments], capture_output=True, text=True, check=False
    )


def test_importing_the_command_loads_no_torch() -> None:
    code = "import sys, moesearch.bench.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_names_every_case() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert all(f"\n  {letter}  " in done.stdout for letter in "abcdef")


def test_a_case_that_does_not_exist_is_a_persons_mistake() -> None:
    done = run("--only", "a,x")
    assert done.returncode == 2
    assert "'a,x' is no list of cases; give letters from a to f, such as a,c" in done.stderr


def test_no_threads_are_a_persons_mistake() -> None:
    done = run("--threads", "0")
    assert done.returncode == 2
    assert "'0' is no number of threads; give 1 or more" in done.stderr


def test_a_device_that_does_not_exist_is_a_persons_mistake() -> None:
    done = run("--device", "tpu")
    assert done.returncode == 2
    assert done.stderr == "--device tpu: no such device; give auto, cpu, cuda or cuda:N\n"
