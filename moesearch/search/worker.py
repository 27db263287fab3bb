"""The worker loop: fill the free lanes, advance, report, prune, tell.

The trainer, the checkpoints and MLflow's view are arguments, so that a recorded table can stand in for training.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from threading import Event

from optuna.trial import TrialState

from moesearch.errors import CheckpointError, DiskCapError, LostTrialError
from moesearch.results.records import (
    EVAL_SECONDS,
    MILESTONE_PREFIX,
    PEAK_MEMORY_BYTES,
    TRAIN_SECONDS,
    Outcome,
)
from moesearch.search.admission import admission
from moesearch.search.assignments import Assignment, finish, next_assignment
from moesearch.search.claims import fenced
from moesearch.search.crowd import Crowd
from moesearch.search.families import Visit, shape_fields, shape_knobs
from moesearch.search.faults import is_device_lost, is_disk_full, is_out_of_memory
from moesearch.search.heartbeat import Heartbeat
from moesearch.search.job import Job
from moesearch.search.limits import time_out_reason
from moesearch.search.objectives import Facts, broken_constraints, size_violations
from moesearch.search.outcomes import Ending, ending_at
from moesearch.search.progress import FAILURES_PER_SUCCESS, hopeless
from moesearch.search.pruning import halving_in
from moesearch.search.seams import Checkpoint, Checkpoints, Trainer
from moesearch.search.stopped import end_all_stopped, end_hopeless
from moesearch.training.points import EvalPoint

POLL_SECONDS = 0.5

_logger = logging.getLogger(__name__)


@dataclass
class _Run:
    """A loaded lane."""

    assignment: Assignment
    facts: Facts
    began: float = field(default_factory=time.monotonic)
    checkpoint_time: float = field(default_factory=time.monotonic)


def run_worker(job: Job, trainer: Trainer[Checkpoint], checkpoints: Checkpoints[Checkpoint], stop: Event) -> None:
    """Work until nothing is left to do for anyone, or ``stop`` is set; then every trial lies in the queue again."""
    worker = _Worker(job, trainer, checkpoints, stop)
    with worker.heartbeat:
        while not stop.is_set():
            if worker.claims.limits.is_time_up():
                worker.pause()
            worker.fill_free_lanes()
            if not worker.runs:
                if worker.is_over():
                    break
                # Other workers have the last trials. One of them may fail, or die, and make room.
                stop.wait(POLL_SECONDS)
                continue
            for lane, point in worker.advance():
                worker.report(lane, point)
            worker.end_overdue()
        worker.pause()
        worker.tidy()


class _Worker:
    def __init__(
        self, job: Job, trainer: Trainer[Checkpoint], checkpoints: Checkpoints[Checkpoint], stop: Event
    ) -> None:
        self.job = job
        self.claims = job.claims
        self.study = job.claims.study
        self.trainer = trainer
        self.checkpoints = checkpoints
        self.stop = stop
        self.heartbeat = Heartbeat(job.claims.storage)
        self.runs: dict[int, _Run] = {}
        self.checkpoint_seconds = 0.0
        """What writing the last checkpoint took; the first one shows it."""
        self.halving = halving_in(self.study)
        self.crowd = Crowd(len(trainer.free_lanes))
        self.visit = self._new_visit()

    def _new_visit(self) -> Visit:
        # A planned run may differ from the next in any field.
        fields = shape_knobs(self.job.config) if self.job.queue_more is None else shape_fields(self.job.config)
        return Visit(fields, self.crowd.max_lanes)

    def fill_free_lanes(self) -> None:
        for lane in self.trainer.free_lanes:
            while lane not in self.runs and len(self.runs) < self.crowd.limit and not self.stop.is_set():
                if not self.runs:
                    self.visit = self._new_visit()
                assignment = self._next_assignment()
                if assignment is None:
                    return
                self._begin(lane, assignment)

    def _next_assignment(self) -> Assignment | None:
        """A trial that can train beside those that are loaded; None if there is none now."""
        self.claims.recover()
        if self.visit.is_over or self._is_hopeless():
            return None
        assignment = next_assignment(self.claims, self.job.config, self.visit.wanted)
        if assignment is None and self._queues_more():
            assignment = next_assignment(self.claims, self.job.config, self.visit.wanted)
        return assignment if assignment is not None and self._may_start(assignment) else None

    def _may_start(self, assignment: Assignment) -> bool:
        """Whether a trial can train here and now. If not, it is back in the queue, or has ended for want of memory."""
        found = admission(self.job, assignment, self.visit, has_company=bool(self.runs))
        if found == "now":
            if assignment.must_be_alone:
                self.crowd.isolate()
            return True
        with suppress(LostTrialError):
            if isinstance(found, Ending):
                self.job.view.begin(assignment, self.job.facts(assignment.config))
                self._finish(assignment, found)
            else:
                self.visit.is_over = True
                self.claims.give_back(assignment.trial)  # it is first in the queue, for whoever has empty lanes first
        return False

    def _finish(self, assignment: Assignment, ending: Ending) -> None:
        state = finish(
            self.study,
            assignment.trial,
            ending.outcome,
            values=ending.values,
            violations=ending.violations,
            reason=ending.reason,
        )
        self.job.view.end(assignment, state, ending.outcome)

    def _queues_more(self) -> bool:
        return self.job.queue_more is not None and self.job.queue_more()

    def _is_hopeless(self) -> bool:
        trials, ledger = self.study.get_trials(deepcopy=False), self.claims.ledger
        ledger.open_trials(trials)
        may_be = len(trials) > (1 + FAILURES_PER_SUCCESS) * ledger.num_finished
        return may_be and hopeless(trials) is not None

    def is_over(self) -> bool:
        if self._is_hopeless():
            return True
        return self.claims.is_over() and not self._queues_more()

    def _begin(self, lane: int, assignment: Assignment) -> None:
        trial = assignment.trial
        self.heartbeat.watch(trial)
        facts = self.job.facts(assignment.config)
        self.runs[lane] = _Run(assignment, facts)
        try:
            with fenced(trial):
                for name, value in facts.items():
                    trial.set_user_attr(name, value)
            self.job.view.begin(assignment, facts)
            if broken := broken_constraints(size_violations(self.job.config.parsed_constraints, facts)):
                self._tell(lane, Ending("infeasible", broken))
                return
            # An earlier worker may have died between its last report and what follows from it ...
            if assignment.last_point is not None and self._ends_at(lane, assignment.last_point):
                return
            # ... or between a checkpoint and the report that was to follow.
            for point in self._load(lane):
                if lane in self.runs:
                    self._write_down(lane, point)
        except LostTrialError as error:
            self._drop(lane, error)

    def _load(self, lane: int) -> tuple[EvalPoint, ...]:
        """Load the trial into the lane, from its checkpoint if it has one; returns the milestones behind it."""
        assignment = self.runs[lane].assignment
        try:
            try:
                checkpoint = self.checkpoints.load(assignment.checkpoint_key)
                self.trainer.load(lane, assignment.config, checkpoint)
            except CheckpointError as error:
                _logger.warning("trial %d starts from its first step: %s", assignment.trial.number, error)
                checkpoint = None
                self.trainer.load(lane, assignment.config)
        except Exception as error:
            if is_device_lost(error):
                raise
            self._fail(lane, error)
            return ()
        return () if checkpoint is None else checkpoint.points

    def advance(self) -> list[tuple[int, EvalPoint]]:
        try:
            points = self.trainer.advance(self._should_stop)
        except Exception as error:
            if is_device_lost(error):
                raise
            self._find_culprit(error)
            return []
        assert points or self._should_stop(), "loaded lanes have a next milestone"
        return points

    def _overdue_lanes(self) -> list[int]:
        """Lanes whose trials have had all the time that one may have."""
        seconds = self.job.config.run.max_trial_seconds
        if seconds is None:
            return []
        now = time.monotonic()
        return [lane for lane, run in self.runs.items() if now - run.began > seconds]

    def end_overdue(self) -> None:
        """End what has taken too long; its neighbours stand between two steps, and train on."""
        for lane in self._overdue_lanes():
            try:
                self._tell(lane, Ending("timed_out", time_out_reason(self.job.config.run)))
            except LostTrialError as error:
                self._drop(lane, error)

    def _should_stop(self) -> bool:
        return self.stop.is_set() or self.claims.limits.is_time_up() or bool(self._overdue_lanes())

    def report(self, lane: int, point: EvalPoint) -> None:
        """Take down a milestone, its checkpoint first: what was reported is never trained again."""
        try:
            if point.is_diverged:
                reason = f"a loss or gradient was not finite by step {point.step}"
                self._end(lane, point, Ending("diverged", reason))
            else:
                self._save_if_due(lane, point)
                self._write_down(lane, point)
        except LostTrialError as error:
            self._drop(lane, error)

    def _write_down(self, lane: int, point: EvalPoint) -> None:
        assignment = self.runs[lane].assignment
        if point.milestone <= assignment.last_milestone:
            return  # an earlier worker reported it, and had no time for a checkpoint
        trial = assignment.trial
        with fenced(trial):
            record = asdict(point if point.is_last else point.brief())
            trial.storage.set_trial_system_attr(trial._trial_id, f"{MILESTONE_PREFIX}{point.milestone:04d}", record)
            # What `Trial.report` does, which refuses studies of several objectives.
            value = getattr(point, self.job.config.curve)
            trial.storage.set_trial_intermediate_value(trial._trial_id, point.milestone, value)
        self.job.view.log(assignment, point)
        self._ends_at(lane, point)
        end_hopeless(self.claims, self.checkpoints, rung=point.milestone)

    def _ends_at(self, lane: int, point: EvalPoint) -> bool:
        """End the trial if this milestone, which was reported, is its last."""
        run = self.runs[lane]
        ending = ending_at(self.job, run.assignment, run.facts, point)
        if ending is not None:
            self._end(lane, point, ending)
        return ending is not None

    def _save_if_due(self, lane: int, point: EvalPoint) -> None:
        """Checkpoints of all lanes cost a bounded part of the time, however short milestones and trials are."""
        silence = time.monotonic() - self.runs[lane].checkpoint_time
        is_due = len(self.runs) * self.checkpoint_seconds <= self.job.checkpoint_share * silence and not point.is_last
        may_stop = self.halving is not None and point.milestone in self.halving.rungs
        if is_due or may_stop or (point.is_last and self.job.keeps_checkpoints):
            self._save(lane)

    def _save(self, lane: int) -> None:
        run = self.runs[lane]
        if not self.claims.is_mine(run.assignment.trial):
            raise LostTrialError(f"trial {run.assignment.trial.number} was given to another worker")
        started = time.monotonic()
        try:
            self.checkpoints.save(run.assignment.checkpoint_key, self.trainer.checkpoint(lane))
        except (OSError, DiskCapError) as error:
            if is_disk_full(error) and not self.stop.is_set():
                raise  # the study pauses until there is room
            _logger.warning("trial %d goes on without a checkpoint: %s", run.assignment.trial.number, error)
        run.checkpoint_time = time.monotonic()
        self.checkpoint_seconds = run.checkpoint_time - started

    def _end(self, lane: int, point: EvalPoint, ending: Ending) -> None:
        assignment = self.runs[lane].assignment
        with fenced(assignment.trial):
            assignment.trial.set_user_attr(TRAIN_SECONDS, round(point.train_seconds, 3))
            assignment.trial.set_user_attr(EVAL_SECONDS, round(point.eval_seconds, 3))
            peak = None if self.job.peak_memory_bytes is None else self.job.peak_memory_bytes()
            if peak is not None:
                assignment.trial.set_user_attr(PEAK_MEMORY_BYTES, peak)
        self._tell(lane, ending)

    def _find_culprit(self, error: Exception) -> None:
        """An error ends a trial only if that trains alone; several go back, to train in less company."""
        runs = tuple(self.runs.items())
        if len(runs) == 1:
            self._fail(runs[0][0], error)
            return
        _logger.warning("%d trials go back to their last checkpoints: %s", len(runs), error, exc_info=error)
        for lane, run in runs:
            # Without a checkpoint of now: the error may have struck in the middle of a step.
            self._give_back(lane, run.assignment, has_lost_work=True)
        self.crowd.thin_out(len(runs), is_memory_short=is_out_of_memory(error))

    def _fail(self, lane: int, error: Exception) -> None:
        """End a trial whose training raised: the study goes on, and the error's name is in its record."""
        if is_disk_full(error):
            raise error
        outcome: Outcome = "out_of_memory" if is_out_of_memory(error) else "error"
        _logger.error("trial %d: %s", self.runs[lane].assignment.trial.number, outcome, exc_info=error)
        try:
            self._tell(lane, Ending(outcome, f"{type(error).__name__}: {error}"))
        except LostTrialError as lost:
            self._drop(lane, lost)

    def _tell(self, lane: int, ending: Ending) -> None:
        assignment, outcome = self.runs[lane].assignment, ending.outcome
        if outcome == "pruned" and self.halving is not None:
            self.claims.stop_at_rung(assignment.trial)
            self.job.view.end(assignment, TrialState.PRUNED, outcome)
        else:
            self._finish(assignment, ending)
            if not (self.job.keeps_checkpoints and outcome == "complete"):
                self.checkpoints.delete(assignment.checkpoint_key)
        self._free(lane)

    def _drop(self, lane: int, error: LostTrialError) -> None:
        _logger.warning("%s; its results here are dropped", error)
        self._free(lane)

    def _free(self, lane: int) -> None:
        run = self.runs.pop(lane)
        self.heartbeat.forget(run.assignment.trial)
        self.crowd.note_end()
        if lane not in self.trainer.free_lanes:
            self.trainer.free(lane)

    def pause(self) -> None:
        """Give every trial back, to be continued from where it stands."""
        for lane, run in tuple(self.runs.items()):
            try:
                self._save(lane)
            except LostTrialError as error:
                self._drop(lane, error)
            else:
                self._give_back(lane, run.assignment)

    def tidy(self) -> None:
        """End the trials that were stopped at a rung, if the search is over."""
        if self.halving is not None and self.is_over():
            end_all_stopped(self.claims, self.checkpoints)

    def _give_back(self, lane: int, assignment: Assignment, *, has_lost_work: bool = False) -> None:
        try:
            self.claims.give_back(assignment.trial, has_lost_work=has_lost_work)
            self.job.view.pause(assignment)
            self._free(lane)
        except LostTrialError as error:
            self._drop(lane, error)
