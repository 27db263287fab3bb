"""What a study would do and cost, worked out without training, text or network where the corpus is a known one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal, assert_never

from moesearch.config.confirm_runs import confirm_milestones
from moesearch.config.knobs import CategoricalKnob, FloatKnob, IntKnob, Knob
from moesearch.config.labels import short_value
from moesearch.config.resolve import resolve
from moesearch.config.space import feasible_points, size
from moesearch.config.study import StudyConfig
from moesearch.data.facts import require_length
from moesearch.model import cost
from moesearch.model.memory import peak_memory_bytes
from moesearch.search.families import num_families, shape_knobs
from moesearch.search.trial_cost import MAX_LISTED_POINTS, TextSizes, TrialCost, trial_cost


@dataclass(frozen=True)
class PlannedKnob:
    """A knob, its values in words, and whether trials that differ in it can train side by side."""

    path: str
    values: str
    is_lane: bool


@dataclass(frozen=True)
class Plan:
    """What ``--dry-run`` prints."""

    study: str
    objective: str
    num_trials: int
    sampler: str
    pruner: str
    lanes: int | Literal["auto"]
    """Trials side by side in each worker."""
    num_families: int | None
    """Shape families: groups of trials that can train side by side. None where a shape knob is continuous."""
    knobs: tuple[PlannedKnob, ...]
    num_points: int | None
    """None where a knob is continuous."""
    num_feasible: int | None
    """None where there are too many points to list."""
    total_params: int
    """Of the base, as are the next five."""
    active_params: int
    flops_per_token: int
    """Forward."""
    router_flops_per_token: int
    """The routers' part of them."""
    milestones: int
    milestone_share: float
    """Of the validation split, at milestones before the last."""
    base_cost: TrialCost | None
    """None where a trial's budget is in seconds, as are the FLOPs below."""
    trial_seconds: float | None
    """None where a trial's budget is in another unit."""
    limits: Mapping[str, float]
    """The limits of the whole study that the file gives."""
    corpus: str
    tokenizer: str
    """Of the base, as are the next three."""
    vocab_size: int
    bytes_per_token: float
    """Mean over the training split."""
    context: int
    """In tokens."""
    min_trial_flops: float | None
    max_trial_flops: float | None
    """Over the feasible points; the base's where they are not listed."""
    study_flops: float | None
    """Of all trials at the mean over the feasible points, none of them pruned."""
    memory_bytes: int
    """A lane's peak, estimated for a CPU, or for a GPU where the study names one; of the base."""
    min_memory_bytes: int
    max_memory_bytes: int
    """Over the feasible points; the base's where they are not listed."""
    num_confirm_runs: int
    """At most, if no learning rate takes more than three of them to bracket."""
    confirm_flops: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def plan(config: StudyConfig) -> Plan:
    """Work out a study's space and cost.

    Raises:
        CorpusError: the study's own text cannot be read, or is too short for the base's context.
    """
    texts = TextSizes(config.base.data)
    text = texts.of(config.base.data)
    base = config.base.fitted(text.bytes_per_token)
    require_length(texts.corpus.name, "validation", text.val_tokens, base.model.context)
    points = feasible_points(config, limit=MAX_LISTED_POINTS)
    base_cost = trial_cost(base, text)
    trials = list(texts.measured(config, points or ())) or [(base, text)]
    costs = [one for trial, sizes in trials if (one := trial_cost(trial, sizes)) is not None]
    flops = [one.flops for one in costs]
    budget = config.base.budget
    fewer = {"budget.milestones": confirm_milestones(budget.milestones)}
    confirm_costs = [trial_cost(resolve(trial, fewer), sizes) for trial, sizes in trials]
    confirm_flops = [one.flops for one in confirm_costs if one is not None]
    device_type: Literal["cpu", "cuda"] = "cuda" if config.run.device.startswith("cuda") else "cpu"
    memory = [peak_memory_bytes(trial, sizes.vocab_size, device_type=device_type) for trial, sizes in trials]
    return Plan(
        study=config.name,
        objective=config.objective,
        num_trials=config.num_trials,
        sampler=_sampler_text(config, None if points is None else len(points)),
        pruner=config.pruner.type,
        lanes=config.run.lanes,
        num_families=_num_families(config, points),
        knobs=tuple(
            PlannedKnob(path, _values_text(knob), path not in shape_knobs(config))
            for path, knob in config.search.items()
        ),
        num_points=size(config.search),
        num_feasible=None if points is None else len(points),
        total_params=cost.total_params(base, text.vocab_size),
        active_params=cost.active_params(base, text.vocab_size),
        flops_per_token=cost.flops_per_token(base, text.vocab_size),
        router_flops_per_token=cost.router_flops_per_token(base),
        milestones=budget.milestones,
        milestone_share=budget.milestone_share,
        base_cost=base_cost,
        trial_seconds=budget.seconds,
        limits={name: limit for name, limit in config.limits if limit is not None},
        corpus=texts.corpus.name,
        tokenizer=config.base.data.tokenizer,
        vocab_size=text.vocab_size,
        bytes_per_token=text.bytes_per_token,
        context=base.model.context,
        min_trial_flops=min(flops, default=None),
        max_trial_flops=max(flops, default=None),
        study_flops=config.num_trials * fmean(flops) if flops else None,
        memory_bytes=peak_memory_bytes(base, text.vocab_size, device_type=device_type),
        min_memory_bytes=min(memory),
        max_memory_bytes=max(memory),
        num_confirm_runs=config.num_confirm_runs,
        confirm_flops=config.num_confirm_runs * fmean(confirm_flops) if confirm_flops else None,
    )


