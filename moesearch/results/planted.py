"""Studies of which the truth is known: how often the verdict claims a winner where none is, and finds one that is.

The losses are drawn, the rest is the verdict's own code. Seed noise has a standard deviation of 1 and is independent
from run to run, which is the hardest case: what runs of one seed index share, pairing takes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moesearch.results.runs import ConfirmRun
from moesearch.results.verdict import decide

NUM_STUDIES = 1000
DIFFERENCE = 3.0
"""Of the true winner to all others, in standard deviations of seed noise."""
NUM_CONFIGS = 5
"""As a study confirms by default: three leaders, the baseline, the dense control."""
NUM_SEEDS = 5
_FAR = 50.0


@dataclass(frozen=True)
class PlantedRates:
    """Parts of the simulated studies, 0 to 1."""

    false_winner_rate: float
    """A winner is claimed where all configurations are equal."""
    false_winner_rate_of_two: float
    """A winner is claimed where two are equal and the others far worse: the worst case for a claim."""
    false_claim_rate: float
    """Any difference at all is claimed where all configurations are equal."""
    true_winner_rate: float
    """The winner is claimed that is better than every other one by ``DIFFERENCE``."""
    num_studies: int
    num_configs: int
    num_seeds: int


def planted_rates(num_studies: int = NUM_STUDIES, *, seed: int = 0) -> PlantedRates:
    """Simulate studies of the default design."""
    draw = np.random.default_rng(seed)

    def verdicts(truth: Sequence[float]) -> list[tuple[bool, bool, str]]:
        found = [decide(_runs(draw, truth)) for _ in range(num_studies)]
        return [
            (
                verdict.conclusion == "winner",
                any(comparison.is_shown for comparison in verdict.comparisons),
                verdict.ranking[0].label,
            )
            for verdict in found
        ]

    equal = verdicts([0.0] * NUM_CONFIGS)
    two_equal = verdicts([0.0, 0.0] + [_FAR] * (NUM_CONFIGS - 2))
    one_better = verdicts([0.0] + [DIFFERENCE] * (NUM_CONFIGS - 1))
    return PlantedRates(
        false_winner_rate=_rate([is_winner for is_winner, _, _ in equal]),
        false_winner_rate_of_two=_rate([is_winner for is_winner, _, _ in two_equal]),
        false_claim_rate=_rate([is_shown for _, is_shown, _ in equal]),
        true_winner_rate=_rate([is_winner and best == "0" for is_winner, _, best in one_better]),
        num_studies=num_studies,
        num_configs=NUM_CONFIGS,
        num_seeds=NUM_SEEDS,
    )


def _runs(draw: np.random.Generator, truth: Sequence[float]) -> list[ConfirmRun]:
    losses = 100 + np.asarray(truth)[:, None] + draw.standard_normal((len(truth), NUM_SEEDS))
    return [
        ConfirmRun(str(config), str(config), {}, seed, float(loss))
        for config, row in enumerate(losses)
        for seed, loss in enumerate(row)
    ]


def _rate(happened: Sequence[bool]) -> float:
    return sum(happened) / len(happened)
