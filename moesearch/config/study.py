"""The configuration of a study: what a study file says, checked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from moesearch.config.knobs import Choice, Knob
from moesearch.config.trial import WHOLE, Section, TrialConfig

Objective = Literal["val_loss", "val_bpb"]

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
    """Who stops a trial early; always on ``val_loss`` at equal milestones."""

    type: Literal["median", "none"] = "median"
    """``median`` stops a trial that is worse than the median of the others at its milestone (Golovin et al. 2017)."""
    warmup_milestones: Annotated[int, Field(ge=0, le=10_000), WHOLE] = 2
    """Milestones of each trial before it can be pruned."""
    warmup_trials: Annotated[int, Field(ge=0, le=1_000_000), WHOLE] = 5
    """Finished trials before any trial can be pruned."""


class ConfirmConfig(Section):
    """Further training of the leaders on fresh seeds, before the verdict."""

    top: Annotated[int, Field(ge=0, le=100), WHOLE] = 3
    """Leading configurations that are trained again; 0 skips confirmation."""
    seeds: Annotated[int, Field(ge=2, le=100), WHOLE] = 3
    """Fresh seeds for each of them: 3 for a first look, 5 for a claim (docs/decisions/0004-verdict.md)."""


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
    run: RunConfig = RunConfig()
