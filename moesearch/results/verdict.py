"""The verdict: which configuration is best, by how much, how sure that is; or that no difference was shown.

Its data are the confirmation runs, configurations x seeds, all trained on the same fresh seed indices: runs of one seed
index saw the same batches in the same order, and every run was evaluated on the whole validation split. That is a
randomised complete block design, and is analysed as one:

    val_loss[i, s] = mean + configuration[i] + seed[s] + residual[i, s]

The unit of replication is the training seed, never a block of the text: blocks of one run share its seed, and counting
them as replicates would pass noise off as evidence. The residual variance is pooled over the I configurations, and has
(I - 1)(S - 1) degrees of freedom: with 3 seeds a variance of each pair's own would have 2, and show almost nothing. The
price is that seed noise is taken to be alike. Simulated, two equal leaders of four configurations, 5 seeds: one is
called best in 5 % of studies, and in 12 % if the leaders' noise is twice that of the others.

The best configuration is chosen by the same data that then test it. So Holm's step-down correction counts every pair
among the configurations still in play, not only those with the best in them: c configurations make c(c - 1)/2 pairs.
Its last step, best against runner-up, is a plain two-sided test, which suffices for the claim "the one selected is
the best" (Gutmann and Maymin 1987, Annals of Statistics 15(1), 456-461).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

import numpy as np

from moesearch.results import wording
from moesearch.results.runs import ConfirmRun, Rate
from moesearch.results.statistics import (
    Table,
    detectable_difference,
    paired_deviation,
    seed_deviation,
    seeds_to_show,
    t_quantile,
    two_sided_p,
)

CONFIDENCE = 0.95

Unit = Literal["nats", "bits per byte"]
Conclusion = Literal["winner", "no_difference", "alone", "unconfirmed", "nothing"]


@dataclass(frozen=True)
class Candidate:
    """A configuration and what its runs gave, in the unit of the verdict."""

    fingerprint: str
    label: str
    params: Mapping[str, Any]
    num_seeds: int
    mean: float
    low: float | None
    high: float | None
    """Ends of the confidence interval of the mean over training seeds, from the pooled noise; None for one seed."""
    search_value: float | None
    is_baseline: bool = False
    is_control: bool = False
    rate: Rate | None = None


@dataclass(frozen=True)
class Comparison:
    """The best configuration against another; a positive ``difference`` is what the other one's loss is higher by."""

    fingerprint: str
    label: str
    is_baseline: bool
    difference: float
    low: float
    high: float
    """Ends of the interval of ``difference`` at the corrected confidence: it excludes 0 just if ``is_shown``."""
    percent: float
    """``difference`` in percent of the other configuration's loss."""
    p_value: float
    p_holm: float
    is_shown: bool
    blocks_ahead: int | None
    """Blocks of the validation text on which the best one's mean over seeds is lower, per byte; no evidence of its own.
    """
    num_blocks: int | None
    is_control: bool = False


@dataclass(frozen=True)
class OpenedTest:
    """The one look at the sealed test split, for the winner only: a loss and bits per byte for each of its seeds."""

    losses: tuple[float, ...]
    bits_per_byte: tuple[float, ...]
    opened_at: float
    """Unix seconds."""
    sample: str = ""
    """A text by the model of the first seed."""

    @property
    def mean_loss(self) -> float:
        return sum(self.losses) / len(self.losses)

    @property
    def mean_bits_per_byte(self) -> float:
        return sum(self.bits_per_byte) / len(self.bits_per_byte)


@dataclass(frozen=True)
class LeftOut:
    """A configuration that could not be compared, and why."""

    label: str
    reason: str


