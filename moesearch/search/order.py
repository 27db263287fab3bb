"""What the supervisor tells a worker process, and where both look for files. Imports neither torch nor MLflow."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moesearch.config.study import StudyConfig

ERROR_MARK = "moesearch cannot go on: "
"""Begins the last message in the log of a worker that leaves because of a person's mistake."""

EXIT_NO_ROOM = 75
"""Of a worker that found a disk full; sysexits.h calls it EX_TEMPFAIL."""


def dashboard_files(runs: Path) -> Path:
    """Where optuna-dashboard finds files, of all studies of a store."""
    return runs / "artifacts" / ".optuna-dashboard"


@dataclass(frozen=True)
class WorkOrder:
    """What a worker process has to know."""

    config: StudyConfig
    storage_url: str
    runs: Path
    tracking_uri: str | None
    """None keeps MLflow out."""
    device: str
    """A device as torch names it."""
    files: str | None = None
    """A folder or URL for checkpoints and artifacts that all machines reach; None is ``runs``."""

    @property
    def search_checkpoints(self) -> str:
        return f"{self._files}/checkpoints/{self.config.name}"

    @property
    def confirm_checkpoints(self) -> str:
        return f"{self.search_checkpoints}/confirm"

    @property
    def _files(self) -> str:
        return str(self.runs) if self.files is None else self.files.rstrip("/")

    @property
    def logs(self) -> Path:
        """Where workers write what goes wrong."""
        return self.runs / "logs" / self.config.name

    @property
    def artifacts(self) -> str:
        """Where MLflow keeps files, unless a server does."""
        return f"{self._files}/artifacts/{self.config.name}"

    @property
    def dashboard_files(self) -> Path:
        """Where optuna-dashboard finds what it shows beside studies and trials."""
        return dashboard_files(self.runs)

    def to_json(self) -> str:
        """One line."""
        values = {**asdict(self), "config": self.config.model_dump(mode="json"), "runs": str(self.runs)}
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> WorkOrder:
        values: dict[str, Any] = json.loads(text)
        config = StudyConfig.model_validate(values["config"])
        return cls(**{**values, "config": config, "runs": Path(values["runs"])})
