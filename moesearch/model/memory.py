"""What a trial needs of memory, estimated from its configuration alone.

An account of what a lane holds at its fullest moments: weights, gradients, AdamW's two moments, and what autograd keeps
between forward and backward. What all trials share (the text, libraries, torch itself) is left out, as are what
allocators hold back and the products' own work space. The tests hold it to within TOLERANCE of what torch allocates on
a CPU.
"""

from __future__ import annotations

from typing import Literal

from moesearch.config.trial import TrialConfig
from moesearch.model.cost import expert_params, total_params

TOLERANCE = 0.1
"""Part by which an estimate may miss what is measured on a CPU."""

_EVALUATION_TOKENS = {"cpu": 2048, "cuda": 65536}
_EVALUATION_LOGITS_BYTES = 256 * 2**20
_FULL = 4
"""Bytes of a float32: weights, moments, gradients, residual stream, router, softmax."""


def evaluation_windows(num_lanes: int, context: int, vocab_size: int, device_type: str) -> int:
    """Windows per batch and lane of an exact evaluation.

    Enough tokens for full speed, few enough for the caches and for the memory of the logits.
    """
    num_tokens = min(_EVALUATION_TOKENS.get(device_type, 65536), _EVALUATION_LOGITS_BYTES // (_FULL * vocab_size))
    return max(1, num_tokens // (num_lanes * context))


def peak_memory_bytes(config: TrialConfig, vocab_size: int, *, device_type: Literal["cpu", "cuda"] = "cpu") -> int:
    """Most bytes that one lane takes in training and evaluation.

    On CUDA products are in bfloat16, which has copies of the weights; experts in padded blocks take more than this.
    """
    product = _FULL if device_type == "cpu" else 2
    weights_and_moments = 3 * _FULL * total_params(config, vocab_size)
    training = _training_bytes(config, vocab_size, product)
    return weights_and_moments + max(training, _evaluation_bytes(config, vocab_size, product, device_type))


def _training_bytes(config: TrialConfig, vocab_size: int, product: int) -> int:
    """Activations, gradients and temporaries at the fullest moment of a step: one of three.

    Backward frees a layer's activations and makes its gradients, layer by layer, so the fullest moment is at one end:
    at the head, in the last layer, or in the first.
    """
    model, tokens = config.model, config.tokens_per_step
    params, experts = total_params(config, vocab_size), config.moe.num_experts * expert_params(config)
    layer = _attention_bytes(config, product) + _feed_forward_bytes(config, product)
    keys = 4 * (model.num_heads * config.data.batch_size + tokens * (1 + config.moe.top_k)) if model.dropout else 0
    copies = 0 if product == _FULL else product * params
    kept = copies + model.num_layers * (layer + keys)
    logits = _FULL * tokens * vocab_size
    last_norm = (_FULL + product) * tokens * model.width
    # Logits, their logarithms and the gradients of both.
    at_head = kept + last_norm + 4 * logits
    in_layer = _FULL * experts + _backward_bytes(config, product)
    in_last_layer = kept + logits + _FULL * (model.width + 1) * vocab_size + in_layer
    in_first_layer = copies + layer + logits + _FULL * params + _backward_bytes(config, product)
    return max(at_head, in_last_layer, in_first_layer)


def _attention_bytes(config: TrialConfig, product: int) -> int:
    """What autograd keeps of one attention and its norm."""
    model, tokens = config.model, config.tokens_per_step
    norm = (_FULL + product) * tokens * model.width
    queries_keys_values = 3 * product * tokens * model.width
    projection_input = product * tokens * model.width
    if not model.dropout:
        return norm + queries_keys_values + projection_input
    # Weights before and after dropout, and the mask; then the mask of the output.
    weights = (2 * _FULL + product) * tokens * model.num_heads * model.context
    return norm + queries_keys_values + weights + projection_input + _FULL * tokens * model.width


def _feed_forward_bytes(config: TrialConfig, product: int) -> int:
    """What autograd keeps of one layer's experts, router and norm."""
    model, moe, tokens = config.model, config.moe, config.tokens_per_step
    norm = 2 * _FULL * tokens * model.width
    masks = _FULL if model.dropout else 0
    if moe.is_dense:
        return norm + tokens * (product * config.expert_hidden_dim + masks * model.width)
    slots = tokens * moe.top_k
    experts = slots * (product * (model.width + config.expert_hidden_dim) + (_FULL + masks) * model.width)
    # Logits; with noise, its normal numbers and its logits too. A slot has some dozen indices and gates.
    router = (3 if moe.noise else 1) * _FULL * tokens * moe.num_experts + 60 * slots
    return norm + experts + router


def _backward_bytes(config: TrialConfig, product: int) -> int:
    """Temporaries of the backward pass through one layer's experts: gradients of the hidden numbers and around them."""
    slots = config.tokens_per_step * config.moe.top_k
    return slots * (product * (config.expert_hidden_dim + config.model.width) + _FULL * config.model.width)


def _evaluation_bytes(config: TrialConfig, vocab_size: int, product: int, device_type: str) -> int:
    """Temporaries of an evaluation at its fullest, which is in the experts or at the logits."""
    model = config.model
    tokens = model.context * evaluation_windows(1, model.context, vocab_size, device_type)
    slots = tokens * config.moe.top_k
    stream = 2 * _FULL * tokens * model.width
    # Rows gathered, hidden, put out and summed.
    experts = slots * (product * (config.expert_hidden_dim + model.width) + 3 * _FULL * model.width)
    return stream + max(experts, 2 * _FULL * tokens * vocab_size)
