"""A larger and longer run of a configuration that a small study found: ``--scale width=4,tokens=20x``.

What is held fixed is what maximal-update rules need held: the heads' width, the experts' width relative to the model's
(granularity), top_k / num_experts, and warm-up and decay as fractions of all tokens. Those rules
(model/parametrization.py) then carry learning rate and init over the width, by ``optim.mup_base_width``. What no rule
is proven for is said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from moesearch.config.resolve import resolve
from moesearch.config.trial import TrialConfig
from moesearch.errors import InfeasibleError, InputError

AXES = ("width", "experts", "tokens")


def parsed_scale(text: str) -> dict[str, float]:
    """``width=4,tokens=20x`` as factors by axis.

    Raises:
        InputError: an axis that there is not, one given twice, or a factor that is no number above 0.
    """
    factors: dict[str, float] = {}
    for part in text.split(","):
        axis, _, number = (word.strip() for word in part.partition("="))
        if axis not in AXES:
            raise InputError(
                f"--scale {text}: {axis or part!r} is none of {', '.join(AXES)}; write --scale width=4,tokens=20x"
            )
        if axis in factors:
            raise InputError(f"--scale {text}: {axis} is given twice")
        try:
            factor = float(number.removesuffix("x"))
        except ValueError:
            factor = math.nan
        if not 0 < factor < math.inf:
            raise InputError(f"--scale {text}: {axis}={number} is no factor; write {axis}=4 or {axis}=4x")
        factors[axis] = factor
    return factors


def scaled(config: TrialConfig, factors: Mapping[str, float]) -> tuple[TrialConfig, list[str]]:
    """The configuration at other sizes, and what is not proven of it, a sentence each.

    Raises:
        InputError: a size is no whole number, or the scaled configuration breaks a rule.
    """
    config = config.spelled_out()  # The experts' width is then no longer divided among more of them.
    width, experts, tokens = (factors.get(axis, 1.0) for axis in AXES)
    params: dict[str, object] = {}
    if width != 1:
        params |= _wider(config, width)
    if experts != 1:
        for name in ("num_experts", "top_k"):
            params[f"moe.{name}"] = _whole(f"moe.{name}", getattr(config.moe, name), experts, "experts")
    if tokens != 1:
        params |= _longer(config, tokens)
    elif width != 1 or experts != 1:
        params |= _same_tokens(config)
    try:
        return resolve(config, params), _unproven(config, factors)
    except InfeasibleError as error:
        raise InputError(f"--scale: {error}") from None


def _wider(config: TrialConfig, factor: float) -> dict[str, object]:
    model = config.model
    params: dict[str, object] = {
        "model.width": _whole("model.width", model.width, factor, "width"),
        "model.num_heads": _whole("model.num_heads", model.num_heads, factor, "width"),
        "moe.expert_hidden_dim": _whole("moe.expert_hidden_dim", config.expert_hidden_dim, factor, "width"),
        "optim.mup_base_width": config.optim.mup_base_width or model.width,
    }
    if model.attention_scale == "width":
        # Heads keep their width, so scores keep their size under the factor of the base.
        params["model.attention_scale"] = model.width**-0.5
    return params


def _longer(config: TrialConfig, factor: float) -> dict[str, object]:
    budget = config.budget
    params: dict[str, object] = {"optim.warmup_tokens": round(config.optim.warmup_tokens * factor)}
    match budget.unit:
        case "steps":
            assert budget.steps is not None
            params["budget.steps"] = max(budget.milestones, round(budget.steps * factor))
        case "tokens":
            assert budget.tokens is not None
            params["budget.tokens"] = round(budget.tokens * factor)
        case unit:
            raise InputError(f"--scale tokens: the budget is in {unit}; give it in steps or tokens with --set first")
    return params


def _same_tokens(config: TrialConfig) -> dict[str, object]:
    if config.budget.active_flops is None:
        return {}
    raise InputError(
        "--scale: a larger model takes more FLOPs per token, so a budget in active_flops would train it on less text; "
        "give it in steps or tokens first, such as --set budget.active_flops=null --set budget.steps=5000"
    )


def _whole(path: str, value: int, factor: float, axis: str) -> int:
    product = value * factor
    if not product.is_integer() or product < 1:
        raise InputError(f"--scale {axis}={factor:g}: {path} ({value}) times {factor:g} is no whole number from 1")
    return int(product)


def _unproven(config: TrialConfig, factors: Mapping[str, float]) -> list[str]:
    """What the rules say nothing of, or what is known to break them."""
    sentences = []
    if "width" in factors:
        if config.moe.noise:
            sentences.append(
                "the noise router is scaled as the router is; no paper tests noisy routing under these rules"
            )
        if config.data.batch_size * config.model.context < 1024:
            sentences.append("a step of few tokens is noisy, and the rules are shown at batches that are not")
        sentences.append("depth is kept: the rules do not carry a learning rate to more layers")
    if "experts" in factors and config.moe.num_shared_experts:
        sentences.append("shared experts stay as many, so their share of a token's experts changes")
    if "experts" in factors:
        sentences.append(
            "over experts at fixed top_k / num_experts the learning rate was seen to carry (Jiang et al. 2026), "
            "with a theory for many experts; few experts are not covered"
        )
    if factors.get("tokens", 1.0) > 1:
        sentences.append(
            "no rule carries a learning rate to more tokens: longer runs tend to want a lower one (Bjorck et al. "
            "2024); try half of it beside this run, and a schedule that decays"
        )
    return sentences
