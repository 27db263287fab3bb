"""Studies as the search writes them, with planted losses in place of training."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from moesearch.config.knobs import CategoricalKnob, FloatKnob, IntKnob, Knob
from moesearch.config.resolve import resolve
from moesearch.config.study import StudyConfig
from moesearch.config.trial import TrialConfig
from moesearch.errors import InfeasibleError
from moesearch.model import cost
from moesearch.results import records
from moesearch.results.confirmation import confirm_runs
from moesearch.results.study import read_study
from moesearch.results.verdict import OpenedTest, decide
from moesearch.training.points import EvalPoint, LayerHealth, RouterHealth

VOCAB_SIZE = 65
MILESTONES = 10
STARTED = datetime(2026, 11, 1, 12, 0, 0)

EXPERTS_TOPK: dict[str, Any] = {
    "name": "experts_topk",
    "num_trials": 24,
    "base": {
        "model": {"width": 64, "num_layers": 4, "num_heads": 4, "context": 64},
        "moe": {"num_experts": 8, "top_k": 2, "init": "kaiming_normal", "noise": True},
        "budget": {"steps": 300, "milestones": MILESTONES},
    },
    "search": {
        "moe.num_experts": {"type": "categorical", "choices": [2, 4, 8, 16]},
        "moe.top_k": {"type": "categorical", "choices": [1, 2, 4]},
        "moe.init": {"type": "categorical", "choices": ["kaiming_normal", "xavier_normal", "normal"]},
        "moe.noise": {"type": "categorical", "choices": [True, False]},
    },
    "confirm": {"top": 3, "seeds": 3},
}
BASE_PARAMS = {"moe.num_experts": 8, "moe.top_k": 2, "moe.init": "kaiming_normal", "moe.noise": True}


def true_loss(params: Mapping[str, Any]) -> float:
    """A planted law: more experts help, xavier beats kaiming, noise costs a little."""
    params = {**BASE_PARAMS, **params}
    loss = 2.30 - 0.03 * math.log2(params["moe.num_experts"]) - 0.02 * math.log2(params["moe.top_k"])
    loss += {"kaiming_normal": 0.08, "xavier_normal": 0.0, "normal": 0.04}[params["moe.init"]]
    return loss + (0.02 if params["moe.noise"] else 0.0)


BASE_ON_A_SHARE: dict[str, Any] = {
    **EXPERTS_TOPK["base"],
    "budget": {**EXPERTS_TOPK["base"]["budget"], "milestone_share": 0.25},
}
"""The base with its milestones before the last on a quarter of the validation split."""


@dataclass
class StoreBuilder:
    """Writes a study trial by trial; ``storage`` is what the code under test reads."""

    config: StudyConfig = field(default_factory=lambda: StudyConfig.model_validate(EXPERTS_TOPK))
    storage: BaseStorage = field(default_factory=InMemoryStorage)
    seed: int = 0
    name: str = ""
    """Name in the store, if it is not that of the study file."""

    def __post_init__(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.random = random.Random(self.seed)
        self.name = self.name or self.config.name
        study_id = self.storage.create_new_study([StudyDirection.MINIMIZE], self.name)
        self.study_id = study_id
        self.storage.set_study_system_attr(study_id, records.STUDY_CONFIG, self.config.model_dump(mode="json"))
        self.storage.set_study_system_attr(
            study_id,
            records.CORPUS_FACTS,
            {
                "name": "shakespeare",
                "sha256": "ab" * 32,
                "characters": 5_000_000,
                "distinct_characters": VOCAB_SIZE,
                "train_bytes": 4_500_000,
                "val_bytes": 250_000,
                "test_bytes": 250_000,
            },
        )
        self.confirm_id: int | None = None
        self.clock = STARTED

    def session(self, *, started: float = STARTED.timestamp(), ended: float | None = None, number: int = 0) -> None:
        self.storage.set_study_system_attr(
            self.study_id,
            f"{records.SESSION_PREFIX}{number:04d}",
            {
                "started": started,
                "ended": ended,
                "workers": 2,
                "device": "cpu",
                "host": "laptop",
                "versions": {"python": "3.11.2", "torch": "2.13.0", "optuna": "5.0.0", "moesearch": "0.1.0"},
                "command": "python -m moesearch.run studies/experts_topk.yaml",
            },
        )

    def add(
        self,
        params: Mapping[str, Any] = BASE_PARAMS,
        outcome: str = "complete",
        *,
        milestone: int = MILESTONES,
        loss: float | None = None,
        replicate: int = 0,
        confirm: bool = False,
    ) -> None:
        """One trial that reached ``milestone``; ``loss`` is what it would have after the last one."""
        config = self._resolve(params, seed=self.random.randrange(2**31))
        attrs: dict[str, Any] = {records.REPLICATE: replicate, records.WORKER: "laptop:123:1.00"}
        system: dict[str, Any] = {}
        values: dict[int, float] = {}
        if outcome not in ("running", "waiting"):
            attrs[records.OUTCOME] = outcome
        if config is None:
            attrs[records.REASON] = "top_k must be at most num_experts"
            milestone = 0
        elif outcome != "waiting":
            final = true_loss(params) + self.random.gauss(0, 0.003) if loss is None else loss
            points = [self._point(config, number, final, outcome) for number in range(1, milestone + 1)]
            values = {point.milestone: point.val_loss for point in points}
            for point in points:
                record = asdict(point if point.is_last and outcome == "complete" else point.brief())
                if point.is_last and outcome == "complete":
                    record["val_block_losses"] = [point.val_loss + 0.01 * block for block in range(-4, 5)]
                system[f"{records.MILESTONE_PREFIX}{point.milestone:04d}"] = record
            system[records.CONFIG] = config.model_dump(mode="json")
            attrs |= {
                records.FINGERPRINT: config.fingerprint(),
                records.SEED: config.seed,
                records.TOTAL_PARAMS: cost.total_params(config, VOCAB_SIZE),
                records.ACTIVE_PARAMS: cost.active_params(config, VOCAB_SIZE),
                records.FLOPS_PER_TOKEN: cost.flops_per_token(config, VOCAB_SIZE),
                records.VOCAB_SIZE: VOCAB_SIZE,
                records.CONTEXT_TOKENS: config.model.context,
                records.BYTES_PER_TOKEN: 1.0,
                records.PEAK_MEMORY_BYTES: 700_000_000,
            }
            if points:
                attrs[records.TRAIN_SECONDS] = points[-1].train_seconds
                attrs[records.EVAL_SECONDS] = points[-1].eval_seconds
        self._store(params, outcome, attrs, system, values, confirm)

    def add_experts_topk(self, num_trials: int = 24) -> None:
        """A search in the manner of the main job: the base first, then random points, the worse half pruned."""
        self.add(BASE_PARAMS)
        for number in range(1, num_trials):
            params = {path: self.random.choice(knob["choices"]) for path, knob in EXPERTS_TOPK["search"].items()}
            if params["moe.top_k"] > params["moe.num_experts"]:
                self.add(params, "infeasible")
            elif number > 5 and true_loss(params) > 2.285:
                self.add(params, "pruned", milestone=self.random.randint(3, 7))
            else:
                self.add(params)

    def add_confirmation(self, configs: Sequence[Mapping[str, Any]], seeds: int = 3) -> None:
        for seed in range(seeds):
            for params in configs:
                self.add(params, replicate=seed, confirm=True)

    def store_verdict(self) -> None:
        """What the end of a confirmation writes: the verdict, with the test split opened."""
        results = read_study(self.storage, self.name)
        verdict = decide(confirm_runs(results), num_searched=results.num_configurations)
        test = OpenedTest((2.21, 2.22, 2.20), (3.19, 3.20, 3.17), opened_at=STARTED.timestamp() + 530)
        self.storage.set_study_system_attr(self.study_id, records.VERDICT, replace(verdict, test=test).to_json())

    def _resolve(self, params: Mapping[str, Any], seed: int) -> TrialConfig | None:
        try:
            return resolve(self.config.base, params, seed=seed)
        except InfeasibleError:
            return None

    def _point(self, config: TrialConfig, milestone: int, final: float, outcome: str) -> EvalPoint:
        done = milestone / MILESTONES
        step = int(done * (config.budget.steps or 0))
        tokens = step * config.tokens_per_step
        flops = cost.training_flops_per_token(config, VOCAB_SIZE) * tokens
        val_loss = final + 1.2 * math.exp(-4 * done) - 1.2 * math.exp(-4) + self.random.gauss(0, 0.001)
        return EvalPoint(
            milestone=milestone,
            num_milestones=MILESTONES,
            step=step,
            tokens=tokens,
            active_flops=flops,
            train_loss=val_loss - 0.05,
            val_loss=final if milestone == MILESTONES else val_loss,
            val_bpb=val_loss / math.log(2),
            val_block_losses=(),
            train_seconds=flops / 2.0e10,
            eval_seconds=0.3 * milestone,
            is_diverged=outcome == "diverged" and milestone == MILESTONES,
            router_health=_health(config.moe.num_experts, imbalance=0.5 * (1 - done)),
        )

    def _store(
        self,
        params: Mapping[str, Any],
        outcome: str,
        attrs: dict[str, Any],
        system: dict[str, Any],
        values: dict[int, float],
        confirm: bool,
    ) -> None:
        distributions = {path: _distribution(self.config.search[path]) for path in params}
        if outcome in ("infeasible", "diverged", "out_of_memory"):
            system |= {"constraints": [1.0], "constraints:feasible": 1.0}
        state = {
            "complete": TrialState.COMPLETE,
            "error": TrialState.FAIL,
            "lost": TrialState.FAIL,
            "running": TrialState.RUNNING,
            "waiting": TrialState.WAITING,
        }.get(outcome, TrialState.PRUNED)
        trial = create_trial(
            state=state,
            value=values[max(values)] if outcome == "complete" else None,
            params=dict(params),
            distributions=distributions,
            user_attrs=attrs,
            system_attrs=system,
            intermediate_values=values,
        )
        if state != TrialState.WAITING:
            trial.datetime_start = self.clock
        if state.is_finished():
            self.clock += timedelta(seconds=10 + attrs.get(records.TRAIN_SECONDS, 0))
            trial.datetime_complete = self.clock
        self.storage.create_new_trial(self._confirm_study() if confirm else self.study_id, trial)

    def _confirm_study(self) -> int:
        if self.confirm_id is None:
            name = records.confirm_study_name(self.name)
            self.confirm_id = self.storage.create_new_study([StudyDirection.MINIMIZE], name)
        return self.confirm_id


def _health(num_experts: int, imbalance: float) -> RouterHealth:
    """Two layers alike, whose first expert has this much more than its fair share."""
    fair = 1 / num_experts
    rest = (1 - fair * (1 + imbalance)) / (num_experts - 1)
    layer = LayerHealth(
        load=(fair * (1 + imbalance), *[rest] * (num_experts - 1)),
        load_entropy=1 - 0.1 * imbalance,
        max_vio=imbalance,
        dead_experts=0,
        dropped_fraction=0.0,
        router_entropy=math.log(num_experts) / 2,
        top1_probability=0.5,
        router_logit_rms=1.0,
        bias_range=0.0,
    )
    return RouterHealth.of([layer, layer])


def _distribution(knob: Knob) -> BaseDistribution:
    match knob:
        case CategoricalKnob():
            return CategoricalDistribution(knob.choices)
        case IntKnob():
            return IntDistribution(knob.low, knob.high, log=knob.log)
        case FloatKnob():
            return FloatDistribution(knob.low, knob.high, log=knob.log)


LEADERS: tuple[dict[str, Any], ...] = (
    {"moe.num_experts": 16, "moe.top_k": 4, "moe.init": "xavier_normal", "moe.noise": False},
    {"moe.num_experts": 16, "moe.top_k": 4, "moe.init": "xavier_normal", "moe.noise": True},
    {"moe.num_experts": 8, "moe.top_k": 4, "moe.init": "xavier_normal", "moe.noise": False},
    BASE_PARAMS,
)


def study_config(**changes: Any) -> StudyConfig:
    """The experts_topk study with some of its fields changed."""
    return StudyConfig.model_validate({**EXPERTS_TOPK, **changes})


def finished_study(**kwargs: Any) -> StoreBuilder:
    """A whole study: search with every kind of outcome, confirmation, one session."""
    builder = StoreBuilder(**kwargs)
    builder.add_experts_topk()
    for params in LEADERS[:3]:
        builder.add(params)
    builder.add({**BASE_PARAMS, "moe.num_experts": 2}, "diverged", milestone=2, loss=9.0)
    builder.add({**BASE_PARAMS, "moe.num_experts": 4}, "error", milestone=1)
    builder.add({**BASE_PARAMS, "moe.num_experts": 4}, "lost", milestone=3)
    builder.add(LEADERS[0], replicate=1)
    builder.add_confirmation(LEADERS)
    builder.store_verdict()
    builder.session(ended=STARTED.timestamp() + 540)
    return builder
