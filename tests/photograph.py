"""python -m tests.photograph RUNS REPORTS [FOLDER]: the README's pictures, from files of a real run.

Takes the first screens of a study's report, of optuna-dashboard and of MLflow, in a real browser, with the steps of the
browser tests.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.pages import charts_page, experiment_id, launched_browser, loopback_page, served

# Of a page in the README about 900 pixels are shown; twice as many keep letters sharp.
WIDTH, HEIGHT, SCALE = 1280, 800, 1.5
DRAWN_MS = 4_000
"""How long charts get to be drawn once they are there."""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    report = (args.reports / args.study / "index.html").absolute()
    with launched_browser() as browser, loopback_page(browser, WIDTH, HEIGHT, scale=SCALE) as page:
        page.goto(report.as_uri())
        _take(page, args.folder / "report.png")
        with served(args.runs) as servers:
            page.goto(f"{servers['optuna']}/dashboard/studies/{_optuna_id(args.runs, args.study)}")
            page.locator(".js-plotly-plot").nth(1).wait_for()
            _take(page, args.folder / "optuna_dashboard.png")
            charts_page(page, servers["mlflow"], experiment_id(servers["mlflow"], args.study))
            page.locator(".js-plotly-plot").nth(1).wait_for()
            _take(page, args.folder / "mlflow.png")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.photograph", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", type=Path, help="the folder of the run's databases")
    parser.add_argument("reports", type=Path, help="the folder of its reports")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("docs/images"), help="where the pictures go")
    parser.add_argument("--study", default="experts_topk")
    return parser.parse_args(argv)


def _optuna_id(runs: Path, study: str) -> int:
    from moesearch.search.storage import open_storage

    return open_storage(f"sqlite:///{runs / 'optuna.db'}", create=False).get_study_id_from_name(study)


def _take(page: Any, path: Path) -> None:
    """Photograph the window, in a palette of 256 colours: a third of the bytes."""
    from PIL import Image

    page.wait_for_timeout(DRAWN_MS)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.png"
        page.screenshot(path=whole)
        with Image.open(whole) as image:
            image.convert("RGB").quantize(256).save(path, optimize=True)
    print(path)


if __name__ == "__main__":
    main()
