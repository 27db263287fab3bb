"""What each value of a knob does to the loss, the other knobs evened out."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from moesearch.config.knobs import CategoricalKnob, Knob
from moesearch.config.labels import short_value
from moesearch.results.study import StudyResults

MAX_LEVELS = 8
"""A numeric knob with more distinct values than this is cut into ``NUM_BINS`` ranges of equally many trials."""
NUM_BINS = 4
MIN_DEGREES = 3
"""Trials beyond the number of fitted effects that evening out takes."""


@dataclass(frozen=True)
class Effects:
    """Complete trials of a study, by the levels of its knobs."""

    values: pd.Series[float]
    """Objective of each complete trial, indexed by trial number."""
    levels: pd.DataFrame
    """Same index, a column per knob: its value as an ordered category of names."""
    contributions: pd.DataFrame | None
    """Same shape: what the fitted additive model says that each knob adds; None where it cannot be fitted."""

    @property
    def is_evened_out(self) -> bool:
        return self.contributions is not None

    @property
    def varied(self) -> tuple[str, ...]:
        """Knobs that took at least two values."""
        return tuple(str(path) for path in self.levels.columns if self.levels[path].nunique() > 1)

    def evened_out(self, *paths: str) -> pd.Series[float]:
        """The values without what knobs other than ``paths`` contribute, so that their uneven mix does not mislead.

        Trials of a search are no balanced design: if the better initialisation was tried more often with 16 experts,
        plain means would credit the experts for it.
        """
        if self.contributions is None:
            return self.values
        return self.values - self.contributions.drop(columns=list(paths)).sum(axis=1)


def knob_effects(results: StudyResults) -> Effects:
    """Levels of each knob and, if the trials suffice, the least-squares fit of an additive model over them."""
    complete = results.trials[results.trials["outcome"] == "complete"].set_index("number")
    levels = pd.DataFrame(
        {path: _levels(complete[path], knob) for path, knob in results.config.search.items()}, index=complete.index
    )
    return Effects(complete["value"], levels, _contributions(complete["value"], levels))


def _levels(values: pd.Series[Any], knob: Knob) -> pd.Series[Any]:
    if isinstance(knob, CategoricalKnob):
        names = [short_value(choice) for choice in knob.choices]
    else:
        distinct = sorted(set(values))
        if len(distinct) > MAX_LEVELS:
            return _ranges(values.astype(float))
        names = [short_value(value) for value in distinct]
    levels = pd.Categorical([short_value(value) for value in values], list(dict.fromkeys(names)), ordered=True)
    return pd.Series(levels, values.index)


def _ranges(values: pd.Series[float]) -> pd.Series[Any]:
    edges = np.unique(np.quantile(values, np.linspace(0, 1, NUM_BINS + 1)))
    names = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)]
    # The first range has its low end in it.
    places = np.clip(np.searchsorted(edges, values, side="left") - 1, 0, len(names) - 1)
    return pd.Series(
        pd.Categorical([names[place] for place in places], list(dict.fromkeys(names)), ordered=True), values.index
    )


def _contributions(values: pd.Series[float], levels: pd.DataFrame) -> pd.DataFrame | None:
    """Fit value = mean + sum over knobs of an effect per level, each knob's effects with mean 0 over its levels."""
    varied = [path for path in levels.columns if levels[path].nunique() > 1]
    dummies = {path: pd.get_dummies(levels[path].cat.remove_unused_categories(), dtype=float) for path in varied}
    num_effects = 1 + sum(dummy.shape[1] - 1 for dummy in dummies.values())
    if len(values) < num_effects + MIN_DEGREES:
        return None
    # The first level of each knob is the reference: with all of them the columns would be linearly dependent.
    design = np.column_stack([np.ones(len(values)), *(dummy.iloc[:, 1:] for dummy in dummies.values())])
    effects, _, rank, _ = np.linalg.lstsq(design, values.to_numpy(), rcond=None)
    if rank < num_effects:
        return None  # two knobs always moved together
    contributions = pd.DataFrame(0.0, index=levels.index, columns=levels.columns)
    start = 1
    for path, dummy in dummies.items():
        by_level = np.concatenate([[0.0], effects[start : start + dummy.shape[1] - 1]])
        contributions[path] = dummy.to_numpy() @ (by_level - by_level.mean())
        start += dummy.shape[1] - 1
    return contributions
