"""A real browser on pages of this machine, and the servers of a run's files: for tests and for photographs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moesearch.servers import free_port
from moesearch.tracking.labels import charts_route

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def launched_browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as engine:
        # Chromium's sandbox refuses to run as root, as which containers test.
        launched = engine.chromium.launch(
            executable_path=CHROMIUM, chromium_sandbox=os.getuid() != 0, args=["--disable-gpu"]
        )
        yield launched
        launched.close()


@contextmanager
def loopback_page(browser: Any, width: int = 1280, height: int = 900, *, scale: float = 1) -> Iterator[Any]:
    """A page of a window that reaches this machine alone; an error in a page's script is an error here."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, device_scale_factor=scale, permissions=[]
    )
    context.route(lambda url: not url.startswith(("http://127.0.0.1", "file:", "data:", "blob:")), lambda r: r.abort())
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert errors == []


@contextmanager
def served(runs: Path) -> Iterator[dict[str, str]]:
    """Addresses of optuna-dashboard and MLflow on a run's files."""
    ports = {"--port": free_port("127.0.0.1"), "--mlflow-port": free_port("127.0.0.1")}
    flags = [str(part) for flag in ports.items() for part in flag]
    command = [sys.executable, "-m", "moesearch.dashboard", "--runs", str(runs), "--no-browser", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Ctrl-C stops"):
                break
        try:
            yield {
                "optuna": f"http://127.0.0.1:{ports['--port']}",
                "mlflow": f"http://127.0.0.1:{ports['--mlflow-port']}",
            }
        finally:
            process.terminate()


def experiment_id(mlflow: str, study: str) -> str:
    api = f"{mlflow}/api/2.0/mlflow/experiments/get-by-name?experiment_name={study}"
    with urllib.request.urlopen(api) as answer:
        return str(json.load(answer)["experiment"]["experiment_id"])


def charts_page(page: Any, mlflow: str, experiment: str) -> None:
    """Open the charts of an experiment, and close the assistant that MLflow lays over them at a first visit."""
    page.goto(f"{mlflow}/{charts_route(experiment)}")
    page.get_by_placeholder("Search metric charts").wait_for(timeout=60_000)
    close = page.locator("[data-component-id='mlflow.assistant.chat_panel.close']")
    if close.count():
        close.first.click()
