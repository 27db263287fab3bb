"""The report's section on several objectives."""

from __future__ import annotations

from moesearch.config.quantities import LOSSES, RAISED, Quantity
from moesearch.report.blocks import Section, Table, Text
from moesearch.report.numbers import OBJECTIVES, exact, loss
from moesearch.results.pareto import pareto_front
from moesearch.results.study import StudyResults


def pareto_section(results: StudyResults) -> Section | None:
    """The configurations that no other one beats in every objective; None for a study of one objective."""
    objectives = results.config.objectives
    if len(objectives) < 2:
        return None
    front = pareto_front(results)
    rows = tuple(
        (str(row["label"]), *(_number(name, float(row[name])) for name in objectives), exact(row["num_seeds"]))
        for row in front.to_dict("records")
    )
    wanted = ", ".join(
        f"{OBJECTIVES[name]} ({'higher' if name in RAISED else 'lower'} is better)" for name in objectives
    )
    text = (
        f"Objectives: {wanted}. No configuration is better than one of these in every objective; "
        "the first objective decides which of them are confirmed."
    )
    header = ("configuration", *(OBJECTIVES[name] for name in objectives), "seeds")
    table = Table("The Pareto front, best first by the first objective", header, rows, in_summary=True)
    return Section("pareto", "Front", "What can be had together", (Text(text), table))


def _number(quantity: Quantity, value: float) -> str:
    if quantity in LOSSES:
        return loss(value)
    return exact(value) if value.is_integer() else f"{value:.4g}"
