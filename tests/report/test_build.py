import csv
import re
import threading
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from moesearch import report_cli
from moesearch.config.loader import load_trial
from moesearch.errors import UnknownStudyError
from moesearch.report.build import build_report, folder_name
from moesearch.search.storage import open_storage
from tests.results.stores import BASE_PARAMS, LEADERS, StoreBuilder, finished_study, study_config

INFEASIBLE = {**BASE_PARAMS, "moe.num_experts": 2, "moe.top_k": 4}
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class Page(HTMLParser):
    """A page's elements, and whether each is closed by its own end tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def values(self, name: str) -> list[str]:
        return [value for _, attrs in self.elements if (value := attrs.get(name)) is not None]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the report of a whole study."""
    return build_report(finished_study().storage, "experts_topk", tmp_path_factory.mktemp("reports"))


def read_page(folder: Path) -> str:
    return (folder / "index.html").read_text(encoding="utf-8")


def test_the_page_opens_with_the_verdict(finished: Path) -> None:
    page = read_page(finished)
    assert page.index("E16 k4 xavier noise-off is best") < page.index("Ranking</h2>")


def test_the_page_asks_nothing_of_the_network(finished: Path) -> None:
    page = Page(read_page(finished))
    links = page.values("src") + page.values("href") + page.values("xlink:href")
    assert links
    assert all(link.startswith("#") for link in links)
    assert "@import" not in read_page(finished)


def test_the_page_is_small(finished: Path) -> None:
    assert (finished / "index.html").stat().st_size < 500_000


def test_ids_are_unique_and_every_link_within_the_page_leads_somewhere(finished: Path) -> None:
    text = read_page(finished)
    ids = Page(text).values("id")
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for link in Page(text).values("href")} <= set(ids)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)


def test_every_drawing_is_described_in_words(finished: Path) -> None:
    page = Page(read_page(finished))
    labels = [attrs.get("aria-label") for _, attrs in page.elements if attrs.get("role") == "img"]
    assert len(labels) == sum(tag == "svg" for tag, _ in page.elements)
    assert all(label and len(label) > 30 for label in labels)


def test_drawings_take_every_colour_from_the_theme_except_those_of_the_two_heat_maps(finished: Path) -> None:
    svgs = re.findall(r"<svg.*?</svg>", read_page(finished), flags=re.DOTALL)
    own = [svg for svg in svgs if re.search(r"#[0-9a-f]{6}\b", svg)]
    assert len(svgs) > 8
    assert len(own) == 2


@pytest.mark.parametrize(
    "text",
    [
        "Winner&#39;s curse",
        "Seed noise",
        "The test split was opened once",
        "2,201,217",
        "saved by pruning",
        "python -m moesearch.export experts_topk -o best.yaml",
        "abab",
        "torch 2.13.0",
        "top_k must be at most num_experts",
        "Importance of each knob",
        "num_experts and top_k together",
        "not proven for depth",
    ],
)
def test_the_page_says(finished: Path, text: str) -> None:
    assert text in read_page(finished)


