"""The configuration of a study: what a study file says, checked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from moesearch.config.confirm_runs import num_confirm_runs
from moesearch.config.knobs import Choice, Knob
from moesearch.config.section import WHOLE, Section
from moesearch.config.trial import TrialConfig

Objective = Literal["val_loss", "val_bpb"]

TOKENIZER_FIELDS = ("data.tokenizer", "data.vocab_size")
"""Fields that decide which piece of text a token is."""
MAX_CONFIRM_SEEDS = 100
MAX_LANES = 64
"""More trials than this in flight would leave a sampler nothing to learn from."""


class SamplerConfig(Section):
    """Who proposes the next configuration."""

    type: Literal["auto", "tpe", "random"] = "auto"
    """``auto`` covers a feasible space that fits the budget point by point, and uses TPE (Bergstra et al. 2011) on a
    larger one."""
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
    objective: Objective = "val_loss"
    """What the search lowers: nats per token, or bits per byte where tokenizers differ."""
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
    confirm: ConfirmConfig = ConfirmConfig()
    control: Control = "dense"
    """What is confirmed beside the leaders: ``dense`` is a model without experts, of the active FLOPs of the search's
    best configuration."""
    run: RunConfig = RunConfig()

    def broken_rules(self) -> Iterator[tuple[str, str]]:
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
            has_baseline=bool(self.enqueue),
            has_control=self.control == "dense",
        )
