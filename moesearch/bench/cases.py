"""The comparisons that the bench makes, one function per case; each returns its figures.

Every ratio is taken between things that were timed in turns, in one process, with the same number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from moesearch.bench import settings
from moesearch.bench.figures import Figure, Mark, at_least, at_most, milliseconds, minutes
from moesearch.bench.measure import Clock, Effort, Side, interleave
from moesearch.bench.products import BareProducts, step_products, training_flops
from moesearch.bench.reference import ReferenceTrainer
from moesearch.bench.subjects import ForwardBackward, TrainerSteps
from moesearch.bench.workers import Worker, train_at_once
from moesearch.config.dense import dense_control
from moesearch.config.trial import TrialConfig
from moesearch.data.tokens import TokenData


@dataclass(frozen=True)
class Pace:
    """How thorough the bench is."""

    scale: float
    """Factor on the seconds that a case asks for."""
    min_rounds: int
    part_of_val: float
    """How much of the validation split is read where an evaluation is timed by itself."""
    expert_counts: tuple[int, ...]
    """Numbers of experts over which growth is watched, from 4 to 64."""
    lane_counts: tuple[int, ...]
    """Numbers of lanes, from 1."""


QUICK = Pace(scale=1, min_rounds=3, part_of_val=1 / 16, expert_counts=(4, 16, 64), lane_counts=(1, 4, 16))
FULL = Pace(scale=8, min_rounds=7, part_of_val=1 / 2, expert_counts=(4, 8, 16, 32, 64), lane_counts=(1, 2, 4, 8, 16))


@dataclass(frozen=True)
class Bench:
    """What all cases share."""

    device: str
    clock: Clock
    pace: Pace
    tokens: TokenData
    """The article's text, in size."""
    search_tokens: TokenData
    article: TrialConfig = settings.ARTICLE
    search: TrialConfig = settings.SEARCH

    @property
    def is_cuda(self) -> bool:
        return self.device.startswith("cuda")

    def effort(self, seconds: float) -> Effort:
        """So long at a quick pace."""
        return Effort(seconds * self.pace.scale, self.pace.min_rounds)

    def steps_of(self, subject: TrainerSteps) -> Side:
        """Training steps of ours; on a GPU as many at one go as in a study, so that none waits for the host."""
        num_steps = 32 if self.is_cuda else 1
        return Side(lambda: subject.steps(num_steps), units=num_steps)


def step_against_reference(bench: Bench) -> list[Figure]:
    """(a) One training step in the article's setting: ours against the article's way of writing it."""
    config = bench.article
    ours = TrainerSteps(config, bench.tokens, device=bench.device)
    reference = ReferenceTrainer(config, bench.tokens.train, bench.tokens.vocab_size, bench.device)
    timings = interleave(
        {"ours": bench.steps_of(ours), "reference": Side(reference.step)}, bench.clock, bench.effort(2)
    )
    ours_seconds, reference_seconds = timings.median("ours"), timings.median("reference")
    return [
        Figure(
            case="a",
            key="step_vs_reference",
            title="article's step / our step",
            spread=timings.ratio({"reference": 1}, {"ours": 1}),
            mark=at_least(10 if bench.is_cuda else 1.6),
            detail=f"{milliseconds(reference_seconds)} / {milliseconds(ours_seconds)}",
            parts={"ours_step_seconds": ours_seconds, "reference_step_seconds": reference_seconds},
        )
    ]


def moe_against_dense(bench: Bench) -> list[Figure]:
    """(b) One training step of an MoE against the dense control of a study: equal active FLOPs, the same trainer."""
    return [
        _moe_against_dense(bench, settings.with_experts(bench.article, 8, 2), at_most(1.3)),
        _moe_against_dense(bench, settings.with_experts(bench.article, 32, 8, bench.article.model.width), at_most(1.8)),
    ]


def _moe_against_dense(bench: Bench, config: TrialConfig, mark: Mark) -> Figure:
    moe = TrainerSteps(config, bench.tokens, device=bench.device)
    dense = TrainerSteps(dense_control(config), bench.tokens, device=bench.device)
    sides = {"moe": bench.steps_of(moe), "dense": bench.steps_of(dense)}
    timings = interleave(sides, bench.clock, bench.effort(2))
    num_experts, top_k, hidden = config.moe.num_experts, config.moe.top_k, config.expert_hidden_dim
    return Figure(
        case="b",
        key=f"moe_vs_dense_{num_experts}_{top_k}",
        title=f"step of {num_experts} experts, top-{top_k}, width {hidden} / dense step",
        spread=timings.ratio({"moe": 1}, {"dense": 1}),
        mark=mark,
        detail=f"{milliseconds(timings.median('moe'))} / {milliseconds(timings.median('dense'))}",
        parts={"moe_step_seconds": timings.median("moe"), "dense_step_seconds": timings.median("dense")},
    )


