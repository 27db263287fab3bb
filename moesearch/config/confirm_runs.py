"""How large a confirmation is. Imports nothing, so that a quick look at a store need not wait for pydantic."""

from __future__ import annotations

NUM_FIRST_RATES = 3
"""Learning rates that each finalist tries at least."""


def num_confirm_runs(
    *, top: int, seeds: int, lr_search: bool, lr_is_knob: bool, has_baseline: bool, has_control: bool
) -> int:
    """How many runs it takes if no learning rate takes more than ``NUM_FIRST_RATES`` of them to bracket.

    Finalists are the leaders, the first configuration of ``enqueue`` if there is one, and the control. Where the rate
    is a knob, the control alone has still to find its own.
    """
    if top == 0:
        return 0
    num_finalists = top + has_baseline + has_control
    num_searching = 0 if not lr_search else int(has_control) if lr_is_knob else num_finalists
    return num_finalists * seeds + num_searching * NUM_FIRST_RATES


def confirm_milestones(milestones: int) -> int:
    """Milestones of a run that nobody stops, and whose last loss alone decides: a fifth of the search's.

    On the way, a milestone is where a killed run goes on from.
    """
    return max(1, milestones // 5)
