"""An exported configuration: everything a trial needs to run again, and where it comes from.

What an export has to say so that a result can be carried to a larger run, and where that ends, follows the rules of
maximal-update parametrisation (Yang et al. 2022, "Tensor Programs V") and its forms for mixtures of experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, assert_never

from optuna.trial import FrozenTrial

from moesearch.config.dumper import dump_yaml
from moesearch.config.resolve import resolve
from moesearch.config.shape import dense_inner_dim, expert_inner_dim, shared_inner_dim
from moesearch.config.trial import MoEConfig, TrialConfig
from moesearch.errors import UnknownStudyError
from moesearch.results import records
from moesearch.results.frames import last_point, outcome_of
from moesearch.results.measurements import dense_control, measured, schedule
from moesearch.results.study import StudyResults
from moesearch.results.verdict import Candidate

_ACTIVATIONS = {"relu": "ReLU", "relu_squared": "ReLU squared", "gelu": "GELU", "swiglu": "SwiGLU"}

Choice = Literal["best", "base"] | int
"""``best`` by the verdict, ``base`` as the study file has it, or the number of a trial."""


@dataclass(frozen=True)
class Exported:
    """A configuration of a study, with the trial that trained it if there is one."""

    label: str
    config: TrialConfig
    trial: FrozenTrial | None
    fingerprint: str
    """As it was searched; its configuration may have a learning rate of its own since."""


def choose(results: StudyResults, choice: Choice) -> Exported:
    """Find the configuration that is meant.

    Raises:
        UnknownStudyError: no such trial, a trial that was never resolved, or nothing finished yet to be best.
    """
    if choice == "base":
        config = results.config.base
        name = config.fingerprint()
        return Exported(results.label_of(config), config, _trained(results, name), name)
    if choice == "best":
        best = results.verdict.best
        trial = None if best is None else _trained(results, best.fingerprint)
        if best is None or trial is None:
            raise UnknownStudyError(
                f"study {results.name} has no finished trial yet, so none is best; --trial base exports its base"
            )
        config = TrialConfig.model_validate(trial.system_attrs[records.CONFIG])
        changes: dict[str, object] = {"budget.milestones": results.config.base.budget.milestones}
        if best.rate is not None:
            changes[records.RATE_PARAM] = best.rate.lr
        config = resolve(config, changes)
        return Exported(best.label, config, trial, best.fingerprint)
    config = results.trial_config(choice)
    return Exported(results.label_of(config), config, results.trial(choice), config.fingerprint())


def export_yaml(results: StudyResults, choice: Choice = "best") -> str:
    """The configuration as YAML: ``trial:`` with every field spelled out, ``provenance:`` beside it.

    Raises:
        UnknownStudyError: see ``choose``.
    """
    exported = choose(results, choice)
    comment = (
        f"{exported.label}: configuration {_chosen(exported, choice)} of study {results.name}.\n"
        "Train it with: python -m moesearch.train FILE (this file)\n"
        "`trial` is all that training reads; `provenance` says where it comes from and how far it carries."
    )
    values = {
        "trial": _spelled_out(exported).model_dump(mode="json"),
        "provenance": _provenance(results, exported, choice),
    }
    return dump_yaml(values, comment)


def _spelled_out(exported: Exported) -> TrialConfig:
    """The configuration with what it derives written down: widths, and a context that is given in bytes."""
    config = exported.config.spelled_out()
    context = None if exported.trial is None else exported.trial.user_attrs.get(records.CONTEXT_TOKENS)
    if config.data.context_bytes is None or context is None:
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"context": context})})


def _provenance(results: StudyResults, exported: Exported, choice: Choice) -> dict[str, Any]:
    trial = exported.trial
    attrs: Mapping[str, Any] = {} if trial is None else trial.user_attrs
    return {
        "study": results.name,
        "chosen": str(choice),
        "trial_number": None if trial is None else trial.number,
        "fingerprint": exported.config.fingerprint(),
        "result": _result(results, exported),
        "search": {
            "configurations_tried": results.num_configurations,
            "trials_finished": results.num_finished,
            "space": {path: _space(knob.model_dump(mode="json")) for path, knob in results.config.search.items()},
            "sampler": results.config.sampler.model_dump(mode="json"),
            "pruner": results.config.pruner.model_dump(mode="json"),
        },
        "corpus": dict(results.corpus),
        "counts": {
            "total_params": attrs.get(records.TOTAL_PARAMS),
            "active_params": attrs.get(records.ACTIVE_PARAMS),
            "forward_flops_per_token": attrs.get(records.FLOPS_PER_TOKEN),
            "vocab_size": attrs.get(records.VOCAB_SIZE),
            "context": attrs.get(records.CONTEXT_TOKENS),
            "bytes_per_token": attrs.get(records.BYTES_PER_TOKEN),
            "expert_hidden_dim": exported.config.expert_hidden_dim,
            "attention_scale": attention_scale(exported.config),
        },
        "architecture": _architecture(exported.config),
        "schedule": schedule(exported.config, trial),
        "measured": measured(results, trial),
        "dense_control": dense_control(results),
        "versions": dict(results.sessions[-1].versions) if results.sessions else {},
        "limits_of_transfer": transfer_limits(results, _spelled_out(exported)),
    }


def attention_scale(config: TrialConfig) -> float:
    """The factor on the attention scores."""
    match config.model.attention_scale:
        case "head":
            return float((config.model.width // config.model.num_heads) ** -0.5)
        case "width":
            return float(config.model.width**-0.5)
        case number:
            return number


def transfer_limits(results: StudyResults, config: TrialConfig) -> list[str]:
    """What is known of carrying this configuration to a larger run, and what is not. A sentence each."""
    model, best = config.model, results.verdict.best
    rate = (
        "The learning rate was searched at this size only."
        if records.RATE_PARAM in results.config.search or (best is not None and best.rate is not None)
        else f"All configurations were compared at one learning rate, {config.optim.lr:g}; an architecture can win by "
        "the rate it was compared at."
    )
    return [
        f"Found at width {model.width}, {model.num_layers} layers, context {model.context}, {config.tokens_per_step:,} "
        "tokens per step. Another size, corpus or budget can rank configurations differently; more experts also "
        "memorise a small corpus.",
        rate,
        *_scaling_limits(config),
        "Keep warm-up and decay as fractions of all tokens, not as numbers of steps.",
    ]


def _scaling_limits(config: TrialConfig) -> tuple[str, str]:
    moe, width = config.moe, config.model.width
    hidden = f"{config.expert_hidden_dim / width:g}"
    applied = "`python -m moesearch.train FILE --scale width=4,tokens=20x` applies them."
    if moe.num_experts == 1:
        return (
            f"When width grows, keep expert_hidden_dim / width = {hidden}: rules of maximal-update parametrisation "
            "carry a learning rate across width only where it stays fixed.",
            f"Those rules: learning rate of hidden weights (attention, feed-forward) times {width} / new width; "
            f"embeddings and biases keep theirs. They are not proven for depth, batch size or more tokens. {applied}",
        )
    return (
        f"When width grows, keep top_k / num_experts = {moe.top_k}/{moe.num_experts} and expert_hidden_dim / width = "
        f"{hidden}: rules of maximal-update parametrisation carry a learning rate across width and "
        "number of experts only where these stay fixed.",
        f"Those rules: learning rate of hidden weights (attention, experts) times {width} / new width, "
        "router treated as an output weight; embeddings and biases keep theirs. They are not proven for depth, "
        f"batch size, more tokens, or a change of top_k / num_experts. {applied}",
    )


def _result(results: StudyResults, exported: Exported) -> dict[str, Any]:
    """What was measured of it."""
    verdict = results.verdict
    fingerprint = exported.fingerprint
    found: dict[str, Any] = {
        "verdict": verdict.sentence,
        "objective": results.config.objective,
        "unit": verdict.unit,
        "search_val_loss": None if exported.trial is None else last_point(exported.trial).get("val_loss"),
        "search_val_bpb": None if exported.trial is None else last_point(exported.trial).get("val_bpb"),
        "search_outcome": None if exported.trial is None else outcome_of(exported.trial),
        "confirmed": None,
        "test": None,
    }
    if verdict.conclusion not in ("winner", "no_difference", "alone"):
        return found
    for candidate in verdict.ranking:
        if candidate.fingerprint == fingerprint:
            runs = [t for t in results.confirm_trials if t.user_attrs.get(records.FINGERPRINT) == fingerprint]
            found["confirmed"] = {
                f"mean_{results.config.objective}": candidate.mean,
                "interval": [candidate.low, candidate.high],
                "confidence": verdict.confidence,
                "num_seeds": candidate.num_seeds,
                "seeds": [run.user_attrs.get(records.SEED) for run in runs],
                "seed_deviation": verdict.seed_noise,
                "learning_rate": _lr_record(candidate),
            }
    if verdict.test is not None and verdict.best is not None and verdict.best.fingerprint == fingerprint:
        found["test"] = {
            "mean_loss": verdict.test.mean_loss,
            "mean_bits_per_byte": verdict.test.mean_bits_per_byte,
            "num_seeds": len(verdict.test.losses),
        }
    return found


def _lr_record(candidate: Candidate) -> dict[str, Any] | None:
    """How the learning rate was found; None if it was not searched for this configuration."""
    if candidate.rate is None:
        return None
    rate = candidate.rate
    return {
        "confirmed_at": rate.lr,
        "searched_at": rate.searched_lr,
        "tried": {f"{lr:g}": loss for lr, loss in rate.tried},
    }


def _architecture(config: TrialConfig) -> dict[str, Any]:
    """What is fixed in the code, and a rerun elsewhere has to know."""
    model = config.model
    learned = "token + learned position" if model.positions == "learned" else "token; rotary positions, base 10000"
    tied = "tied to the head, logits times width^-0.5" if model.tied_head else "not tied to the head"
    return {
        "block": f"x + attention({model.norm}(x)); x + moe({model.norm}(x)); {model.norm} before the head",
        "embeddings": f"{learned}, {tied}",
        "queries_and_keys": "RMS norm per head, learned weights" if model.qk_norm else "as projected",
        "biases": "none on query, key and value; on every other linear map",
        "expert": _expert(config),
        "layers": _layers(config),
        "router": _router(config.moe),
        "capacity": _capacity(config.moe),
        "load_balancing_loss": "1 at perfect balance for every num_experts and top_k",
        "dropout_places": "attention weights, after the attention projection, after each expert",
        "init": _init(config.moe),
    }


def _expert(config: TrialConfig) -> str:
    moe, inner = config.moe, expert_inner_dim(config)
    maps = (
        f"gate and value maps {config.model.width} -> {inner}"
        if moe.activation == "swiglu"
        else (f"linear {config.model.width} -> {inner}")
    )
    return f"{maps}, {_ACTIVATIONS[moe.activation]}, linear back, dropout"


def _layers(config: TrialConfig) -> str:
    """Which layers have experts, and what else every token passes through."""
    moe = config.moe
    where = (
        "experts in every layer"
        if moe.every == 1
        else (
            f"experts in every layer whose number, from 1, is a multiple of {moe.every}; the others dense, "
            f"{dense_inner_dim(config)} wide"
        )
    )
    shared = f"; one shared layer, {shared_inner_dim(config)} wide, beside them" if moe.num_shared_experts else ""
    return where + shared


def _init(moe: MoEConfig) -> str:
    """Schemes by part, then what they read."""
    parts = {"router": moe.init_router, "experts": moe.init_experts, "attention": moe.init_attention}
    own = "".join(f", {init} on that of {part}" for part, init in parts.items() if init is not None)
    read = [f"{name} {getattr(moe, name):g}" for name in ("init_std", "init_scale") if name not in moe.unread_fields()]
    depth = "; maps to the residual stream divided by (2 num_layers)^0.5" if moe.init_depth_scaled else ""
    return (
        f"{moe.init} on every linear weight (attention, router, experts, head){own}{''.join(f' ({r})' for r in read)}"
        f"{depth}; biases uniform within fan_in^-0.5; embeddings standard normal"
    )


def _router(moe: MoEConfig) -> str:
    """How experts are chosen and weighted."""
    if moe.is_dense:
        return "none: one expert, which every token passes through"
    match moe.router:
        case "softmax_after":
            form = "softmax over the top_k logits, so gates sum to 1"
        case "softmax_before":
            form = "softmax over all logits; the top_k of them are the gates"
        case "sigmoid":
            form = "sigmoid of each logit; the top_k of them are the gates"
        case "expert_choice":
            raise AssertionError("refused as a configuration")
        case unknown:
            assert_never(unknown)
    parts = [f"float32 {form}"]
    if moe.router != "softmax_after" and moe.route_norm:
        parts.append("gates divided by their sum")
    if moe.route_scale != 1:
        parts.append(f"gates times {moe.route_scale:g}")
    if moe.noise:
        parts.append("noise in training only: logits + normal * softplus(noise logits)")
    if moe.noise_std:
        parts.append("noise in training only: logits + normal * noise_std, fading over noise_decay_fraction")
    if moe.input_jitter:
        parts.append("router input times uniform 1 +- input_jitter in training only")
    if moe.bias_update_speed:
        parts.append("a bias per expert is added to scores for the choice only, in training and evaluation")
    return "; ".join(parts)


def _capacity(moe: MoEConfig) -> str:
    """Whether and how tokens are dropped."""
    factors = dict(zip(("training", "evaluation"), moe.capacity_factors, strict=True))
    if not any(factors.values()):
        return "dropless: every token reaches its experts"
    places = "; ".join(f"{when} {'dropless' if f is None else f'{f:g}'}" for when, f in factors.items())
    return (
        f"ceil(factor * context * top_k / num_experts) places of an expert in each sequence, by {moe.drop_policy}, "
        f"causally; dropped tokens pass on the residual stream; factor in {places}"
    )


def _space(knob: Mapping[str, Any]) -> Any:
    return knob["choices"] if knob["type"] == "categorical" else {k: v for k, v in knob.items() if v is not None}


def _trained(results: StudyResults, fingerprint: str) -> FrozenTrial | None:
    """The best trial of a configuration in the search, else one of its confirmation, else None."""
    rows = results.ranking[results.ranking["fingerprint"] == fingerprint]
    if len(rows):
        return results.search_trials[int(rows["best_number"].iloc[0])]
    return next((t for t in results.confirm_trials if t.user_attrs.get(records.FINGERPRINT) == fingerprint), None)


def _chosen(exported: Exported, choice: Choice) -> str:
    number = "" if exported.trial is None else f" (trial {exported.trial.number})"
    return "number " + str(choice) if isinstance(choice, int) else f"`{choice}`{number}"
