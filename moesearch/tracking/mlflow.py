"""MLflow as a view of a study: one experiment, a flat run per trial, one summary run.

Results are never read back from here. Runs are addressed by their ids through a client, never through MLflow's global
active run, so several trials can be open in one process. Nested runs would vanish from MLflow's charts, so there are
none.

A tracker lives as long as its worker: making one costs 1.5 s, almost all of it the import of MLflow; a batch of
metrics costs 5 ms (measured on two cores, SQLite).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, assert_never

from moesearch.config.secrets import hide_secrets
from moesearch.errors import TrackingError
from moesearch.tracking.database import default_tracking_uri, failures, is_server, open_client, prepare
from moesearch.tracking.labels import as_text

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

__all__ = ["MLflowTracker", "RunStatus", "default_tracking_uri", "prepare", "run_status"]

RunStatus = Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"]

# MLflow's limits: characters of a parameter's value, of a tag's value, of a name.
MAX_PARAM_CHARS = 6000
MAX_TAG_CHARS = 8000
MAX_NAME_CHARS = 250

DEFAULT_PORT = 5000
DEFAULT_PAGE = f"http://127.0.0.1:{DEFAULT_PORT}"
"""Where `python -m moesearch.dashboard` serves MLflow unless the port is taken."""

DIGEST_CHARS = 12
"""Characters of a corpus' sha256 that name it in MLflow's narrow column."""

_EXPERIMENT_TAGS = {
    # Opens the experiment on its runs and charts instead of on traces of language-model calls.
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.experiment.primaryMetric.name": "val_loss",
    "mlflow.experiment.primaryMetric.greaterIsBetter": "False",
}

_RUN_TAGS = {"mlflow.source.name": "moesearch", "mlflow.source.type": "LOCAL"}


def run_status(trial_state: Literal["RUNNING", "WAITING", "COMPLETE", "PRUNED", "FAIL"]) -> RunStatus:
    """MLflow's status of a run whose trial is in this Optuna state, as Optuna's own callback maps them."""
    match trial_state:
        case "RUNNING":
            return "RUNNING"
        case "WAITING":
            return "SCHEDULED"
        case "COMPLETE":
            return "FINISHED"
        case "PRUNED":
            return "KILLED"
        case "FAIL":
            return "FAILED"
        case _:
            assert_never(trial_state)


class MLflowTracker:
    """Writes the runs of one experiment. Safe to use from several threads; make one in each process.

    Every method raises TrackingError, and nothing else, when MLflow fails.
    """

    def __init__(self, tracking_uri: str, experiment_name: str, artifacts: str | Path) -> None:
        """Open the experiment, creating it if need be. ``artifacts``: a folder or URL; a server has its own."""
        self._tracking_uri = tracking_uri
        with failures(tracking_uri, f"open the experiment {experiment_name}"):
            self._client = open_client(tracking_uri)
            location = None if is_server(tracking_uri) else _as_uri(str(artifacts))
            self._experiment_id = _open_experiment(self._client, experiment_name, location)

    @property
    def experiment_id(self) -> str:
        return self._experiment_id

    @property
    def experiment_url(self) -> str:
        """Address of the experiment's page: on the server, or as `moesearch.dashboard` serves a database by default."""
        page = self._tracking_uri.rstrip("/") if is_server(self._tracking_uri) else DEFAULT_PAGE
        return hide_secrets(f"{page}/#/experiments/{self._experiment_id}")

    def start_run(self, name: str, params: Mapping[str, object], tags: Mapping[str, str]) -> str:
        """Create a RUNNING run and return its id. Parameters cannot be changed later; tags can."""
        with self._failures(f"start the run {name}"):
            run = self._client.create_run(self._experiment_id, run_name=name, tags={**_RUN_TAGS, **_clean_tags(tags)})
            self._log(run.info.run_id, params=params)
            return str(run.info.run_id)

    def resume_run(self, run_id: str) -> None:
        """Set a run RUNNING again: its trial continues."""
        with self._failures(f"resume the run {run_id}"):
            self._client.update_run(run_id, status="RUNNING")

    def pause_run(self, run_id: str) -> None:
        """Set a run SCHEDULED: its trial waits for a worker."""
        with self._failures(f"pause the run {run_id}"):
            self._client.update_run(run_id, status="SCHEDULED")

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int) -> None:
        """Log one value of each metric at a step (steps of training, so that curves are drawn over them).

        A value that is not finite is left out: MLflow would hide the whole curve that ends in it. The tag ``outcome``
        says of such a trial that it diverged.
        """
        with self._failures("log metrics"):
            self._log(run_id, metrics=metrics, step=step)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        with self._failures("set tags"):
            self._log(run_id, tags=tags)

    def log_dataset(self, run_id: str, name: str, sha256: str, context: str = "training") -> None:
        """Name the corpus of a run where MLflow shows datasets; ``sha256`` is of its text."""
        with self._failures(f"log the dataset {name}"):
            from mlflow.entities import Dataset, DatasetInput, InputTag

            dataset = Dataset(name=name, digest=sha256[:DIGEST_CHARS], source_type="local", source="{}")
            tags = [InputTag(key="mlflow.data.context", value=context)]
            self._client.log_inputs(run_id, [DatasetInput(dataset, tags)])

    def log_artifacts(self, run_id: str, folder: Path) -> None:
        """Attach the files of a folder, and of its folders, to a run."""
        with self._failures(f"attach {folder}"):
            self._client.log_artifacts(run_id, str(folder))

    def finish_run(self, run_id: str, status: RunStatus, tags: Mapping[str, str]) -> None:
        """End a run with a status (see ``run_status``) and its last tags."""
        with self._failures(f"finish the run {run_id}"):
            self._log(run_id, tags=tags)
            self._client.set_terminated(run_id, status)

    def log_summary(self, tags: Mapping[str, str], note: str, folder: Path) -> str:
        """Write the study's one summary run, with the report's folder attached; again replaces its values.

        Its numbers are tags: each metric that one run alone has would be a chart of one bar among the curves.
        ``note`` is Markdown, and becomes the description of the run and of the experiment.
        """
        with self._failures("write the summary"):
            run_id = self._summary_run()
            self.log_artifacts(run_id, folder)
            self.finish_run(run_id, "FINISHED", {**tags, "mlflow.note.content": note})
            self._client.set_experiment_tag(self._experiment_id, "mlflow.note.content", _cut(note, MAX_TAG_CHARS))
            return run_id

    @contextmanager
    def machine_metrics(self) -> Iterator[None]:
        """Record the load of this machine (CPU, memory, disk, network, GPUs) in the summary run while this lasts.

        A machine's load belongs to no single trial: several train on it at once. The run is SCHEDULED afterwards,
        until ``log_summary`` ends it.
        """
        with self._failures("record the machine's load"):
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            run_id = self._summary_run()
            self.resume_run(run_id)
            monitor: Any = SystemMetricsMonitor(  # type: ignore[no-untyped-call]
                run_id, resume_logging=True, tracking_uri=self._tracking_uri
            )
            monitor.start()
        try:
            yield
        finally:
            monitor.finish()
            self.pause_run(run_id)

    def _summary_run(self) -> str:
        """The study's, of which there is one whoever creates it: of two that were created at once, the first stays."""
        query = "tags.phase = 'summary'"
        created = None if self._runs(query) else self.start_run("summary", {}, {"phase": "summary"})
        runs = self._runs(query)
        first = str(min(runs, key=lambda run: (run.info.start_time, run.info.run_id)).info.run_id)
        if created is not None and created != first:
            self._client.delete_run(created)
        return first

    def running_runs(self) -> frozenset[str]:
        """Ids of the runs that MLflow takes to be RUNNING."""
        with self._failures("list the running runs"):
            return frozenset(str(run.info.run_id) for run in self._runs("attributes.status = 'RUNNING'"))

    def kill_lost_runs(self, live: Collection[str]) -> int:
        """Mark as KILLED each run that is RUNNING although no trial is: those not in ``live``. Returns how many.

        A worker that is killed cannot end its run, and nothing else does.
        """
        with self._failures("end lost runs"):
            lost = [run for run in self._runs("attributes.status = 'RUNNING'") if run.info.run_id not in live]
            for run in lost:
                self._client.set_terminated(run.info.run_id, "KILLED")
            return len(lost)

    def delete_runs(self) -> None:
        """Move every run of the experiment to MLflow's trash: the study starts afresh."""
        with self._failures("delete the runs of an earlier study"):
            for run in self._runs(""):
                self._client.delete_run(run.info.run_id)

    def _runs(self, query: str) -> list[Run]:
        runs: list[Run] = []
        token: str | None = None
        while True:
            page = self._client.search_runs([self._experiment_id], query, page_token=token)
            runs.extend(page)
            token = page.token
            if not token:
                return runs

    def _log(
        self,
        run_id: str,
        *,
        metrics: Mapping[str, float] | None = None,
        step: int = 0,
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """One batch; the client splits what is more than MLflow takes at once."""
        from mlflow.entities import Metric, Param, RunTag

        now_ms = int(time.time() * 1000)
        self._client.log_batch(
            run_id,
            [
                Metric(_clean_name(name), value, now_ms, step)
                for name, value in (metrics or {}).items()
                if math.isfinite(value)
            ],
            [Param(_clean_name(name), _cut(as_text(value), MAX_PARAM_CHARS)) for name, value in (params or {}).items()],
            [RunTag(name, value) for name, value in _clean_tags(tags or {}).items()],
        )

    def _failures(self, task: str) -> AbstractContextManager[None]:
        return failures(self._tracking_uri, task)


def _as_uri(place: str) -> str:
    return place if "://" in place else Path(place).absolute().as_uri()


def _open_experiment(client: MlflowClient, name: str, location: str | None) -> str:
    """The id of an experiment that is there and not in the trash, whatever other processes do meanwhile."""
    from mlflow.exceptions import MlflowException

    for _ in range(5):
        experiment = client.get_experiment_by_name(name)
        try:
            if experiment is None:
                return str(client.create_experiment(name, location, _EXPERIMENT_TAGS))
            if experiment.lifecycle_stage == "deleted":
                client.restore_experiment(experiment.experiment_id)
            return str(experiment.experiment_id)
        except MlflowException as error:
            # Another worker created or restored it in between: look again.
            if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
                raise
    raise TrackingError(f"the experiment {name} is created and deleted by turns")


def _clean_tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {_clean_name(name): _cut(value, MAX_TAG_CHARS) for name, value in tags.items()}


def _clean_name(name: str) -> str:
    """A name that MLflow takes for a metric, a parameter or a tag; it would use others as file paths."""
    cleaned = re.sub(r"[^\w./ -]", "_", name)[:MAX_NAME_CHARS]
    return "/".join(part if part.strip(".") else "_" for part in cleaned.split("/"))


def _cut(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"
