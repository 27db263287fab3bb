"""What is trained in the bench: the article's setting, a search's setting, and the text."""

from __future__ import annotations

import dataclasses

from moesearch.config.trial import BudgetConfig, DataConfig, ModelConfig, TrialConfig
from moesearch.data.tokens import TokenData, load_tokens

ARTICLE_VOCAB_SIZE = 65
ARTICLE_TOKENS = 1_115_394
ARTICLE_TRAIN_TOKENS = int(0.9 * ARTICLE_TOKENS)
ARTICLE_STEPS = 5000
ARTICLE_EVAL_POINTS = 51
"""Steps 0, 100, ..., 4900 and 4999."""
ARTICLE_BATCHES_PER_EVAL_POINT = 2 * 400
"""Random batches of 16 windows, 400 of each split."""

SEARCH_STEPS = 300
SEARCH_MILESTONES = 6

ARTICLE = TrialConfig(
    model=ModelConfig(attention_scale="width"),
    # Far more steps than any timing takes, in one stretch: a milestone would add its evaluation.
    budget=BudgetConfig(steps=10**9, milestones=1),
)
"""The article's model and batch."""

SEARCH = TrialConfig(model=ModelConfig(width=64, num_layers=4, num_heads=4, context=64))
"""A trial of a search on a CPU, of the size of those in ``studies/experts_topk.yaml``."""


def with_experts(
    config: TrialConfig, num_experts: int, top_k: int, expert_hidden_dim: int | None = None
) -> TrialConfig:
    """The same setting with other experts; by default four times as wide as the model."""
    update = {"num_experts": num_experts, "top_k": top_k, "expert_hidden_dim": expert_hidden_dim}
    return config.model_copy(update={"moe": config.moe.model_copy(update=update)})


def with_milestones(config: TrialConfig, steps_per_milestone: int) -> TrialConfig:
    """The same setting, to be trained from milestone to milestone for very long."""
    return config.model_copy(update={"budget": BudgetConfig(steps=10_000 * steps_per_milestone, milestones=10_000)})


def search_tokens() -> TokenData:
    """The plays, as a study reads them."""
    return load_tokens(DataConfig())


def article_tokens(plays: TokenData) -> TokenData:
    """As many characters of the plays as the article's corpus has, cut into its 90 % and 10 %.

    The plays have three characters more than the 65 of the article; the last ones of the alphabet are read as one,
    so that embedding and head have the article's sizes too.
    """
    tokens = plays.train[:ARTICLE_TOKENS].clamp(max=ARTICLE_VOCAB_SIZE - 1)
    train, val = tokens[:ARTICLE_TRAIN_TOKENS], tokens[ARTICLE_TRAIN_TOKENS:]
    return dataclasses.replace(plays, train=train, val=val, vocab_size=ARTICLE_VOCAB_SIZE)


def with_part_of_val(data: TokenData, fraction: float) -> TokenData:
    """The same tokens with only the first part of the validation split, so that an evaluation is that part of one."""
    num_tokens = round(len(data.val) * fraction)
    return dataclasses.replace(data, val=data.val[:num_tokens])
