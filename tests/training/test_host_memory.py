from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_SCRIPT = """
import resource
from moesearch.training.host_memory import keep_freed_memory

if {keeps}:
    keep_freed_memory()
bytearray(1 << 26)  # freed at once
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytearray(1 << 26)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*, keeps: bool) -> int:
    """Page faults of a second array of 64 MiB, in a process of its own."""
    command = [sys.executable, "-c", _SCRIPT.format(keeps=keeps)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_an_array_that_was_freed_is_not_faulted_in_again() -> None:
    assert page_faults(keeps=True) < page_faults(keeps=False) / 4
