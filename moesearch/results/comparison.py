"""Several studies side by side: what each found, whether their bests differ, and what was not alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from moesearch.config.flat import flatten
from moesearch.config.quantities import Loss
from moesearch.config.study import StudyConfig
from moesearch.results.compute import compute_spent
from moesearch.results.study import StudyResults
from moesearch.results.verdict import CONFIDENCE

# What a study is about, not how it was run.
_SETTINGS = ("objective", "num_trials", "sampler", "pruner", "base", "search", "confirm")


@dataclass(frozen=True)
class Found:
    """The best configuration of one study, and what finding it took."""

    study: str
    label: str
    """Empty before a trial has finished."""
    losses: tuple[float, ...]
    """Validation losses in the comparison's unit: of its confirmation runs, else of its trials in the search."""
    is_confirmed: bool
    flops_per_token: float
    active_params: float
    total_params: float
    num_trials: int
    active_flops: float
    """Training FLOPs of the whole study."""
    wall_seconds: float

    @property
    def mean(self) -> float:
        return float(np.mean(self.losses)) if self.losses else float("nan")

    @property
    def seed_noise(self) -> float | None:
        """Standard deviation over its own seeds; None for one."""
        return float(np.std(self.losses, ddof=1)) if len(self.losses) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of the mean over seeds, from its own deviation; None for one seed."""
        if len(self.losses) < 2:
            return None
        low, high = stats.t.interval(
            CONFIDENCE, len(self.losses) - 1, loc=self.mean, scale=stats.sem(np.asarray(self.losses))
        )
        return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """The bests of two studies, each confirmed on several seeds, the lower mean first."""

    better: str
    other: str
    difference: float
    low: float
    high: float
    p_holm: float
    is_shown: bool


@dataclass(frozen=True)
class Comparison:
    """Studies side by side, in the order in which they were named."""

    loss: Loss
    """In which losses are compared: bits per byte where the studies' tokens differ, else nats per token."""
    found: tuple[Found, ...]
    differences: tuple[Difference, ...]
    obstacles: tuple[str, ...]
    """Why losses of these studies must not be compared, or only with care."""
    settings: Mapping[str, tuple[str, ...]]
    """Dotted path of a study file -> what each study says there, where not all say the same."""

    @property
    def is_comparable(self) -> bool:
        """Whether all losses are of the same text."""
        return not any(obstacle.startswith("Not comparable") for obstacle in self.obstacles)


def compare(studies: Sequence[StudyResults]) -> Comparison:
    """Compare the bests of studies by Welch's test, which takes neither equal noise nor paired seeds for granted.

    Holm's correction is over all pairs. The seeds of two studies are not paired, so an interval here is wider than
    that of a comparison within one study.
    """
    loss: Loss = "val_bpb" if _have_different_tokens(studies) else "val_loss"
    found = tuple(_found(results, loss) for results in studies)
    obstacles = tuple(_obstacles(studies))
    comparable = not any(obstacle.startswith("Not comparable") for obstacle in obstacles)
    return Comparison(loss, found, _differences(found) if comparable else (), obstacles, _settings(studies))


def _have_different_tokens(studies: Sequence[StudyResults]) -> bool:
    """Whether a token of one study may be another text than a token of the next, or of the same study's next trial."""
    tokens = {(results.config.base.data.tokenizer, results.config.base.data.vocab_size) for results in studies}
    searched = {"data.tokenizer", "data.vocab_size"}
    return len(tokens) > 1 or any(searched & set(results.config.search) for results in studies)


def _found(results: StudyResults, loss: Loss) -> Found:
    verdict = results.verdict
    best = verdict.best
    row: Mapping[Any, Any] = {}
    losses: tuple[float, ...] = ()
    is_confirmed = verdict.conclusion not in ("unconfirmed", "nothing")
    if best is not None:
        row = results.costs.reindex([best.fingerprint]).iloc[0].to_dict()
        runs = results.confirm if is_confirmed else results.trials
        runs = runs[(runs["outcome"] == "complete") & (runs["fingerprint"] == best.fingerprint)]
        losses = tuple(map(float, runs[loss]))
    return Found(
        study=results.name,
        label="" if best is None else best.label,
        losses=losses,
        is_confirmed=is_confirmed,
        flops_per_token=float(row.get("flops_per_token", np.nan)),
        active_params=float(row.get("active_params", np.nan)),
        total_params=float(row.get("total_params", np.nan)),
        num_trials=results.num_finished,
        active_flops=compute_spent(results).active_flops,
        wall_seconds=results.wall_seconds,
    )


def _differences(found: Sequence[Found]) -> tuple[Difference, ...]:
    ready = [each for each in found if each.is_confirmed and len(each.losses) > 1]
    pairs = [tuple(sorted(pair, key=lambda each: each.mean)) for pair in combinations(ready, 2)]
    tests = [stats.ttest_ind(other.losses, better.losses, equal_var=False) for better, other in pairs]
    order = np.argsort([test.pvalue for test in tests])
    differences: dict[int, Difference] = {}
    p_so_far = 0.0
    for step, index in enumerate(order):
        better, other = pairs[index]
        left = len(pairs) - step
        p_so_far = max(p_so_far, min(1.0, left * float(tests[index].pvalue)))
        interval = tests[index].confidence_interval(1 - (1 - CONFIDENCE) / left)
        differences[int(index)] = Difference(
            better.study,
            other.study,
            other.mean - better.mean,
            float(interval.low),
            float(interval.high),
            p_so_far,
            p_so_far <= 1 - CONFIDENCE,
        )
    return tuple(differences[index] for index in range(len(pairs)))


def _obstacles(studies: Sequence[StudyResults]) -> Iterator[str]:
    if len({results.corpus.get("sha256") for results in studies}) > 1:
        yield "Not comparable: the studies are about different texts."
    elif _have_different_tokens(studies):
        yield "The tokenizers differ, so losses are compared in bits per byte: nats per token depend on the tokens."
    budgets = {tuple(results.config.base.budget.model_dump().items()) for results in studies}
    if len(budgets) > 1:
        yield "The budgets of a trial differ, so a lower loss may be longer training."
    if unconfirmed := [results.name for results in studies if results.verdict.conclusion in ("unconfirmed", "nothing")]:
        yield f"Not confirmed on fresh seeds, so flattered by luck: {', '.join(unconfirmed)}."


def _settings(studies: Sequence[StudyResults]) -> dict[str, tuple[str, ...]]:
    flat = [_texts(results.config) for results in studies]
    paths = dict.fromkeys(path for values in flat for path in values)
    rows = {path: tuple(values.get(path, "") for values in flat) for path in paths}
    return {path: row for path, row in rows.items() if len(set(row)) > 1}


def _texts(config: StudyConfig) -> dict[str, str]:
    """What a study file says, by dotted paths; the choices of a knob in one text."""
    values = config.model_dump(mode="json", include=set(_SETTINGS))
    values["search"] = {
        path: ", ".join(map(str, knob["choices"])) if knob["type"] == "categorical" else knob
        for path, knob in values["search"].items()
    }
    return {path: "" if value is None else str(value) for path, value in flatten(values).items()}