def growth_with_experts(bench: Bench) -> list[Figure]:
    """(c) How a step grows with the number of experts at top-2, in the article's setting otherwise.

    The bare products grow too: fewer tokens share each weight that is read and each gradient that is written.
    """
    few, *others = bench.pace.expert_counts
    sides = {}
    for count in (few, *others):
        config = settings.with_experts(bench.article, count, 2)
        trainer = TrainerSteps(config, bench.tokens, device=bench.device)
        sides[f"passes {count}"] = Side(ForwardBackward(trainer.trainer.model(0), bench.tokens))
        sides[f"step {count}"] = bench.steps_of(trainer)
        if count in (few, others[-1]):
            products = BareProducts(step_products(config, bench.tokens.vocab_size), bench.device)
            sides[f"products {count}"] = Side(products.step)
    timings = interleave(sides, bench.clock, bench.effort(4))

    def figure(key: str, title: str, side: str, count: int, mark: Mark | None = None) -> Figure:
        base, grown = f"{side} {few}", f"{side} {count}"
        return Figure(
            case="c",
            key=f"{key}_{few}_{count}",
            title=f"{title}, {count} experts / {few} experts",
            spread=timings.ratio({grown: 1}, {base: 1}),
            mark=mark,
            detail=f"{milliseconds(timings.median(grown))} / {milliseconds(timings.median(base))}",
            parts={f"seconds_{few}": timings.median(base), f"seconds_{count}": timings.median(grown)},
        )

    marks = {others[-1]: at_most(1.5)}
    return [
        *(figure("expert_growth", "forward+backward", "passes", count, marks.get(count)) for count in others),
        *(figure("expert_step_growth", "whole step", "step", count) for count in others),
        figure("products_growth", "bare matrix products", "products", others[-1]),
    ]


def run_against_reference(bench: Bench) -> list[Figure]:
    """(d) The article's whole run from measured parts: 5000 steps and 51 evaluations, each in its own protocol."""
    part_of_val = bench.pace.part_of_val
    config = bench.article
    tokens = settings.with_part_of_val(bench.tokens, part_of_val)
    ours = TrainerSteps(config, tokens, device=bench.device)
    reference = ReferenceTrainer(config, tokens.train, tokens.vocab_size, bench.device)
    sides = {
        "our step": bench.steps_of(ours),
        "our evaluation": Side(ours.evaluate, settles=False),
        "reference step": Side(reference.step),
        "reference batch": Side(reference.evaluation_batch),
    }
    timings = interleave(sides, bench.clock, bench.effort(2))
    points = settings.ARTICLE_EVAL_POINTS
    our_run = {"our step": settings.ARTICLE_STEPS, "our evaluation": points / part_of_val}
    num_batches = points * settings.ARTICLE_BATCHES_PER_EVAL_POINT
    their_run = {"reference step": settings.ARTICLE_STEPS, "reference batch": num_batches}
    return [
        Figure(
            case="d",
            key="run_vs_reference",
            title="article's 5000-step run / our run",
            spread=timings.ratio(their_run, our_run),
            mark=at_least(3),
            detail=f"{minutes(timings.median_total(their_run))} / {minutes(timings.median_total(our_run))}",
            parts={
                "ours_run_seconds": timings.median_total(our_run),
                "ours_evaluation_seconds": timings.median("our evaluation") / part_of_val,
                "reference_run_seconds": timings.median_total(their_run),
                "reference_evaluation_seconds": timings.median("reference batch")
                * settings.ARTICLE_BATCHES_PER_EVAL_POINT,
            },
        )
    ]


def trials_at_once(bench: Bench) -> list[Figure]:
    """(e) Trials per hour of a search, evaluations included: by lanes in one process, and by worker processes."""
    return _lanes(bench) + _workers(bench)


