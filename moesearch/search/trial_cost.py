"""What a trial costs before it is trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, product

from moesearch.config.knobs import CategoricalKnob, FloatKnob, IntKnob, Knob
from moesearch.config.resolve import is_feasible, resolve
from moesearch.config.space import feasible_points
from moesearch.config.study import StudyConfig
from moesearch.config.trial import DataConfig, TrialConfig
from moesearch.data.corpora import load_facts
from moesearch.data.facts import TokenFacts, part_windows, token_facts
from moesearch.model import cost

MAX_LISTED_POINTS = 20_000
"""Larger spaces are not listed point by point: checking a point takes some 50 microseconds."""

_MAX_TRAINED = 8
"""Vocabularies that are trained to work out what a study costs."""


@dataclass(frozen=True)
class TrialCost:
    """FLOPs of one trial that is not pruned."""

    steps: int
    train_tokens: int
    train_flops: float
    eval_flops: float
    """Of the exact evaluations at its milestones."""

    @property
    def flops(self) -> float:
        return self.train_flops + self.eval_flops


def trial_cost(config: TrialConfig, text: TokenFacts) -> TrialCost | None:
    """The cost of a trial that was fitted to its text; None where its budget is in seconds."""
    steps = cost.num_steps(config, text.vocab_size)
    if steps is None:
        return None
    train_tokens = steps * config.tokens_per_step
    return TrialCost(
        steps,
        train_tokens,
        float(train_tokens * cost.training_flops_per_token(config, text.vocab_size)),
        float(_evaluated_tokens(config, text) * cost.flops_per_token(config, text.vocab_size)),
    )


def _evaluated_tokens(config: TrialConfig, text: TokenFacts) -> int:
    """Tokens that all evaluations of a trial read."""
    budget, context, whole = config.budget, config.model.context, text.val_tokens
    part = whole
    if budget.milestone_share < 1:
        part = context * len(part_windows(whole, context, budget.milestone_share))
    return (budget.milestones - 1) * part + whole


class TextSizes:
    """The study's text under its tokenizers. BPE has to be trained for that, which takes seconds each."""

    def __init__(self, base: DataConfig) -> None:
        self.corpus = load_facts(base)
        self._sizes: dict[tuple[object, ...], TokenFacts] = {}

    def of(self, config: DataConfig) -> TokenFacts:
        key = (config.tokenizer, config.vocab_size)
        if key not in self._sizes:
            self._sizes[key] = token_facts(self.corpus, config) or _trained(config)
        return self._sizes[key]

    def measured(
        self, config: StudyConfig, points: Iterable[Mapping[str, object]]
    ) -> Iterator[tuple[TrialConfig, TokenFacts]]:
        """The trials of the points, fitted to their text; of vocabularies that need training, those of a few."""
        vocab_sizes: set[int] = set()
        for point in points:
            trial = resolve(config.base, point)
            if trial.data.tokenizer == "bpe":
                if len(vocab_sizes | {trial.data.vocab_size}) > _MAX_TRAINED:
                    continue
                vocab_sizes.add(trial.data.vocab_size)
            sizes = self.of(trial.data)
            yield trial.fitted(sizes.bytes_per_token), sizes

    def flops_of(self, config: TrialConfig) -> float:
        """FLOPs of a trial whose budget is not in seconds."""
        sizes = self.of(config.data)
        of_trial = trial_cost(config.fitted(sizes.bytes_per_token), sizes)
        assert of_trial is not None, "limits.flops is refused beside a budget in seconds"
        return of_trial.flops


def _trained(config: DataConfig) -> TokenFacts:
    from moesearch.data.tokens import load_tokens

    return load_tokens(config).facts


def largest_flops(config: StudyConfig, texts: TextSizes) -> float:
    """FLOPs of the costliest trial of a space.

    Where there are too many points to list, or a knob is continuous, the corners are looked at: a trial costs more the
    larger any one of its numbers is, or less.
    """
    points = feasible_points(config, limit=MAX_LISTED_POINTS)
    if points is None:
        corners = islice(product(*map(_ends, config.search.values())), MAX_LISTED_POINTS)
        points = [dict(zip(config.search, corner, strict=True)) for corner in corners]
        points = [point for point in points if is_feasible(config.base, point)]
    return max(texts.flops_of(trial) for trial in [resolve(config.base, point) for point in points] or [config.base])


def _ends(knob: Knob) -> tuple[object, ...]:
    match knob:
        case CategoricalKnob():
            return knob.choices
        case IntKnob() | FloatKnob():
            return knob.low, knob.high
