"""The configuration of a study: what a study file says, checked."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, model_validator

from moesearch.config.confirm_runs import num_confirm_runs
from moesearch.config.knobs import Choice, Knob
from moesearch.config.quantities import LOSSES, RAISED, Constraint, Loss, Quantity, curve_of, parse_constraint
from moesearch.config.section import WHOLE, Section
from moesearch.config.trial import TrialConfig

TOKENIZER_FIELDS = ("data.tokenizer", "data.vocab_size")
"""Fields that decide which piece of text a token is."""
MAX_CONFIRM_SEEDS = 100
MAX_LANES = 64
"""More trials than this in flight would leave a sampler nothing to learn from."""


class SamplerConfig(Section):
    """Who proposes the next configuration."""

    type: Literal["auto", "tpe", "random", "gp", "cmaes", "qmc", "grid", "nsga2"] = "auto"
    """``auto`` covers a feasible space that fits the budget point by point, then trains the leaders on further seeds;
    on a larger space it uses ``tpe``, multivariate (Bergstra et al. 2011; Falkner et al. 2018). ``random`` is chance,
    ``gp`` a Gaussian process (for few trials), ``cmaes`` an evolution strategy (Hansen and Ostermeier 2001; for many
    trials of numeric knobs), ``qmc`` a Sobol sequence, ``nsga2`` a genetic algorithm for several objectives (Deb et al.
    2002). ``grid`` trains every point once, then every point on a second seed, and so on."""
    seed: Annotated[int, Field(ge=0, lt=2**31), WHOLE] = 0
    """Seed of the study: of its sampler, and of every trial's own seed."""