def test_the_summary_says_the_same_beside_pictures_that_are_there(finished: Path) -> None:
    summary = (finished / "summary.md").read_text(encoding="utf-8")
    assert "**E16 k4 xavier noise-off is best" in summary
    pictures = re.findall(r'src="([^"]+)"', summary)
    assert len(pictures) >= 5
    assert all((finished / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)


def test_rows_of_a_summarys_table_have_as_many_cells_as_its_header(finished: Path) -> None:
    rows = [line for line in (finished / "summary.md").read_text().splitlines() if line.startswith("|")]
    assert len(rows) > 10
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


def test_the_tables_hold_every_trial_and_every_evaluation(finished: Path) -> None:
    with (finished / "trials.csv").open(newline="") as file:
        trials = list(csv.DictReader(file))
    with (finished / "curves.csv").open(newline="") as file:
        curves = list(csv.DictReader(file))
    assert len(trials) == 31
    assert len(curves) == sum(int(trial["milestone"]) for trial in trials)
    assert {"moe.num_experts", "seed", "outcome", "value"} <= set(trials[0])


def test_best_yaml_is_the_recommended_configuration(finished: Path) -> None:
    config = load_trial(finished / "best.yaml")
    assert (config.moe.num_experts, config.moe.top_k, config.moe.noise) == (16, 4, False)


def no_trials(builder: StoreBuilder) -> None:
    pass


def waiting_only(builder: StoreBuilder) -> None:
    builder.add(outcome="waiting")


def infeasible_only(builder: StoreBuilder) -> None:
    builder.add(INFEASIBLE, "infeasible")


def running_only(builder: StoreBuilder) -> None:
    builder.add(outcome="running", milestone=0)
    builder.add(LEADERS[0], "running", milestone=2)
    builder.session()


def one_pruned(builder: StoreBuilder) -> None:
    builder.add(outcome="pruned", milestone=1)


def one_complete(builder: StoreBuilder) -> None:
    builder.add()


def equal_losses(builder: StoreBuilder) -> None:
    for params in LEADERS:
        builder.add(params, loss=2.0)
    builder.add_confirmation(LEADERS[:1])


def one_confirmation_run(builder: StoreBuilder) -> None:
    builder.add_experts_topk()
    builder.add_confirmation(LEADERS[:1], seeds=1)


def diverged_only(builder: StoreBuilder) -> None:
    builder.add(outcome="diverged", milestone=1, loss=float("nan"))


def tied_leaders(builder: StoreBuilder) -> None:
    for params, loss in zip(LEADERS, (2.1001, 2.1, 2.5, 2.6), strict=True):
        builder.add(params, loss=loss)
        for seed in range(3):
            noise = 0.004 * ((seed * 7 + LEADERS.index(params)) % 3)
            builder.add(params, loss=loss + noise, replicate=seed, confirm=True)


STAGES = [
    (no_trials, "No configuration has finished its training yet"),
    (waiting_only, "No configuration has finished"),
    (infeasible_only, "top_k must be at most num_experts"),
    (running_only, "0 of 24 trials, 2 more in training"),
    (one_pruned, "pruned at"),
    (one_complete, "E8 k2 kaiming noise-on leads with"),
    (equal_losses, "No other configuration was confirmed"),
    (one_confirmation_run, "not confirmed yet"),
    (diverged_only, "No configuration has finished"),
    (tied_leaders, "No difference was shown between the leaders"),
]


@pytest.mark.parametrize(("stage", "text"), STAGES, ids=[stage.__name__ for stage, _ in STAGES])
def test_a_report_can_be_built_at_any_stage(stage: Callable[[StoreBuilder], None], text: str, tmp_path: Path) -> None:
    builder = StoreBuilder()
    stage(builder)
    folder = build_report(builder.storage, "experts_topk", tmp_path)
    page = read_page(folder)
    assert text in page
    Page(page)
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL).lower().replace("provenan", "")
    assert (folder / "summary.md").stat().st_size > 0


def test_a_study_with_other_knobs_and_another_objective_has_its_report(tmp_path: Path) -> None:
    config = study_config(
        objective="val_bpb",
        search={
            "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
            "model.width": {"type": "int", "low": 16, "high": 256, "step": 16},
        },
    )
    builder = StoreBuilder(config=config)
    for number in range(20):
        builder.add(
            {"optim.lr": 1e-4 * 1.2**number, "model.width": 16 + 16 * (number * 7 % 16)}, loss=2 + 0.01 * number
        )
    page = read_page(build_report(builder.storage, "experts_topk", tmp_path))
    assert "validation bits per byte" in page
    assert "lr=0.0001 width=16" in page


