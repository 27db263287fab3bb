"""A short run of the fuzzer; `python -m tests.fuzz` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS, feed

INPUTS = {"stores": 25, "environment": 50}
"""Fewer for those that take milliseconds each."""


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", TARGETS)
def test_no_input_gives_anything_but_an_error_in_words(name: str, tmp_path: Path) -> None:
    for number in range(INPUTS.get(name, 200)):
        feed(TARGETS[name], number, tmp_path / "input")
