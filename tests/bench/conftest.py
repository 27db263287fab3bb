from __future__ import annotations

import pytest
import torch

from moesearch.config.trial import BudgetConfig, DataConfig, ModelConfig, MoEConfig, TrialConfig
from moesearch.data.tokenizers import CharTokenizer
from moesearch.data.tokens import TokenData

CHARACTERS = "abcdefgh"


@pytest.fixture
def config() -> TrialConfig:
    """A small model of the article's form."""
    return TrialConfig(
        model=ModelConfig(width=8, num_layers=2, num_heads=2, context=6, dropout=0.0, attention_scale="width"),
        moe=MoEConfig(num_experts=4, top_k=2),
        data=DataConfig(batch_size=3),
        budget=BudgetConfig(steps=10**6, milestones=1),
    )


@pytest.fixture
def tokens() -> TokenData:
    """A text of random characters."""
    ids = torch.randint(len(CHARACTERS), (600,), generator=torch.Generator().manual_seed(0))
    return TokenData(
        corpus_name="random",
        corpus_sha256="0" * 64,
        tokenizer=CharTokenizer(CHARACTERS),
        train=ids[:400],
        val=ids[400:500],
        test=ids[500:],
        bytes_per_id_V=torch.ones(len(CHARACTERS), dtype=torch.int64),
        vocab_size=len(CHARACTERS),
    )