@dataclass(frozen=True)
class Verdict:
    """What a study found. Losses and differences are validation losses in ``unit``."""

    conclusion: Conclusion
    confidence: float = CONFIDENCE
    unit: Unit = "nats"
    """Nats per token, or bits per byte where tokenizers were compared."""
    ranking: tuple[Candidate, ...] = ()
    """The compared configurations, lowest mean first; unconfirmed: the search's leaders on their search values."""
    comparisons: tuple[Comparison, ...] = ()
    """The best of ``ranking`` against each other one, in the same order."""
    num_seeds: int = 0
    """Seeds per configuration, the same ones for all."""
    seed_noise: float | None = None
    """Standard deviation of one configuration's loss over training seeds, pooled over the configurations."""
    paired_noise: float | None = None
    """Standard deviation of the residual once the seed index is taken out; what the comparisons rest on."""
    shows_from: float | None = None
    """Smallest real difference between two configurations that this many seeds show four times out of five."""
    seeds_needed: int | None = None
    """Seeds per configuration with which best and runner-up could be told apart, if they differ by what was seen;
    None where it is told already, or beyond ``MAX_SEEDS``."""
    num_searched: int | None = None
    """Configurations among which the search chose."""
    left_out: tuple[LeftOut, ...] = ()
    test: OpenedTest | None = None

    @property
    def best(self) -> Candidate | None:
        return self.ranking[0] if self.ranking else None

    @property
    def runner_up(self) -> Comparison | None:
        return self.comparisons[0] if self.comparisons else None

    @property
    def leaders(self) -> tuple[str, ...]:
        """Labels of the best one and of those that it was not shown to beat."""
        return tuple(
            [candidate.label for candidate in self.ranking[:1]]
            + [other.label for other in self.comparisons if not other.is_shown]
        )

    @property
    def flattery(self) -> float | None:
        """The winner's-curse gap of the best one: search value minus what fresh seeds give at the same learning rate.

        Negative if luck flattered it; None where there is no such pair.
        """
        best = self.best
        if best is None or best.search_value is None or self.conclusion in ("unconfirmed", "nothing"):
            return None
        if best.rate is None or best.rate.lr == best.rate.searched_lr:
            return best.search_value - best.mean
        fresh = best.rate.loss_at_searched_lr
        return None if fresh is None else best.search_value - fresh

    @property
    def sentence(self) -> str:
        """The verdict in a sentence or two."""
        return wording.sentence(self)

    def to_json(self) -> dict[str, Any]:
        """JSON values, from which ``from_json`` makes an equal verdict."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        test = values["test"]
        return cls(
            **{
                **values,
                "ranking": tuple(map(_candidate, values["ranking"])),
                "comparisons": tuple(Comparison(**comparison) for comparison in values["comparisons"]),
                "left_out": tuple(LeftOut(**left_out) for left_out in values["left_out"]),
                "test": None
                if test is None
                else OpenedTest(
                    tuple(test["losses"]), tuple(test["bits_per_byte"]), test["opened_at"], test.get("sample", "")
                ),
            }
        )


def _candidate(values: Mapping[str, Any]) -> Candidate:
    rate = values.get("rate")
    return Candidate(**{**values, "rate": None if rate is None else Rate.from_json(rate)})


def decide(
    runs: Sequence[ConfirmRun],
    *,
    num_searched: int | None = None,
    confidence: float = CONFIDENCE,
    unit: Unit = "nats",
) -> Verdict:
    """The verdict from confirmation runs, in any order. Pure: same runs, same verdict.

    A configuration that diverged on any seed is left out, since the mean of its survivors would flatter it. The others
    are compared on the seed indices that all of them have; those with too few are left out while confirmation runs.
    """
    by_config, left_out = _complete_blocks(runs)
    if not by_config:
        return Verdict("nothing", confidence, unit, left_out=left_out, num_searched=num_searched)
    by_config = dict(sorted(by_config.items(), key=lambda item: _mean(item[1])))
    losses = np.array([[run.val_loss for run in config_runs] for config_runs in by_config.values()])
    num_configs, num_seeds = losses.shape
    verdict = Verdict(
        "unconfirmed" if num_seeds == 1 else "alone",
        confidence,
        unit,
        ranking=_rank(by_config, losses, confidence),
        num_seeds=num_seeds,
        seed_noise=None if num_seeds == 1 else seed_deviation(losses),
        num_searched=num_searched,
        left_out=left_out,
    )
    if num_seeds == 1 or num_configs == 1:
        return verdict
    noise = paired_deviation(losses)
    comparisons = _compare(by_config, losses, confidence)
    is_winner = all(comparison.is_shown for comparison in comparisons)
    gap = comparisons[0].difference
    return replace(
        verdict,
        conclusion="winner" if is_winner else "no_difference",
        comparisons=comparisons,
        paired_noise=noise,
        shows_from=float(detectable_difference(noise, num_configs, num_seeds, confidence)),
        seeds_needed=None if is_winner else seeds_to_show(gap, noise, num_configs, num_seeds, confidence),
    )


def _complete_blocks(runs: Sequence[ConfirmRun]) -> tuple[dict[str, list[ConfirmRun]], tuple[LeftOut, ...]]:
    """Runs of each comparable configuration on the seed indices that all of them share, and those left out."""
    by_config: dict[str, dict[int, ConfirmRun]] = {}
    for run in runs:
        by_config.setdefault(run.fingerprint, {})[run.seed_index] = run
    left_out: list[LeftOut] = []

    def leave_out(fingerprint: str, reason: str) -> None:
        label = next(iter(by_config.pop(fingerprint).values())).label
        left_out.append(LeftOut(label, reason))

    for fingerprint, by_seed in list(by_config.items()):
        num_diverged = sum(not math.isfinite(run.val_loss) for run in by_seed.values())
        if num_diverged:
            leave_out(fingerprint, f"diverged on {num_diverged} of {len(by_seed)} fresh seeds")
    # Confirmation may still be running. One seed tells nothing of noise, so the hindmost are left out until two are
    # shared, unless nobody has two.
    while len(shared := _shared_seeds(by_config)) < 2 and any(len(by_seed) > 1 for by_seed in by_config.values()):
        hindmost = min(by_config, key=lambda fingerprint: len(by_config[fingerprint]))
        leave_out(hindmost, f"{len(by_config[hindmost])} fresh seeds finished so far")
    complete = {fingerprint: [by_seed[seed] for seed in shared] for fingerprint, by_seed in by_config.items()}
    return (complete if shared else {}), tuple(left_out)


def _shared_seeds(by_config: Mapping[str, Mapping[int, ConfirmRun]]) -> list[int]:
    return sorted(set.intersection(*(set(by_seed) for by_seed in by_config.values()))) if by_config else []


def _mean(runs: Sequence[ConfirmRun]) -> float:
    return math.fsum(run.val_loss for run in runs) / len(runs)


def _rank(by_config: Mapping[str, Sequence[ConfirmRun]], losses: Table, confidence: float) -> tuple[Candidate, ...]:
    num_configs, num_seeds = losses.shape
    margin = None
    if num_seeds > 1:
        quantile = t_quantile(num_configs * (num_seeds - 1), (1 + confidence) / 2)
        margin = quantile * seed_deviation(losses) / math.sqrt(num_seeds)
    return tuple(
        Candidate(
            fingerprint,
            label=runs[0].label,
            params=dict(runs[0].params),
            num_seeds=num_seeds,
            mean=_mean(runs),
            low=None if margin is None else _mean(runs) - margin,
            high=None if margin is None else _mean(runs) + margin,
            search_value=runs[0].search_value,
            is_baseline=runs[0].is_baseline,
            is_control=runs[0].is_control,
            rate=runs[0].rate,
        )
        for fingerprint, runs in by_config.items()
    )


def _compare(by_config: Mapping[str, Sequence[ConfirmRun]], losses: Table, confidence: float) -> tuple[Comparison, ...]:
    """Holm's steps from the worst configuration, the easiest to beat, up to the runner-up."""
    num_configs, num_seeds = losses.shape
    degrees = (num_configs - 1) * (num_seeds - 1)
    standard_error = paired_deviation(losses) * math.sqrt(2 / num_seeds)
    means = losses.mean(1)
    first_runs = [runs[0] for runs in by_config.values()]
    blocks = _mean_blocks(by_config)
    comparisons: list[Comparison] = []
    goes_on, num_pairs, p_holm = True, 1, 0.0
    for index in range(num_configs - 1, 0, -1):
        if goes_on:  # Holm stops at the first step that shows nothing; the others then keep its correction.
            num_pairs = math.comb(index + 1, 2)
        difference = float(means[index] - means[0])
        p_value = two_sided_p(difference, standard_error, degrees)
        p_holm = max(p_holm, min(1.0, p_value * num_pairs))
        goes_on = goes_on and p_holm <= 1 - confidence
        margin = t_quantile(degrees, 1 - (1 - confidence) / num_pairs / 2) * standard_error
        comparisons.append(
            Comparison(
                first_runs[index].fingerprint,
                label=first_runs[index].label,
                is_baseline=first_runs[index].is_baseline,
                difference=difference,
                low=difference - margin,
                high=difference + margin,
                percent=100 * difference / float(means[index]),
                p_value=p_value,
                p_holm=p_holm,
                is_shown=goes_on,
                blocks_ahead=None if blocks is None else int((blocks[0] < blocks[index]).sum()),
                num_blocks=None if blocks is None else blocks.shape[1],
                is_control=first_runs[index].is_control,
            )
        )
    return tuple(reversed(comparisons))


def _mean_blocks(by_config: Mapping[str, Sequence[ConfirmRun]]) -> Table | None:
    """Loss of each configuration on each block of the text, mean over its seeds; None unless every run has them."""
    lengths = {len(run.block_losses) for runs in by_config.values() for run in runs}
    if len(lengths) != 1 or 0 in lengths:
        return None
    return np.array([np.mean([run.block_losses for run in runs], axis=0) for runs in by_config.values()])
