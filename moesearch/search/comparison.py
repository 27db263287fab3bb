"""Strategies of search against each other on one table: compute until each recommends well, and how often it is wrong.

What counts is what a strategy would recommend at a moment, and what is true of that: the mean loss of the recommended
configuration over all its recorded seeds. So a lucky seed earns nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import optuna
from pydantic import ValidationError

from moesearch.config.messages import findings
from moesearch.config.study import StudyConfig
from moesearch.errors import InputError
from moesearch.results.runs import ConfirmRun
from moesearch.results.table import CurveTable
from moesearch.results.verdict import decide
from moesearch.search.replay import Reached, Replayed, Unit, replay
from moesearch.search.rivals import Pruner, Sampler, run_rival

WITHIN = 0.01
"""Nats from the table's best within which a recommendation is good."""
MARK = 0.67
"""Most compute that ours may need, as a part of the best rival's."""
NUM_RESAMPLES = 2000
_CONFIDENCE = 0.95
_HUNDREDTHS = 100
OURS = "auto+asha"
DEFAULT_TRIALS = 60

Ranking = Literal["mean", "luckiest"]
"""How a strategy ranks configurations: by the mean over the seeds that it trained, or by the best one of them."""


@dataclass(frozen=True)
class Strategy:
    """A way to search a table. ``study`` is run by this project's loop; without one, Optuna runs alone."""

    name: str
    ranking: Ranking
    study: StudyConfig | None = None
    rival: tuple[Sampler, Pruner] | None = None
    num_workers: int = 1

    def run(self, table: CurveTable, seed: int, horizon: float, unit: Unit) -> Replayed:
        """One repetition, under its own seed."""
        if self.study is not None:
            sampler = self.study.sampler.model_copy(update={"seed": seed})
            study = self.study.model_copy(update={"sampler": sampler})
            return replay(study, table, num_workers=self.num_workers, unit=unit, horizon=horizon)
        assert self.rival is not None
        return run_rival(table, *self.rival, seed=seed, horizon=horizon, unit=unit)


RIVALS = (
    Strategy("Optuna's defaults: TPE, median", "luckiest", rival=("tpe", "median")),
    Strategy("random", "luckiest", rival=("random", "none")),
    Strategy("TPE, successive halving", "luckiest", rival=("tpe", "halving")),
    Strategy("random, successive halving", "luckiest", rival=("random", "halving")),
    Strategy("TPE, Hyperband", "luckiest", rival=("tpe", "hyperband")),
    Strategy("random, Hyperband", "luckiest", rival=("random", "hyperband")),
)


def strategy(table: CurveTable, name: str, num_trials: int | None = None, num_workers: int = 1) -> Strategy:
    """A sampler and a pruner of this project by their names in a study file: ``auto+asha``.

    Raises:
        InputError: there is no such sampler or pruner, or it does not go with the table's study.
    """
    sampler, _, pruner = name.partition("+")
    values = {
        **table.config.model_dump(mode="json"),
        "num_trials": num_trials or DEFAULT_TRIALS,
        "sampler": {"type": sampler},
        "pruner": {"type": pruner or "none"},
        "confirm": {},
        "enqueue": [],
    }
    try:
        return Strategy(name, "mean", study=StudyConfig.model_validate(values), num_workers=num_workers)
    except ValidationError as error:
        found = findings(StudyConfig, values, error)
        raise InputError(f"--strategy {name}: {'; '.join(map(str, found))}") from None


def default_strategies(table: CurveTable, num_trials: int | None = None) -> tuple[Strategy, ...]:
    """Ours, and what others would run."""
    return (strategy(table, OURS, num_trials), *RIVALS)


def recommendations(reached: Sequence[Reached], ranking: Ranking) -> Iterator[tuple[float, str]]:
    """What a strategy would recommend after each milestone: (compute spent, fingerprint).

    Of the configurations that came furthest, the one with the lowest loss there.
    """
    losses: dict[str, tuple[int, list[float]]] = {}
    places: dict[str, tuple[int, float]] = {}
    for now in reached:
        furthest, there = losses.get(now.fingerprint, (0, []))
        if now.milestone > furthest:
            losses[now.fingerprint] = (now.milestone, [now.loss])
        elif now.milestone == furthest:
            there.append(now.loss)
        else:
            yield now.spent, min(places, key=places.__getitem__)
            continue
        furthest, there = losses[now.fingerprint]
        loss = min(there) if ranking == "luckiest" else sum(there) / len(there)
        places[now.fingerprint] = (-furthest, loss)
        yield now.spent, min(places, key=places.__getitem__)


