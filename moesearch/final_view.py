"""A final run in MLflow, for ``python -m moesearch.train``."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from moesearch.cli import note
from moesearch.config.secrets import mask_url
from moesearch.errors import TrackingError

if TYPE_CHECKING:
    from moesearch.config.trial import TrialConfig
    from moesearch.data.tokens import TokenData
    from moesearch.tracking.mlflow import MLflowTracker, RunStatus
    from moesearch.training.points import EvalPoint

EXPERIMENT = "final"
"""MLflow's experiment of all runs of this command."""


class FinalView:
    """This run in MLflow: whatever goes wrong there costs the view, never the run."""

    def __init__(self, out: Path, runs: Path, config: TrialConfig, tokens: TokenData) -> None:
        from moesearch.config.flat import flatten
        from moesearch.tracking.database import default_tracking_uri, prepare
        from moesearch.tracking.mlflow import MLflowTracker

        self._out = out
        self._tracker: MLflowTracker | None = None
        self._run_id = ""
        uri = default_tracking_uri(runs)
        params = {**flatten(config.model_dump(mode="json")), "corpus_sha256": tokens.corpus_sha256}
        try:
            prepare(uri)
            self._tracker = MLflowTracker(uri, EXPERIMENT, runs / "artifacts" / EXPERIMENT)
            self._run_id = self._resumed(mask_url(uri)) or self._started(mask_url(uri), params)
        except TrackingError as error:
            self._leave_out(error)

    def _resumed(self, place: str) -> str | None:
        """The run of this folder's earlier command, if MLflow is where it was and still has it."""
        assert self._tracker is not None
        try:
            record = json.loads((self._out / "mlflow.json").read_text(encoding="utf-8"))
            if record["place"] != place:
                return None
            self._tracker.resume_run(record["run_id"])
            return str(record["run_id"])
        except (OSError, ValueError, KeyError, TypeError, TrackingError):
            return None

    def _started(self, place: str, params: Mapping[str, object]) -> str:
        from moesearch.training.checkpoints import write_durably

        assert self._tracker is not None
        run_id = self._tracker.start_run(self._out.name, params, {"phase": "final"})
        write_durably(self._out / "mlflow.json", json.dumps({"place": place, "run_id": run_id}).encode())
        return run_id

    def log(self, point: EvalPoint) -> None:
        from moesearch.tracking.labels import milestone_metrics

        metrics = milestone_metrics(asdict(point))
        self._try(lambda tracker: tracker.log_metrics(self._run_id, metrics, point.step))

    def pause(self) -> None:
        self._try(lambda tracker: tracker.pause_run(self._run_id))

    def finish(self, status: RunStatus, files: Sequence[Path] = ()) -> None:
        """End the run, with these files attached."""
        with tempfile.TemporaryDirectory() as folder:
            for path in files:
                shutil.copy(path, folder)
            self._try(lambda tracker: tracker.log_artifacts(self._run_id, Path(folder)))
        self._try(lambda tracker: tracker.finish_run(self._run_id, status, {}))

    def _try(self, write: Callable[[MLflowTracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            write(self._tracker)
        except TrackingError as error:
            self._leave_out(error)

    def _leave_out(self, error: TrackingError) -> None:
        self._tracker = None
        note(f"MLflow is left out from here on, training goes on: {error}")