def _lanes(bench: Bench) -> list[Figure]:
    """Lanes share steps and evaluations: trials of one length reach their milestones together."""
    part_of_val = bench.pace.part_of_val
    tokens = settings.with_part_of_val(bench.search_tokens, part_of_val)
    config = bench.search.model_copy(update={"budget": bench.article.budget})
    lane_counts = bench.pace.lane_counts
    sides = {}
    for num_lanes in lane_counts:
        subject = TrainerSteps(config, tokens, num_lanes=num_lanes, device=bench.device)
        side = bench.steps_of(subject)
        sides[f"step {num_lanes}"] = Side(side.call, units=side.units * num_lanes)
        sides[f"evaluation {num_lanes}"] = Side(subject.evaluate, units=num_lanes, settles=False)
    timings = interleave(sides, bench.clock, bench.effort(4))
    trials = {
        num_lanes: {
            f"step {num_lanes}": settings.SEARCH_STEPS,
            f"evaluation {num_lanes}": settings.SEARCH_MILESTONES / part_of_val,
        }
        for num_lanes in lane_counts
    }
    per_hour = {num_lanes: 3600 / timings.median_total(trial) for num_lanes, trial in trials.items()}
    marks = {16: at_least(8)} if bench.is_cuda else {4: at_least(1.25)}
    return [
        Figure(
            case="e",
            key=f"lanes_{num_lanes}_vs_1",
            title=f"trials an hour, {num_lanes} lanes / 1 lane",
            spread=timings.ratio(trials[1], trials[num_lanes]),
            mark=marks.get(num_lanes),
            detail=f"{per_hour[num_lanes]:,.0f} / {per_hour[1]:,.0f}",
            parts={f"trials_per_hour_{count}": per_hour[count] for count in (1, num_lanes)},
        )
        for num_lanes in lane_counts[1:]
    ]


def _workers(bench: Bench) -> list[Figure]:
    """Each worker trains and evaluates as in a study; a stretch is a part of what lies between two milestones."""
    part = 1.0 if bench.is_cuda else 0.1
    steps_per_stretch = round(part * settings.SEARCH_STEPS / settings.SEARCH_MILESTONES)
    config = settings.with_milestones(bench.search, steps_per_stretch)
    tokens = settings.with_part_of_val(bench.search_tokens, part)
    with ExitStack() as stack:
        together, *apart = (
            stack.enter_context(Worker(config, tokens, threads=threads, device=bench.device)) for threads in (2, 1, 1)
        )
        sides = {
            "1": Side(lambda: train_at_once([together], num_milestones=1), settles=False),
            "2": Side(lambda: train_at_once(apart, num_milestones=1), units=2, settles=False),
        }
        timings = interleave(sides, bench.clock, bench.effort(3))
    stretches = settings.SEARCH_MILESTONES / part
    per_hour = {name: 3600 / stretches / timings.median(name) for name in sides}
    return [
        Figure(
            case="e",
            key="workers_2_vs_1",
            title="trials an hour, 2 workers / 1 with 2 threads",
            spread=timings.ratio({"1": 1}, {"2": 1}),
            mark=None if bench.is_cuda else at_least(1.7),
            detail=f"{per_hour['2']:,.0f} / {per_hour['1']:,.0f}",
            parts={f"trials_per_hour_{name}": value for name, value in per_hour.items()},
        )
    ]


def share_of_products(bench: Bench) -> list[Figure]:
    """(f) The floor: the bare matrix products of the step in the article's setting."""
    config = bench.article
    products = step_products(config, bench.tokens.vocab_size)
    ours = TrainerSteps(config, bench.tokens, device=bench.device)
    sides = {"step": bench.steps_of(ours), "products": Side(BareProducts(products, bench.device).step)}
    timings = interleave(sides, bench.clock, bench.effort(1.5))
    step_seconds, product_seconds = timings.median("step"), timings.median("products")
    rate = training_flops(products) / product_seconds / 1e9
    return [
        Figure(
            case="f",
            key="products_share_of_step",
            title="bare matrix products / our step",
            spread=timings.ratio({"products": 1}, {"step": 1}),
            detail=f"{milliseconds(product_seconds)} / {milliseconds(step_seconds)}, at {rate:,.0f} GFLOP/s",
            parts={"products_seconds": product_seconds, "step_seconds": step_seconds, "products_gflops": rate},
        )
    ]


CASES: Mapping[str, Callable[[Bench], list[Figure]]] = {
    "a": step_against_reference,
    "b": moe_against_dense,
    "c": growth_with_experts,
    "d": run_against_reference,
    "e": trials_at_once,
    "f": share_of_products,
}