@dataclass(frozen=True)
class Repetition:
    """One run of a strategy. Compute is in parts of what training every configuration once costs."""

    compute: float
    """From which on the recommendation stayed within ``WITHIN`` of the table's best; infinite if it never did."""
    regret: npt.NDArray[np.float64]
    """True loss of the recommendation above the table's best, at each hundredth of the horizon; infinite before any."""
    claims: bool
    """Whether it names a best configuration at the end."""
    is_wrong: bool
    """Whether it names one although it trained a truly better one to the end."""


def repeat(strategy: Strategy, table: CurveTable, seed: int, unit: Unit) -> Repetition:
    """Run a strategy once, until it has spent what training every configuration of the table once costs."""
    whole = whole_cost(table, unit)
    replayed = strategy.run(table, seed, whole, unit)
    spent, regret = [], []
    for moment, fingerprint in recommendations(replayed.reached, strategy.ranking):
        spent.append(moment / whole)
        regret.append(table.true_losses[fingerprint] - table.best_loss)
    good = _good_from(spent, regret)
    named = _named(strategy, replayed, table, seed)
    better = {key for key in _complete(replayed, table) if named and table.true_losses[key] < table.true_losses[named]}
    return Repetition(good, _at_hundredths(spent, regret), named is not None, bool(better))


def _good_from(spent: Sequence[float], regret: Sequence[float]) -> float:
    good = math.inf
    for moment, value in zip(reversed(spent), reversed(regret), strict=True):
        if value > WITHIN:
            break
        good = moment
    return good


def whole_cost(table: CurveTable, unit: Unit) -> float:
    """Compute of training every configuration of the table once."""
    return sum(curves[0].points[-1][unit] for curves in table.seeds.values())


def _at_hundredths(spent: Sequence[float], regret: Sequence[float]) -> npt.NDArray[np.float64]:
    last = np.searchsorted(spent, np.linspace(0, 1, _HUNDREDTHS + 1), side="right") - 1
    return np.where(last < 0, math.inf, np.asarray(regret)[np.maximum(last, 0)])


def _complete(replayed: Replayed, table: CurveTable) -> dict[str, list[float]]:
    """The losses of configurations that were trained to the end."""
    last = table.config.base.budget.milestones
    found: dict[str, list[float]] = {}
    for reached in replayed.reached:
        if reached.milestone == last:
            found.setdefault(reached.fingerprint, []).append(reached.loss)
    return found


def _named(strategy: Strategy, replayed: Replayed, table: CurveTable, seed: int) -> str | None:
    """The configuration that is called the best at the end; None if no difference is claimed."""
    complete = _complete(replayed, table)
    if strategy.study is None:
        return min(complete, key=lambda key: min(complete[key]), default=None)
    confirm = strategy.study.confirm
    leaders = sorted(complete, key=lambda key: sum(complete[key]) / len(complete[key]))[: confirm.top]
    verdict = decide(_confirmed(leaders, table, confirm.seeds, np.random.default_rng(seed)))
    return verdict.ranking[0].fingerprint if verdict.conclusion == "winner" else None


def _confirmed(
    leaders: Sequence[str], table: CurveTable, num_seeds: int, draw: np.random.Generator
) -> list[ConfirmRun]:
    """Confirmation on fresh seeds, which a table does not have: the truth and residuals like those of its seeds."""
    residuals = np.array(
        [
            (curve.final_loss - table.true_losses[key]) * math.sqrt(len(curves) / (len(curves) - 1))
            for key, curves in table.seeds.items()
            for curve in curves
            if len(curves) > 1
        ]
    )
    return [
        ConfirmRun(key, table.label(key), {}, index, table.true_losses[key] + draw.choice(residuals))
        for key in leaders
        for index in range(num_seeds)
    ]


def summary(repetitions: Sequence[Repetition]) -> dict[str, Any]:
    """What the repetitions of a strategy say, as JSON values; an infinite number of compute is null."""
    compute = np.array([repetition.compute for repetition in repetitions])
    regret = np.median([repetition.regret for repetition in repetitions], axis=0)
    return {
        "compute": finite(np.median(compute)),
        "compute_interval": [finite(end) for end in interval(resampled_medians(compute, 0))],
        "compute_quartiles": [finite(end) for end in _quantiles(compute, (0.25, 0.75))],
        "reached": float(np.isfinite(compute).mean()),
        "claims": float(np.mean([repetition.claims for repetition in repetitions])),
        "wrong_verdicts": float(np.mean([repetition.is_wrong for repetition in repetitions])),
        "median_regret": [finite(value) for value in regret[::5]],
    }