def test_a_study_named_like_markup_is_harmless(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>"
    builder = StoreBuilder(name=name)
    builder.add_experts_topk(12)
    folder = build_report(builder.storage, name, tmp_path)
    page = read_page(folder)
    assert folder.parent == tmp_path
    assert "<script>alert" not in page
    assert "<script>" not in (folder / "summary.md").read_text()
    assert sum(tag == "script" for tag, _ in Page(page).elements) == 1


def test_values_that_look_like_markup_or_mathematics_stay_text(tmp_path: Path) -> None:
    config = study_config(search={"data.text": {"type": "categorical", "choices": ["<b>$x$ & |y|</b>", "$\\frac{"]}})
    builder = StoreBuilder(config=config)
    for number in range(12):
        builder.add({"data.text": config.search["data.text"].choices[number % 2]})  # type: ignore[union-attr]
    folder = build_report(builder.storage, "experts_topk", tmp_path)
    assert "<b>" not in read_page(folder)
    Page(read_page(folder))


@pytest.mark.parametrize("name", ["../../etc", "..", "/abs", ".hidden", "a/b"])
def test_no_name_leads_out_of_the_folder_of_reports(name: str) -> None:
    folder = folder_name(name)
    assert "/" not in folder
    assert not folder.startswith(".")
    assert folder


def test_a_reader_never_sees_half_a_page(tmp_path: Path) -> None:
    builder = StoreBuilder()
    builder.add()
    page = build_report(builder.storage, "experts_topk", tmp_path) / "index.html"
    seen: set[bool] = set()
    is_done = threading.Event()

    def read() -> None:
        while not is_done.is_set():
            seen.add(page.read_text(encoding="utf-8").rstrip().endswith("</html>"))
            time.sleep(0.001)

    reader = threading.Thread(target=read)
    reader.start()
    build_report(builder.storage, "experts_topk", tmp_path)
    is_done.set()
    reader.join()
    assert seen == {True}
    assert not [path.name for path in page.parent.iterdir() if path.name.startswith(".")]


def test_a_large_study_has_a_page_under_three_megabytes(tmp_path: Path) -> None:
    builder = StoreBuilder()
    builder.add_experts_topk(1000)
    page = build_report(builder.storage, "experts_topk", tmp_path) / "index.html"
    assert page.stat().st_size < 3_000_000


def test_a_best_configuration_of_a_deleted_study_does_not_stay(tmp_path: Path) -> None:
    builder = StoreBuilder()
    builder.add()
    assert (build_report(builder.storage, "experts_topk", tmp_path) / "best.yaml").exists()
    assert not (build_report(StoreBuilder().storage, "experts_topk", tmp_path) / "best.yaml").exists()


def test_an_unknown_study_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UnknownStudyError):
        build_report(StoreBuilder().storage, "no_such", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_builds_each_study_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    builder = StoreBuilder(storage=open_storage(f"sqlite:///{tmp_path / 'optuna.db'}"))
    builder.add()
    flags = ["--runs", str(tmp_path), "--reports", str(tmp_path / "reports")]
    assert report_cli.main(["experts_topk", *flags]) == 0
    assert Path(capsys.readouterr().out.strip()).is_file()


@pytest.mark.parametrize("num_knobs", [1, 6, 10])
def test_a_report_of_many_knobs_and_configurations_is_laid_out_without_a_warning(
    num_knobs: int, tmp_path: Path
) -> None:
    """Warnings are errors here: matplotlib warns of a figure that its labels leave no room."""
    fields: dict[str, list[Any]] = {
        "moe.router": ["softmax_after", "softmax_before", "sigmoid"],
        "moe.init_router": [None, "truncated_normal", "xavier_uniform", "kaiming_uniform", "normal"],
        "moe.load_balancing_loss_weight": [0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3],
        "moe.route_norm": [False, True],
        "moe.noise_std": [0.0, 0.1, 0.3, 1.0],
        "moe.input_jitter": [0.0, 0.01, 0.1],
        "moe.router_z_loss_weight": [0.0, 1e-4, 1e-3],
        "moe.bias_update_speed": [0.0, 1e-3],
        "optim.weight_decay": [0.0, 0.01, 0.1],
        "model.dropout": [0.0, 0.05, 0.1, 0.2],
    }
    chosen = dict(list(fields.items())[:num_knobs])
    search = {path: {"type": "categorical", "choices": choices} for path, choices in chosen.items()}
    builder = StoreBuilder(config=study_config(search=search, num_trials=60))
    for number in range(60):
        params = {
            path: choices[number * 7 // (place + 1) % len(choices)]
            for place, (path, choices) in enumerate(chosen.items())
        }
        builder.add(params, loss=2 + 0.001 * number)
    page = read_page(build_report(builder.storage, "experts_topk", tmp_path))
    assert "Importance of each knob" in page
