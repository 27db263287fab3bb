"""What a trial needs of memory, estimated from its configuration alone.

An account of what a lane holds at its fullest moments: weights, gradients, AdamW's two moments, and what autograd keeps
between forward and backward. What all trials share (the text, libraries, torch itself) is left out, as are what
allocators hold back and the products' own work space. The tests hold it to within TOLERANCE of what torch allocates on
a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from moesearch.config.moe import Activation
from moesearch.config.shape import dense_inner_dim, expert_inner_dim, num_expert_layers, shared_inner_dim
from moesearch.config.trial import TrialConfig
from moesearch.model.cost import expert_params, total_params

TOLERANCE = 0.1
"""Part by which an estimate may miss what is measured on a CPU."""

_EVALUATION_TOKENS_OF_LANE = 2048
_EVALUATION_TOKENS = 65536
_EVALUATION_LOGITS_BYTES = 256 * 2**20
# Hidden numbers that live at once, as multiples of an expert's inner width (activations.py).
_KEPT_BY_EXPERTS: Mapping[Activation, int] = {"relu": 1, "relu_squared": 2, "gelu": 2, "swiglu": 3}
_KEPT_BY_AUTOGRAD: Mapping[Activation, int] = {"relu": 1, "relu_squared": 2, "gelu": 2, "swiglu": 4}
_MADE_FORWARD: Mapping[Activation, int] = {"relu": 1, "relu_squared": 2, "gelu": 2, "swiglu": 3}
_MADE_BACKWARD: Mapping[Activation, int] = {"relu": 1, "relu_squared": 1, "gelu": 2, "swiglu": 4}

_FULL = 4
"""Bytes of a float32: weights, moments, gradients, residual stream, router, softmax."""


def evaluation_windows(num_lanes: int, context: int, vocab_size: int, device_type: str) -> int:
    """Windows per batch and lane of an exact evaluation.

    Enough tokens for full speed, few enough for the caches and for the memory of the logits. A CPU's caches hold the
    activations of one lane at a time, and a lane's weights are to be read for many tokens; a GPU fills with all lanes.
    """
    num_tokens = _EVALUATION_TOKENS_OF_LANE if device_type == "cpu" else _EVALUATION_TOKENS // num_lanes
    num_tokens = min(num_tokens, _EVALUATION_LOGITS_BYTES // (_FULL * vocab_size * num_lanes))
    return max(1, num_tokens // context)


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
    attention, expert_layer = _attention_bytes(config, product), _expert_layer_bytes(config, product)
    dense_layers = (model.num_layers - num_expert_layers(config)) * _dense_layer_bytes(
        config, product, dense_inner_dim(config)
    )
    copies = 0 if product == _FULL else product * params
    kept = copies + model.num_layers * attention + num_expert_layers(config) * expert_layer + dense_layers
    logits = _FULL * tokens * vocab_size
    # Logits, their logarithms and the gradients of both.
    at_head = kept + _norm_bytes(config) + product * tokens * model.width + 4 * logits
    in_layer = _FULL * experts + _backward_bytes(config, product)
    in_last_layer = kept + logits + _FULL * (model.width + 1) * vocab_size + in_layer
    first_layer = attention + expert_layer + _backward_bytes(config, product)
    return max(at_head, in_last_layer, copies + logits + _FULL * params + first_layer)


def _norm_bytes(config: TrialConfig) -> int:
    """What autograd keeps of a norm: its input, and for rms_norm that over its root mean square."""
    kept = 1 if config.model.norm == "layer_norm" else 2
    return kept * _FULL * config.tokens_per_step * config.model.width


def _attention_bytes(config: TrialConfig, product: int) -> int:
    """What autograd keeps of one attention and its norm."""
    model, tokens = config.model, config.tokens_per_step
    norm = _norm_bytes(config) + product * tokens * model.width
    qk_norm = 4 * _FULL * tokens * model.width if model.qk_norm else 0
    queries_keys_values = 3 * product * tokens * model.width
    projection_input = product * tokens * model.width
    kept = norm + qk_norm + queries_keys_values + projection_input
    if not model.dropout:
        return kept
    # Weights before and after dropout, and the mask; then the mask of the output, and keys of rows.
    weights = (2 * _FULL + product) * tokens * model.num_heads * model.context
    keys = _FULL * (model.num_heads * config.data.batch_size + tokens)
    return kept + weights + _FULL * tokens * model.width + keys


def _expert_layer_bytes(config: TrialConfig, product: int) -> int:
    """What autograd keeps of one layer's experts, router and norm."""
    model, moe, tokens = config.model, config.moe, config.tokens_per_step
    if moe.is_dense:
        return _dense_layer_bytes(config, product, expert_inner_dim(config) + shared_inner_dim(config))
    norm = _norm_bytes(config) + _FULL * tokens * model.width
    slots, mask = tokens * moe.top_k, _FULL if model.dropout else 0
    hidden = _KEPT_BY_EXPERTS[moe.activation] * expert_inner_dim(config)
    experts = slots * (product * (model.width + hidden) + (_FULL + mask) * model.width)
    shared = _dense_kept_bytes(config, product, shared_inner_dim(config)) if moe.num_shared_experts else 0
    # Logits; with noise, its normal numbers and its logits too. A slot has some dozen indices and gates.
    router = (3 if moe.noise else 1) * _FULL * tokens * moe.num_experts + 64 * slots
    return norm + experts + shared + router


def _dense_layer_bytes(config: TrialConfig, product: int, inner: int) -> int:
    """What autograd keeps of a layer without experts and its norm."""
    norm = _norm_bytes(config) + product * config.tokens_per_step * config.model.width
    return norm + _dense_kept_bytes(config, product, inner)


def _dense_kept_bytes(config: TrialConfig, product: int, inner: int) -> int:
    """Hidden numbers of a dense layer or of shared experts, and the mask of the output."""
    mask = _FULL * config.model.width if config.model.dropout else 0
    return config.tokens_per_step * (product * _KEPT_BY_AUTOGRAD[config.moe.activation] * inner + mask)


def _backward_bytes(config: TrialConfig, product: int) -> int:
    """Temporaries of the backward pass through one layer's experts: gradients of the hidden numbers and around them.

    Shared experts come first, and are over when the others begin.
    """
    tokens, width, shared = config.tokens_per_step, config.model.width, shared_inner_dim(config)
    hidden = _MADE_BACKWARD[config.moe.activation] * expert_inner_dim(config)
    experts = tokens * config.moe.top_k * (product * (hidden + width) + _FULL * width)
    return max(experts - _dense_kept_bytes(config, product, shared), tokens * product * shared) if shared else experts


def _evaluation_bytes(config: TrialConfig, vocab_size: int, product: int, device_type: str) -> int:
    """Temporaries of an evaluation at its fullest, which is in the experts or at the logits."""
    model = config.model
    tokens = model.context * evaluation_windows(1, model.context, vocab_size, device_type)
    stream = 2 * _FULL * tokens * model.width
    # Rows gathered, hidden, put out and summed.
    hidden = _MADE_FORWARD[config.moe.activation] * expert_inner_dim(config)
    experts = tokens * config.moe.top_k * (product * (hidden + model.width) + 3 * _FULL * model.width)
    widest = max(shared_inner_dim(config), dense_inner_dim(config) if config.moe.every > 1 else 0)
    dense = tokens * (product * max(2, _KEPT_BY_AUTOGRAD[config.moe.activation]) * widest + 2 * _FULL * model.width)
    return stream + max(experts, dense, 2 * _FULL * tokens * vocab_size)
