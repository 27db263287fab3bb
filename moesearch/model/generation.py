"""Text from a trained lane."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from moesearch.model.transformer import MoETransformer, select_lane


def generate(
    model: MoETransformer,
    lane: int,
    prompt_ids: Sequence[int],
    num_tokens: int,
    seed: int,
    temperature: float = 1.0,
) -> list[int]:
    """The prompt and ``num_tokens`` sampled ids of one lane; raises ValueError as `sampled_ids` does."""
    alone = select_lane(model, lane)
    return [*prompt_ids, *sampled_ids(alone, prompt_ids, num_tokens, seed=seed, temperature=temperature)]


def sampled_ids(
    model: MoETransformer, prompt_ids: Sequence[int], num_tokens: int, *, seed: int, temperature: float = 1.0
) -> Iterator[int]:
    """Ids that continue the prompt, one by one, from a model of one lane: crop to the context, softmax, draw, append.

    Raises:
        ValueError: an empty prompt, or a temperature that is not positive.
    """
    if not prompt_ids:
        raise ValueError("generation starts from at least one token")
    if temperature <= 0:
        raise ValueError(f"temperature ({temperature}) must be positive")
    context = model.configs[0].model.context
    generator = torch.Generator().manual_seed(seed)
    ids = list(prompt_ids)
    for _ in range(num_tokens):
        window_RBT = torch.tensor([[ids[-context:]]], device=model.device)
        with torch.no_grad():
            logits_V = model(window_RBT).logits_RBTV[0, 0, -1].cpu()
        ids.append(int(torch.multinomial(torch.softmax(logits_V / temperature, -1), 1, generator=generator)))
        yield ids[-1]
