"""README.md of a trained model: what it is, what it was trained on, how good it is, and what it is not for."""

from __future__ import annotations

from moesearch import __version__
from moesearch.config.trial import TrialConfig
from moesearch.data.tokens import TokenData
from moesearch.model import cost
from moesearch.training.points import EvalPoint


def model_card(config: TrialConfig, tokens: TokenData, point: EvalPoint, *, weights: str, device: str) -> str:
    """The card as Markdown.

    Args:
        config: What was trained.
        tokens: Its text.
        point: The milestone that the weights are of, or the last one of those that they average.
        weights: Which weights these are, in a sentence.
        device: What they were trained on.
    """
    moe, model, optim = config.moe, config.model, config.optim
    total, active = (count(config, tokens.vocab_size) for count in (cost.total_params, cost.active_params))
    speed = point.tokens / point.train_seconds if point.train_seconds else 0.0
    epochs = point.tokens / max(1, len(tokens.train))
    return f"""\
# A sparse mixture-of-experts language model

{total:,} parameters, {active:,} of them active per token: {model.num_layers} layers of width {model.width}, \
{moe.num_experts} experts of width {config.expert_hidden_dim}, {moe.top_k} of them per token; context {model.context:,}
tokens. Trained with [moesearch](https://github.com/moesearch/moesearch) {__version__}.

## Use

    python -m moesearch.generate FOLDER --prompt "To be"

`model.safetensors` holds the weights by name, float32; `config.yaml` every setting; `tokenizer.json` the tokenizer;
`curves.csv` the losses over training; `sample.txt` some text of it.

## Training

| | |
| --- | --- |
| text | {tokens.corpus_name}, sha256 `{tokens.corpus_sha256}`, training split |
| tokenizer | {config.data.tokenizer}, {tokens.vocab_size:,} tokens, {tokens.facts.bytes_per_token:.2f} bytes each |
| amount | {point.step:,} steps of {config.tokens_per_step:,} tokens: {point.tokens:,} tokens, {epochs:.1f} epochs |
| compute | {point.active_flops:.3g} FLOPs, {point.train_seconds:,.0f} s on {device}, {speed:,.0f} tokens/s |
| optimiser | AdamW, learning rate {optim.lr:g}, {optim.schedule}; matrices of experts: {optim.expert_optimizer} |
| seed | {config.seed} |

## Result

Validation loss {point.val_loss:.4f} nats per token, {point.val_bpb:.4f} bits per byte, on the whole validation split
({len(tokens.val):,} tokens), dropout and router noise off. {weights}

## Limits

It continues text like its training text, and knows nothing else: no facts, no instructions, no other language or
style. It may repeat passages of its training text, and whatever is offensive in it. One seed was trained, so a
difference to another model may be luck. Nothing was done to make its output safe.
"""
