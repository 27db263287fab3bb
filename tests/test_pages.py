"""One real run, looked at in a real browser: the report, optuna-dashboard and MLflow, clicked and photographed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moesearch.config.loader import load_trial
from tests.pages import CHROMIUM, charts_page, experiment_id, launched_browser, loopback_page, served
from tests.test_run import STUDY

pytest.importorskip("playwright.sync_api", reason="no Playwright here; pip install -e .[dev] brings it")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (Debian: apt install chromium)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real_run")
    (folder / "text.txt").write_text("To be, or not to be, that is the question.\n" * 100)
    (folder / "tiny.yaml").write_text(STUDY.format(text=folder / "text.txt"))
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> dict[str, Any]:
    """What the command printed about the study, as JSON; its files lie in the folder."""
    done = _run(folder, "--workers", "1", "--json")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _run(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    places = ["--runs", str(folder / "runs"), "--reports", str(folder / "reports")]
    changes = ["--trials", "4", "--set", "confirm.top=2", "--set", "confirm.lr_search=false"]
    command = [sys.executable, "-m", "moesearch.run", str(folder / "tiny.yaml"), *changes, *places, *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_one_command_answers_the_question_of_a_study_file(run: dict[str, Any], folder: Path) -> None:
    assert run["finished"] == 4
    assert run["sentence"]
    assert len(run["verdict"]["test"]["losses"]) == 2
    assert len(run["verdict"]["test"]["sample"]) > 100
    report = folder / "reports" / "tiny"
    assert {"index.html", "summary.md", "trials.csv", "curves.csv", "best.yaml"} <= {p.name for p in report.iterdir()}
    assert load_trial(report / "best.yaml").moe.num_experts in (1, 2, 4)  # 1: the dense control


def test_the_same_command_again_finds_nothing_to_do(run: dict[str, Any], folder: Path) -> None:
    again = _run(folder, "--quiet")
    assert again.returncode == 0
    assert again.stdout.startswith("tiny: all 4 trials were done before; --trials N asks for more")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    with loopback_page(browser) as page:
        yield page


@pytest.fixture
def report(run: dict[str, Any], folder: Path) -> str:
    return (folder / "reports" / "tiny" / "index.html").as_uri()


@needs_browser
def test_the_report_opens_with_the_verdict_and_its_links_lead_to_their_sections(page: Any, report: str) -> None:
    page.goto(report)
    assert page.locator("p.lead").first.is_visible()
    for link in page.locator("nav a").all():
        link.click()
        assert page.locator(link.get_attribute("href")).bounding_box()["y"] < 400 or _is_at_the_end(page)


def _is_at_the_end(page: Any) -> bool:
    return bool(page.evaluate("scrollY + innerHeight >= document.documentElement.scrollHeight - 2"))


@needs_browser
def test_the_configuration_can_be_copied_without_a_mouse(page: Any, report: str) -> None:
    page.goto(report)
    button = page.get_by_role("button", name="Copy best.yaml")
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.getElementById('said').textContent === 'Copied'")


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_report_passes_an_accessibility_check_and_fits_its_screen(
    page: Any, report: str, scheme: str, width: int
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    page.goto(report)
    results = axe.Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@needs_browser
def test_the_report_prints(page: Any, report: str, tmp_path: Path) -> None:
    page.goto(report)
    page.pdf(path=tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").stat().st_size > 20_000


@pytest.fixture(scope="module")
def servers(run: dict[str, Any], folder: Path) -> Iterator[dict[str, str]]:
    with served(folder / "runs") as servers:
        yield servers


@needs_browser
def test_optuna_dashboard_shows_the_verdict_and_the_pictures(
    page: Any, servers: dict[str, str], run: dict[str, Any]
) -> None:
    page.goto(f"{servers['optuna']}/dashboard/studies/1/note")
    page.get_by_text(run["sentence"].partition(". ")[0][:60]).wait_for()
    page.goto(f"{servers['optuna']}/dashboard/studies/1/trials?numbers=0")
    page.get_by_text("Place").first.wait_for()
    page.locator("img[src*='/artifacts/']").first.wait_for()
    assert page.evaluate("document.querySelector(\"img[src*='/artifacts/']\").naturalWidth") > 0


@needs_browser
def test_optuna_dashboard_names_the_objective(page: Any, servers: dict[str, str]) -> None:
    page.goto(f"{servers['optuna']}/dashboard/studies/1")
    page.get_by_text("val_loss").first.wait_for()


@needs_browser
def test_mlflow_draws_the_trials_beside_one_another(page: Any, servers: dict[str, str]) -> None:
    charts_page(page, servers["mlflow"], experiment_id(servers["mlflow"], "tiny"))
    page.get_by_text("E4 k2 #0").first.wait_for(timeout=60_000)
    # MLflow draws those charts alone that are in sight: the losses come first.
    page.locator(".js-plotly-plot").first.wait_for()
    page.get_by_text("loss/val_loss").first.wait_for()
