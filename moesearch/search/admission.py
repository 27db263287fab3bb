"""Whether a claimed trial can train here and now."""

from __future__ import annotations

from typing import Literal

from optuna.trial import TrialState

from moesearch.search.assignments import Assignment
from moesearch.search.families import Visit
from moesearch.search.job import Job
from moesearch.search.outcomes import Ending


def admission(job: Job, assignment: Assignment, visit: Visit, *, has_company: bool) -> Literal["now", "later"] | Ending:
    """Now; later, where it does not fit beside what trains; or never, for want of memory, with the reason."""
    shortage = None if job.memory is None else job.memory.shortage(assignment.config)
    if shortage is not None:
        may_wait = shortage.may_end and (has_company or _others_train(job, assignment))
        return "later" if may_wait else Ending("out_of_memory", str(shortage))
    is_crowded = has_company and assignment.must_be_alone
    return "later" if is_crowded or not visit.admits(assignment.config) else "now"


def _others_train(job: Job, assignment: Assignment) -> bool:
    """Whether trials are in training, of any worker, whose end would free memory."""
    running = job.claims.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return any(trial.number != assignment.trial.number for trial in running)