class PrunerConfig(Section):
    """Who stops a trial early; always by the first objective's curve, at equal milestones."""

    type: Literal["median", "percentile", "patient", "threshold", "hyperband", "wilcoxon", "asha", "none"] = "median"
    """``median`` stops a trial that is worse than the median of the others at its milestone (Golovin et al. 2017),
    ``percentile`` one that is not among their best ``keep_percent``, ``patient`` one that has not improved for
    ``patience`` milestones, ``threshold`` one above ``upper``, ``wilcoxon`` one whose curve is worse than the best
    trial's by a signed-rank test, ``hyperband`` all but the best at rungs of several spacings (Li et al. 2018).
    ``asha`` stops all but the best 1/eta at each rung, keeps their checkpoints, and continues a stopped trial once it
    is among the best of its rung (Li et al. 2020; docs/decisions/0010-asha-promotion.md)."""
    warmup_milestones: Annotated[int, Field(ge=0, le=10_000), WHOLE] = 2
    """Milestones of each trial before it can be stopped: ``median``, ``percentile``, ``threshold``, ``wilcoxon``."""
    warmup_trials: Annotated[int, Field(ge=0, le=1_000_000), WHOLE] = 5
    """Complete trials before any trial can be stopped: ``median``, ``percentile``."""
    keep_percent: Annotated[float, Field(gt=0, lt=100)] = 25.0
    """``percentile``: share of trials that go on at each milestone, in percent."""
    patience: Annotated[int, Field(ge=0, le=10_000), WHOLE] = 2
    """``patient``: milestones without improvement that a trial is granted."""
    min_delta: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """``patient``: a change below this is no improvement, in units of the objective."""
    upper: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """``threshold``: value of the curve above which a trial is stopped."""
    p: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """``wilcoxon``: a trial is stopped where the test's p-value is below this. Five milestones can show 0.03."""
    eta: Annotated[int, Field(ge=2, le=100), WHOLE] = 3
    """``asha``, ``hyperband``: one trial in ``eta`` goes on at each rung."""
    first_rung: Annotated[int, Field(ge=1, le=10_000), WHOLE] = 1
    """``asha``, ``hyperband``: milestone of the first rung; the next ones are at ``eta`` times the one before."""
    min_load_entropy: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Every type: a trial ends as ``collapsed`` at a milestone where some layer's load has less entropy than this, as a
    fraction of log E: 1 is perfect balance, 0 one expert for all tokens, the collapse of Shazeer et al. 2017, sec. 4.
    null lets loss alone decide."""

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        read = _READ_BY_PRUNER[self.type]
        for name, field in type(self).model_fields.items():
            if name not in ("type", "min_load_entropy", *read) and getattr(self, name) != field.default:
                takes = f"it takes {', '.join(read)}" if read else "it takes no other field"
                yield "", f"type {self.type} does not read {name} ({getattr(self, name)}); {takes}"
        if self.type == "threshold" and self.upper is None:
            yield "", "type threshold needs upper, the value of the curve above which a trial is stopped"


_READ_BY_PRUNER = {
    "median": ("warmup_milestones", "warmup_trials"),
    "percentile": ("keep_percent", "warmup_milestones", "warmup_trials"),
    "patient": ("patience", "min_delta"),
    "threshold": ("upper", "warmup_milestones"),
    "hyperband": ("eta", "first_rung"),
    "wilcoxon": ("p", "warmup_milestones"),
    "asha": ("eta", "first_rung"),
    "none": (),
}


class ConfirmConfig(Section):
    """Further training of the leaders on fresh seeds, before the verdict."""

    top: Annotated[int, Field(ge=0, le=100), WHOLE] = 3
    """Leading configurations that are trained again; 0 skips confirmation."""
    seeds: Annotated[int, Field(ge=2, le=MAX_CONFIRM_SEEDS), WHOLE] = 5
    """Fresh seeds for each of them: 3 for a first look, 5 for a claim (docs/decisions/0004-verdict.md)."""
    lr_search: bool = True
    """Before it, each of them tries half its learning rate, once and twice, and on by factors of two until the best is
    bracketed, on a seed apart (docs/decisions/0016-learning-rates.md). Where ``optim.lr`` is a knob, it stays."""


Control = Literal["dense", "none"]


class LimitsConfig(Section):
    """Budgets of the whole study, its confirmation included, beside ``num_trials``: over all workers and restarts.

    None is ever overspent. A study that reaches one ends as if it had reached its number of trials.
    """

    wall_hours: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Hours in which anyone works on the study; the search leaves three tenths of them to the confirmation."""
    gpu_hours: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Hours that workers hold their device, added up over workers; on a CPU, hours of worker processes."""
    flops: Annotated[float, Field(gt=0, le=1e30)] | None = None
    """FLOPs of training and evaluation. A trial reserves its whole cost as it begins and frees the rest as it ends."""


class StopConfig(Section):
    """When the search ends before ``num_trials``; trials that run are trained to their ends. The report says why."""

    target: float | None = None
    """A value of the leading objective that is good enough."""
    patience: Annotated[int, Field(ge=1, le=1_000_000), WHOLE] | None = None
    """Finished trials without an improvement beyond the seed noise, as far as seeds of one configuration show it."""
    regret: Annotated[float, Field(ge=0, le=1000)] | None = None
    """Ends where no untried configuration is expected to be better by more than this, two deviations granted, under an
    additive model of the knobs. For spaces that can be listed, without continuous knobs."""


class RunConfig(Section):
    """How the study is run; never what it finds."""

    workers: Literal["auto"] | Annotated[int, Field(ge=1, le=1024), WHOLE] = "auto"
    """Worker processes; ``auto`` is one per core on a CPU and one per GPU."""
    lanes: Literal["auto"] | Annotated[int, Field(ge=1, le=MAX_LANES), WHOLE] = "auto"
    """Trials that each worker trains side by side as one model; ``auto`` is 1 on a CPU and is measured on a GPU."""
    device: Annotated[
        str,
        Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$", json_schema_extra={"expected": "auto, cpu, cuda or cuda:N"}),
    ] = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    max_trial_seconds: Annotated[float, Field(ge=1, le=1e9)] | None = None
    """Wall-clock seconds that a worker may spend on one trial; then it ends as ``timed_out``, and where it does not
    react, its worker is killed. null sets no limit."""
    max_disk_gb: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """Most gigabytes (1e9 bytes) of checkpoints that the study keeps; losers' go first, and a checkpoint that fits
    beside no other is not written. null sets no limit."""


class StudyConfig(Section):
    """A study file: a question, its space, its budget."""

    name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=200,
            pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
            json_schema_extra={
                "expected": "text of at most 200 letters, digits, dots, '_' and '-' that starts with a letter or digit"
            },
        ),
    ]
    """Name in the store, and of the report's folder."""
    objective: Quantity = "val_loss"
    """What the search lowers: nats per token, or bits per byte where tokenizers differ; or a size, or a fault of the
    routers."""
    objectives: Annotated[tuple[Quantity, ...], Field(max_length=4, strict=False)] = ()
    """Several objectives, in place of ``objective``; the first one decides which trials are stopped early and which are
    confirmed. What is wanted is their Pareto front. ``tokens_per_second``, ``load_entropy`` and ``top1_probability``
    are raised, all others lowered."""
    constraints: Annotated[tuple[str, ...], Field(max_length=20, strict=False)] = ()
    """What a trial must keep to be a candidate, each as ``quantity <= number`` or ``>=``: ``dead_experts <= 0``. Sizes
    are checked before training; router health also at milestones, where two violations in a row end a trial; losses
    and speed at the end."""
    num_trials: Annotated[int, Field(ge=1, le=1_000_000), WHOLE]
    """Finished trials (complete or pruned), over all restarts and workers."""
    sampler: SamplerConfig = SamplerConfig()
    pruner: PrunerConfig = PrunerConfig()
    base: TrialConfig = TrialConfig()
    search: Annotated[
        dict[str, Knob],
        Field(
            min_length=1,
            json_schema_extra={
                "expected": "a mapping with a knob or more, such as moe.top_k: { type: categorical, choices: [1, 2] }"
            },
        ),
    ]
    """Dotted path of a field of a trial -> knob."""
    enqueue: Annotated[tuple[dict[str, Choice], ...], Field(max_length=1000, strict=False)] = ()
    """Configurations to try first, in this order: dotted path -> value."""
    limits: LimitsConfig = LimitsConfig()
    stop: StopConfig = StopConfig()
    transfer_from: Annotated[tuple[str, ...], Field(max_length=20, strict=False)] = ()
    """Earlier studies of the store whose results this study's sampler knows from the start, where their trials are
    configurations of this study but for budget and seeds. They count as no trials of this one."""
    confirm: ConfirmConfig = ConfirmConfig()
    control: Control = "dense"
    """What is confirmed beside the leaders: ``dense`` is a model without experts, of the active FLOPs of the search's
    best configuration."""
    run: RunConfig = RunConfig()

    @model_validator(mode="before")
    @classmethod
    def _first_objective_leads(cls, values: object) -> object:
        if isinstance(values, dict) and isinstance(several := values.get("objectives"), list | tuple) and several:
            return {"objective": several[0], **values}
        return values

    @property
    def all_objectives(self) -> tuple[Quantity, ...]:
        """The objectives, the leading one first."""
        return self.objectives or (self.objective,)

    @property
    def curve(self) -> Loss:
        """The loss that the curves of trials show."""
        return curve_of(self.objective)

    @cached_property
    def parsed_constraints(self) -> tuple[Constraint, ...]:
        return tuple(map(parse_constraint, self.constraints))

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        yield from self._broken_objectives()
        for index, text in enumerate(self.constraints):
            try:
                parse_constraint(text)
            except ValueError as error:
                yield "constraints", f"number {index + 1} ({text[:60]!r}) {error}"
        if self.limits.flops is not None and self.base.budget.seconds is not None:
            yield "limits", "flops cannot be kept where base.budget is in seconds; use gpu_hours, or another budget"
        pruner, milestones = self.pruner, self.base.budget.milestones
        if pruner.type in ("asha", "hyperband") and pruner.first_rung >= milestones:
            yield "pruner", f"first_rung ({pruner.first_rung}) must be below base.budget.milestones ({milestones})"
        searched = [path for path in TOKENIZER_FIELDS if path in self.search]
        if searched and self.objective == "val_loss":
            yield (
                "objective",
                f"val_loss is nats per token, and a token is another piece of text under each value of {searched[0]}; "
                "compare bits per byte: objective: val_bpb",
            )

    @property
    def num_confirm_runs(self) -> int:
        """Runs of the confirmation, at most."""
        return num_confirm_runs(
            top=self.confirm.top,
            seeds=self.confirm.seeds,
            lr_search=self.confirm.lr_search,
            lr_is_knob="optim.lr" in self.search,
            has_baseline=bool(self.enqueue),
            has_control=self.control == "dense",
        )

    def _broken_objectives(self) -> Iterator[tuple[str, str]]:
        first, several = self.objective, self.objectives
        if self.sampler.type == "cmaes" and len(several) > 1:
            yield "sampler", f"type cmaes lowers one objective, not {len(several)}; use nsga2, tpe or gp"
        if several and several[0] != first:
            yield "objective", f"({first}) must be the first of objectives ({several[0]}); leave it out"
        if len(set(several)) < len(several):
            yield "objectives", "must differ from each other"
        if first in RAISED:
            yield "objective", f"{first} is raised, and the first objective is one that is lowered; name it second"
        if first not in LOSSES and self.pruner.type != "none":
            yield "pruner", f"type {self.pruner.type} looks at losses, and the first objective is {first}; use none"
        if first not in LOSSES and self.confirm.top:
            yield (
                "confirm",
                f"top ({self.confirm.top}) must be 0 where {first} leads the objectives: it compares losses",
            )
