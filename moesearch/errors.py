"""Every exception that moesearch raises on purpose.

MoesearchError
|-- InputError              a person's mistake; a command prints it and exits with code 2
|   |-- StudyFileError      one or more problems of a YAML file, each with its file and line
|   |-- CorpusError         a text that is missing, too short, empty or not UTF-8
|   |-- StoreError          a storage URL that cannot be opened, or holds something else
|   `-- UnknownStudyError   a study or trial that the store does not hold
|-- InfeasibleError         a proposal that breaks a rule across fields; knowledge for the sampler
|-- CheckpointError         a checkpoint that is torn, altered or of another model
|-- DiskCapError             a checkpoint that does not fit run.max_disk_gb; the trial goes on without it
|-- TrackingError           MLflow cannot be reached or refuses; a view is lost, never a result
`-- LostTrialError          another worker took this trial over; its results must be dropped
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class MoesearchError(Exception):
    """Base of all errors that moesearch raises on purpose."""


class InputError(MoesearchError):
    """A person's mistake: the message says where, what, the values and what to do."""


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong with a file: where, and what to do about it."""

    source: str
    line: int | None
    message: str

    def __str__(self) -> str:
        place = self.source if self.line is None else f"{self.source}:{self.line}"
        return f"{place}: {self.message}"


class StudyFileError(InputError):
    """All problems of one YAML file at once, one line each."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class CorpusError(InputError):
    """A corpus that cannot be had, or cannot be used."""


class StoreError(InputError):
    """A storage URL that cannot be opened, or a database that is not a study store."""


class UnknownStudyError(InputError):
    """A name that the store does not hold."""


class InfeasibleError(MoesearchError):
    """A proposal that breaks rules across fields; ``reasons`` holds one sentence per broken rule."""

    def __init__(self, reasons: Sequence[str]) -> None:
        self.reasons = tuple(reasons)
        super().__init__("; ".join(self.reasons))


class CheckpointError(MoesearchError):
    """A checkpoint that is torn, altered, or does not fit the model it is loaded into."""


class DiskCapError(MoesearchError):
    """A checkpoint does not fit the study's share of the disk, even with all that can be spared deleted."""


class TrackingError(MoesearchError):
    """MLflow cannot be opened, reached or written to. It is a view only: warn once and go on without it."""


class LostTrialError(MoesearchError):
    """Another worker took this trial over while this one was silent."""
