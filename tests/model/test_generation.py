from __future__ import annotations

import pytest
import torch

from moesearch.model.generation import generate
from tests.model.tiny import VOCAB_SIZE, mixed_trials, model_of, trial


def test_generation_starts_from_one_token_and_goes_beyond_the_context() -> None:
    config = trial()
    ids = generate(model_of(config), 0, [3], 2 * config.model.context, seed=0)
    assert len(ids) == 1 + 2 * config.model.context
    assert ids[0] == 3
    assert all(0 <= token < VOCAB_SIZE for token in ids)


def test_a_seed_gives_the_same_text_in_any_lane() -> None:
    configs = mixed_trials()
    beside = generate(model_of(*configs), 2, [1, 2], 12, seed=5)
    assert beside == generate(model_of(configs[2]), 0, [1, 2], 12, seed=5)
    assert beside != generate(model_of(configs[2]), 0, [1, 2], 12, seed=6)


def test_a_low_temperature_takes_the_likeliest_token() -> None:
    model = model_of(trial())
    ids = generate(model, 0, [1], 5, seed=0, temperature=1e-6)
    with torch.no_grad():
        for position in range(1, 6):
            logits_V = model(torch.tensor([[ids[:position]]])).logits_RBTV[0, 0, -1]
            assert ids[position] == int(logits_V.argmax())


def test_generation_leaves_torchs_global_generator_alone() -> None:
    model = model_of(trial())
    state = torch.get_rng_state()
    generate(model, 0, [1], 3, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("prompt", "temperature"), [([], 1.0), ([1], 0.0)])
def test_an_empty_prompt_and_a_temperature_of_zero_are_refused(prompt: list[int], temperature: float) -> None:
    with pytest.raises(ValueError, match=r"at least one token|must be positive"):
        generate(model_of(trial()), 0, prompt, 1, seed=0, temperature=temperature)