def plan_lines(planned: Plan) -> list[str]:
    """The plan in lines for a person."""
    points = "a continuous space" if planned.num_points is None else f"{planned.num_points:,} points"
    feasible = "" if planned.num_feasible is None else f", {planned.num_feasible:,} of them feasible"
    width = max(len(knob.path) for knob in planned.knobs)
    return [
        f"study    {planned.study}: {planned.num_trials:,} trials, lowest {planned.objective}; nothing is trained now",
        f"sampler  {planned.sampler}; pruner {planned.pruner}",
        f"space    {points}{feasible}",
        *(
            f"  {knob.path:{width}}  {'lane knob ' if knob.is_lane else 'shape knob'}  {knob.values}"
            for knob in planned.knobs
        ),
        f"lanes    {_lanes_text(planned)}",
        f"base     {planned.total_params:,} parameters, {planned.active_params:,} active per token, "
        f"{planned.flops_per_token:,} FLOPs per token forward, "
        f"{planned.router_flops_per_token / planned.flops_per_token:.1%} of them in routers",
        f"text     {planned.corpus}, {_tokenizer_text(planned)}",
        f"trial    {_trial_text(planned)}",
        f"memory   {_memory_text(planned)}; estimated, without torch and the text",
        f"in all   {_flops(planned.study_flops)} if no trial is pruned, and {_flops(planned.confirm_flops)} "
        f"for about {planned.num_confirm_runs} runs to confirm",
        *(f"limit    {limit:g} {name.replace('_', ' ')}" for name, limit in planned.limits.items()),
    ]


def _tokenizer_text(planned: Plan) -> str:
    """``68 distinct characters``, or the tokens and what they hold of the text."""
    if planned.tokenizer == "char":
        return f"{planned.vocab_size} distinct characters"
    return (
        f"{planned.vocab_size:,} tokens of {planned.tokenizer}, {planned.bytes_per_token:.2f} bytes each; "
        f"context {planned.context:,} tokens (base)"
    )


def _trial_text(planned: Plan) -> str:
    base = planned.base_cost
    evaluations = f"{planned.milestones} exact evaluations"
    if planned.milestone_share < 1:
        evaluations += f", the last on the whole validation split, the others on {planned.milestone_share:.3g} of it"
    if base is None:
        return f"{planned.trial_seconds:g} s of training and {evaluations}; its FLOPs show only then"
    return (
        f"{base.steps:,} steps, {base.train_tokens:,} tokens, {_flops(base.train_flops)} to train and "
        f"{_flops(base.eval_flops)} for {evaluations} (base); "
        f"{_flops(planned.min_trial_flops)} to {_flops(planned.max_trial_flops)} over the space"
    )


def _sampler_text(config: StudyConfig, num_feasible: int | None) -> str:
    match config.sampler.type:
        case "auto":
            if num_feasible is not None and num_feasible <= config.num_trials:
                return f"auto: each of the {num_feasible} feasible points, then further seeds of the leaders"
            return "auto: TPE, since there are more points than trials"
        case "grid":
            return f"grid: each of the {num_feasible} feasible points, again and again on further seeds"
        case "tpe" | "random" | "gp" | "cmaes" | "qmc" | "nsga2":
            return config.sampler.type
        case _:
            assert_never(config.sampler.type)


def _num_families(config: StudyConfig, feasible: Sequence[Mapping[str, object]] | None) -> int | None:
    if feasible is None:
        return num_families(config)
    paths = shape_knobs(config)
    return len({tuple(point[path] for path in paths) for point in feasible})


def _lanes_text(planned: Plan) -> str:
    lanes = "1 per worker on a CPU, measured on a GPU" if planned.lanes == "auto" else f"{planned.lanes} per worker"
    if planned.num_families == 1:
        return f"{lanes}; all trials are of one shape"
    families = "any number of" if planned.num_families is None else f"{planned.num_families:,}"
    return f"{lanes}; {families} shape families, one at a time in a worker"


def _values_text(knob: Knob) -> str:
    match knob:
        case CategoricalKnob():
            return ", ".join(map(short_value, knob.choices))
        case IntKnob():
            step = "" if knob.step == 1 else f" in steps of {knob.step}"
            return f"{knob.low} to {knob.high}{step}{_scale(log=knob.log)}"
        case FloatKnob():
            step = "" if knob.step is None else f" in steps of {knob.step:g}"
            return f"{knob.low:g} to {knob.high:g}{step}{_scale(log=knob.log)}"
        case _:
            assert_never(knob)


def _scale(*, log: bool) -> str:
    return ", evenly in the logarithm" if log else ""


def _memory_text(planned: Plan) -> str:
    base, least, most = (
        _megabytes(size) for size in (planned.memory_bytes, planned.min_memory_bytes, planned.max_memory_bytes)
    )
    return f"{base} for a lane" if least == most else f"{base} for a lane (base), {least} to {most} over the space"


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"


def _flops(value: float | None) -> str:
    return "unknown FLOPs" if value is None else f"{value:.2g} FLOPs"
