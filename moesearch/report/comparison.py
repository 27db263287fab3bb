"""The page that sets several studies side by side."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from moesearch.report import figures
from moesearch.report.blocks import Block, Gallery, Picture, Section, Table, Text
from moesearch.report.canvas import BEST, OTHER, new_figure
from moesearch.report.numbers import MISSING, OBJECTIVES, compact, duration, exact, loss
from moesearch.results.comparison import Comparison, Found
from moesearch.results.study import UNITS, StudyResults


def comparison_sections(comparison: Comparison, studies: Sequence[StudyResults]) -> tuple[Section, ...]:
    """The answer, the studies in a table, what was not alike."""
    answer: list[Block] = [Text(sentence(comparison), "lead")]
    answer += [Text(obstacle, "note") for obstacle in comparison.obstacles]
    sections = [Section("verdict", "Verdict", "Verdict", tuple(answer)), _side_by_side(comparison, studies)]
    if comparison.settings:
        header = ("setting", *(found.study for found in comparison.found))
        rows = tuple((path, *(value or MISSING for value in row)) for path, row in comparison.settings.items())
        table = Table("Where the study files differ", header, rows, num_names=len(header))
        sections.append(Section("settings", "Settings", "What was not alike", (table,)))
    return tuple(sections)


def sentence(comparison: Comparison) -> str:
    """Which study's best is lowest, or that no difference was shown, or why that cannot be said."""
    if not comparison.is_comparable:
        return "Losses of these studies cannot be compared."
    ranked = sorted((found for found in comparison.found if found.losses), key=lambda found: found.mean)
    if len(ranked) < 2:
        return "Fewer than two of these studies have a result yet."
    first = ranked[0]
    own = [each for each in comparison.differences if each.better == first.study]
    if not own:
        return f"{first.study} has the lowest loss so far, {loss(first.mean)} with {first.label}; nothing was tested."
    closest = min(own, key=lambda each: each.difference)
    against = f"{closest.difference:.4f} {UNITS[comparison.loss]} below that of {closest.other}"
    interval = f"{closest.low:.4f} to {closest.high:.4f}"
    if all(each.is_shown for each in own):
        return f"The best of {first.study}, {first.label}, is {against} (95 % interval {interval})."
    return (
        f"No difference was shown: the best of {first.study}, {first.label}, is {against}, and the 95 % interval is "
        f"{interval}."
    )


def _side_by_side(comparison: Comparison, studies: Sequence[StudyResults]) -> Section:
    header = (
        "study",
        "best",
        "bits per byte" if comparison.loss == "val_bpb" else "loss",
        "seeds",
        "seed noise",
        "FLOPs/token",
        "active",
        "total",
        "trials",
        "FLOPs",
        "time",
    )
    rows = tuple(_row(found) for found in comparison.found)
    blocks: list[Block] = []
    if comparison.is_comparable and any(found.losses for found in comparison.found):
        described = "; ".join(f"{found.study} {loss(found.mean)}" for found in comparison.found)
        pictures = (
            Picture(
                "bests",
                "The best of each study",
                _bests_figure(comparison),
                described,
                "Bar: 95 % interval of the mean over its own seeds. Dots: seeds.",
                in_summary=True,
            ),
            Picture(
                "best_curves",
                "How they learned",
                figures.best_curves_figure(studies, comparison.loss),
                f"{OBJECTIVES[comparison.loss]} over training tokens of the best trial of each study",
                in_summary=True,
            ),
        )
        blocks.append(Gallery(pictures))
    blocks.append(Table("What each study found, and what it took", header, rows, num_names=2, in_summary=True))
    return Section("studies", "Studies", "Side by side", tuple(blocks))


def _row(found: Found) -> tuple[str, ...]:
    interval = found.interval
    margin = "" if interval is None else f" ± {interval[1] - found.mean:.4f}"
    return (
        found.study,
        found.label or MISSING,
        f"{loss(found.mean)}{margin}",
        str(len(found.losses)),
        loss(found.seed_noise),
        exact(found.flops_per_token),
        exact(found.active_params),
        exact(found.total_params),
        exact(found.num_trials),
        compact(found.active_flops),
        duration(found.wall_seconds),
    )


def _bests_figure(comparison: Comparison) -> Figure:
    ranked = sorted((each for each in comparison.found if each.losses), key=lambda each: each.mean)
    figure, axes = new_figure(figures.rows_height([f"{each.study}: {each.label}" for each in ranked]))
    for row, each in enumerate(ranked):
        colour = BEST if row == 0 else OTHER
        axes.scatter(each.losses, [row] * len(each.losses), s=14, color=colour, alpha=0.55, linewidth=0, zorder=3)
        if each.interval is not None:
            axes.hlines(row, *each.interval, color=colour, linewidth=2.2, zorder=2)
        axes.vlines(each.mean, row - 0.16, row + 0.16, color=colour, linewidth=2.2, zorder=4)
        figures.row_label(axes, row, f"{each.study}: {each.label}", loss(each.mean), bold=row == 0)
    figures.style_rows(axes, len(ranked), OBJECTIVES[comparison.loss])
    return figure