def resampled_medians(values: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.float64]:
    """Medians of bootstrap samples (Efron 1979)."""
    draws = np.random.default_rng(seed).integers(len(values), size=(NUM_RESAMPLES, len(values)))
    return np.asarray(np.median(values[draws], axis=1))


def interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of the values."""
    low, high = _quantiles(values, ((1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2))
    return low, high


def _quantiles(values: npt.NDArray[np.float64], at: Sequence[float]) -> list[float]:
    """Quantiles that are values themselves, so that infinite ones stay what they are."""
    return [float(value) for value in np.quantile(values, at, method="inverted_cdf")]


def finite(value: float) -> float | None:
    """Rounded for JSON, which knows no infinity."""
    return round(float(value), 6) if math.isfinite(value) else None


def compare(table: CurveTable, strategies: Sequence[Strategy], *, repetitions: int, unit: Unit) -> dict[str, Any]:
    """Repeat every strategy, and set the first against the best of the rivals, if there are any; JSON values."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    runs = {one.name: [repeat(one, table, seed, unit) for seed in range(repetitions)] for one in strategies}
    found: dict[str, Any] = {
        "table": {
            "study": table.config.name,
            "configurations": len(table.seeds),
            "curves": len(table.curves),
            "best": table.label(min(table.true_losses, key=table.true_losses.__getitem__)),
            "best_loss": round(table.best_loss, 6),
            "within": sum(loss - table.best_loss <= WITHIN for loss in table.true_losses.values()),
            "seed_noise": round(table.seed_noise, 6),
            "whole_cost": whole_cost(table, unit),
        },
        "within_nats": WITHIN,
        "unit": unit,
        "repetitions": repetitions,
        "strategies": {name: summary(repeated) for name, repeated in runs.items()},
    }
    names = [one.name for one in strategies if one.rival is not None]
    if names:
        ours, *others = (np.array([one.compute for one in runs[name]]) for name in (strategies[0].name, *names))
        best = min(range(len(others)), key=lambda index: float(np.median(others[index])))
        ratio = float(np.median(ours) / np.median(others[best]))
        # Each side is resampled on its own, since repetitions of two strategies share nothing but a number.
        ratios = resampled_medians(ours, 1) / resampled_medians(others[best], 2)
        found |= {
            "compute_vs_best_rival": finite(ratio),
            "compute_vs_best_rival_interval": [finite(end) for end in interval(ratios)],
            "best_rival": names[best],
            "marks": {"compute_vs_best_rival": {"mark": f"at most {MARK}", "is_met": ratio <= MARK}},
        }
    return found


def comparison_lines(found: Mapping[str, Any]) -> list[str]:
    """The comparison for a person."""
    table, width = found["table"], max(map(len, found["strategies"]))
    lines = [
        f"{table['study']}: {table['configurations']} configurations, {table['curves']} curves, seed noise "
        f"{table['seed_noise']:.4f}; best {table['best']}, {table['best_loss']:.4f} nats, {table['within']} within "
        f"{found['within_nats']:g}",
        f"compute until the recommendation is within {found['within_nats']:g} nats of the best, in percent of training "
        f"every configuration once ({table['whole_cost']:.3g} {found['unit']}); {found['repetitions']} repetitions",
        f"  {'':{width}}  median  95 % interval  reached  wrong verdicts",
    ]
    for name, values in found["strategies"].items():
        low, high = values["compute_interval"]
        lines.append(
            f"  {name:{width}}  {_percent(values['compute'])}  {_percent(low)} to {_percent(high)}  "
            f"{100 * values['reached']:5.0f} %  {100 * values['wrong_verdicts']:5.0f} %"
        )
    if "best_rival" in found:
        low, high = found["compute_vs_best_rival_interval"]
        is_met = found["marks"]["compute_vs_best_rival"]["is_met"]
        lines.append(
            f"{next(iter(found['strategies']))} needs {found['compute_vs_best_rival']:.2f} of the compute of the best "
            f"other one, {found['best_rival']} (95 % interval {low:.2f} to {high:.2f}; mark: at most {MARK}, "
            f"{'met' if is_met else 'missed'})"
        )
    return lines


def _percent(value: float | None) -> str:
    return "  never" if value is None else f"{100 * value:5.1f} %"
