"""``python -m moesearch.run`` whose processes die at armed points: ``python -m tests.chaos.mortal_command``."""

from __future__ import annotations

import sys
from functools import partial

from moesearch import run
from moesearch.cli import run_command
from moesearch.report import build
from moesearch.search import crew, supervisor
from tests.chaos.points import kill_before


def make_mortal() -> None:
    kill_before(crew.Crew, "__enter__", "before workers start")
    kill_before(supervisor._Supervisor, "recover", "before recovery")
    kill_before(supervisor, "settle_verdict", "before verdict")
    # The report's tables are there by then, its page is not.
    kill_before(build, "summary_markdown", "during the report's build")
    vars(crew)["Crew"] = partial(crew.Crew, command=(sys.executable, "-m", "tests.chaos.mortal_worker"))


if __name__ == "__main__":
    make_mortal()
    run_command(run.main)
