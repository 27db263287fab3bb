"""The sections of a report, in the order in which they are read: first the answer, then what it rests on.

A section is a function from the results of a study to a ``Section``, or to None where there is nothing to show yet.
``SECTIONS`` is the one list of them.
"""

from __future__ import annotations

from collections.abc import Callable

from moesearch.config.budget import BudgetConfig
from moesearch.config.dumper import dump_yaml
from moesearch.config.labels import short_value
from moesearch.errors import UnknownStudyError
from moesearch.report import cost_figures, figures, knob_figures
from moesearch.report.blocks import Block, Facts, Gallery, Picture, Section, Snippet, Table, Text
from moesearch.report.numbers import OBJECTIVES, compact, duration, exact, percent
from moesearch.report.pareto import pareto_section
from moesearch.report.ranking import ranking_section
from moesearch.report.routers import routers_section
from moesearch.results import wording
from moesearch.results.compute import compute_spent
from moesearch.results.effects import knob_effects
from moesearch.results.importance import knob_importance
from moesearch.results.provenance import choose, export_yaml, transfer_limits
from moesearch.results.records import FAILURES
from moesearch.results.study import StudyResults


def verdict_section(results: StudyResults) -> Section:
    """The answer in a sentence, and how far the study is."""
    headline, rest = wording.headline_and_rest(results.verdict)
    blocks: list[Block] = [Text(headline, "lead"), *([Text(rest)] if rest else [])]
    if not results.is_finished:
        blocks.append(Text(progress(results), "note"))
    blocks.extend(Text(detail) for detail in wording.details(results.verdict))
    return Section("verdict", "Verdict", "Verdict", tuple(blocks))


def progress(results: StudyResults) -> str:
    """How far a study is that has not ended."""
    config = results.config
    text = f"Not finished: {results.num_finished:,} of {config.num_trials:,} trials"
    running = int((results.trials["outcome"] == "running").sum())
    if running:
        text += f", {running:,} more in training"
    if results.num_finished >= config.num_trials and config.confirm.top:
        done = int((results.confirm["outcome"] == "complete").sum())
        text += f"; confirmation has finished {done:,} of {max(len(results.confirm), done):,} runs"
    return f"{text}. This page is rebuilt while the study runs; the same command takes up a study that was stopped."


def recommended_section(results: StudyResults) -> Section | None:
    """The configuration to take, what it costs, and the file to train it from."""
    try:
        exported = choose(results, "best")
    except UnknownStudyError:
        return None
    row = results.costs.reindex([exported.fingerprint]).iloc[0]
    knobs = results.knobs_of(exported.config)
    blocks: list[Block] = [
        Facts(tuple((path, short_value(value)) for path, value in knobs.items() if exported.config.reads(path))),
        Facts(
            (
                ("total parameters", exact(row["total_params"])),
                ("active parameters", exact(row["active_params"])),
                ("forward FLOPs per token", exact(row["flops_per_token"])),
                ("training FLOPs", compact(row["active_flops"])),
                ("training time of a trial", duration(row["train_seconds"])),
            )
        ),
    ]
    if cheaper := _cheaper_leader(results):
        blocks.append(Text(cheaper, "note"))
    blocks += [
        Snippet("best.yaml", export_yaml(results)),
        Snippet("Train it for its full budget", "python -m moesearch.train best.yaml", in_summary=True),
    ]
    opened = results.verdict.test
    if opened is not None and opened.sample:
        blocks.append(Snippet("What it writes, at this size and budget", opened.sample, is_folded=True))
    is_confirmed = results.verdict.conclusion != "unconfirmed"
    title = f"{'Recommended' if is_confirmed else 'Leading, not confirmed'}: {exported.label}"
    return Section("recommended", "Recommended", title, tuple(blocks))


def _cheaper_leader(results: StudyResults) -> str | None:
    """Where no difference was shown, the leader that needs the fewest FLOPs."""
    verdict = results.verdict
    if verdict.conclusion != "no_difference" or verdict.best is None:
        return None
    leaders = [verdict.best.fingerprint, *(c.fingerprint for c in verdict.comparisons if not c.is_shown)]
    costs = results.costs["flops_per_token"].reindex(leaders).dropna()
    if costs.empty or (cheapest := str(costs.idxmin())) == verdict.best.fingerprint:
        return None
    labels = {candidate.fingerprint: candidate.label for candidate in verdict.ranking}
    return (
        f"Among the leaders, which were not shown to differ, {labels[cheapest]} is the cheapest: "
        f"{exact(costs.min())} forward FLOPs per token."
    )


def cost_section(results: StudyResults) -> Section | None:
    """Loss against what it costs, in each sense of cost."""
    if not (results.ranking["num_seeds"] > 0).any():
        return None
    costs = {
        "flops_per_token": ("cost_flops", "Loss against compute", "forward FLOPs per token"),
        "active_params": ("cost_active", "Loss against active size", "active parameters"),
        "total_params": ("cost_params", "Loss against memory", "total parameters"),
        "train_seconds": ("cost_seconds", "Loss against time", "training seconds of a trial"),
    }
    table = results.ranking[results.ranking["num_seeds"] > 0]
    pictures = [
        Picture(
            name,
            title,
            cost_figures.cost_figure(results, column, label),
            f"{OBJECTIVES[results.config.objective]} of {len(table)} configurations against {label}, "
            f"{compact(table[column].min())} to {compact(table[column].max())}",
            in_summary=column == "flops_per_token",
        )
        for column, (name, title, label) in costs.items()
        if table[column].notna().any()
    ]
    confirmed = cost_figures.confirmed_places(results, "flops_per_token")
    text = (
        "A large mark is a confirmed configuration, the mean over fresh seeds; a pale dot is one of the search, at the "
        "value that the search saw. Nothing that was confirmed beats one on the dashed line in both loss and cost."
        if confirmed
        else "A dot is a configuration with its value in the search. Nothing beats one on the dashed line in both loss "
        "and cost."
    )
    if any(candidate.is_control for candidate, _ in confirmed):
        text += " The triangle is the dense control: no experts, equal active FLOPs."
    text += " Better per step need not be better per second, so every sense of cost has its picture."
    return Section("cost", "Cost", "What a lower loss costs", (Text(text), Gallery(tuple(pictures))))


def curves_section(results: StudyResults) -> Section | None:
    """Learning curves and where the compute went."""
    compute = compute_spent(results)
    if results.curves.empty or not compute.spendings:
        return None
    counts = results.trials["outcome"].value_counts()
    complete, pruned = int(counts.get("complete", 0)), int(counts.get("pruned", 0))
    text = f"Trained to the end: {complete:,}; pruned: {pruned:,}."
    if results.sessions:
        text += f" Wall time, confirmation included: {duration(results.wall_seconds)}."
    if compute.saved_flops:
        text += (
            f" Pruning saved {percent(compute.saved_fraction)} of the training FLOPs that the study would have cost: "
            f"{compact(compute.saved_flops)} FLOPs, or {duration(compute.saved_seconds)} summed over workers."
        )
    curves = Picture(
        "curves",
        "Learning curves",
        figures.curves_figure(results),
        f"Validation loss over training tokens of {complete} complete and {pruned} pruned trials",
        "Grey with a cross: pruned there. The axis leaves out the fall before the second evaluation, so that the ends "
        "can be told apart."
        + (f" An even sample of {figures.MAX_CURVES} each." if len(results.trials) > figures.MAX_CURVES else "")
        + _share_text(results.config.base.budget),
        in_summary=True,
    )
    spent = Picture(
        "compute",
        "Where the compute went",
        figures.compute_figure(compute),
        "; ".join(f"{spending.group} {compact(spending.active_flops)} FLOPs" for spending in compute.spendings),
        f"Training FLOPs. In all {compact(compute.active_flops)} FLOPs and {duration(compute.seconds)} of training and "
        "evaluation, summed over workers.",
    )
    return Section("training", "Training", "Training and pruning", (Text(text), Gallery((curves, spent))))


def _share_text(budget: BudgetConfig) -> str:
    """That a curve's last point is of more text than those before it."""
    share = budget.milestone_share
    return "" if share == 1 else f" Points before a trial's last are of {percent(share)} of the validation split."


def knobs_section(results: StudyResults) -> Section | None:
    """Which knobs mattered, what each value does, and how two of them go together."""
    effects = knob_effects(results)
    if not effects.varied:
        return None
    importance = knob_importance(results)
    pictures: list[Picture] = []
    if importance.shares:
        described = ", ".join(f"{path} {percent(share)}" for path, share in importance.shares.items())
        figure = knob_figures.importance_figure(importance)
        pictures.append(Picture("importance", "Importance of each knob", figure, described, in_summary=True))
    if pair := _pair(results, effects.varied):
        figure = knob_figures.pair_figure(results, effects, *pair)
        title = f"{_leaf(pair[0])} and {_leaf(pair[1])} together"
        described = f"Mean {OBJECTIVES[results.config.objective]} at each pair of {pair[0]} and {pair[1]}"
        caption = "Mean of the complete trials in each cell; darker is lower."
        pictures.append(Picture("pair", title, figure, described, caption, in_summary=True))
    for path in effects.varied:
        means = effects.evened_out(path).groupby(effects.levels[path], observed=True).mean()
        described = "; ".join(f"{level}: {mean:.4f}" for level, mean in means.items())
        figure = knob_figures.effect_figure(results, effects, path)
        pictures.append(Picture(f"effect_{path.replace('.', '_')}", f"Effect of {_leaf(path)}", figure, described))
    num_pruned = int((results.trials["outcome"] == "pruned").sum())
    evened = (
        "The other knobs are evened out by an additive least-squares fit, so that their uneven mix among the trials "
        "does not pass for an effect."
        if effects.is_evened_out
        else "These are plain means: there are too few trials to even out the other knobs, whose uneven mix can pass "
        "for an effect."
    )
    text = f"Effects are over the {len(effects.values):,} complete trials. {evened}"
    if num_pruned:
        text += (
            f" The {num_pruned:,} pruned ones are missing here, so effects of bad values look smaller than they are."
        )
    notes = tuple(Text(caveat, "note") for caveat in importance.caveats)
    return Section("knobs", "Knobs", "What mattered", (Text(text), Gallery(tuple(pictures)), *notes))


def _pair(results: StudyResults, varied: tuple[str, ...]) -> tuple[str, str] | None:
    """Experts and k if both were searched, else the first two knobs that varied."""
    usual = ("moe.num_experts", "moe.top_k")
    if set(usual) <= set(varied):
        return usual
    return (varied[0], varied[1]) if len(varied) > 1 else None


def failures_section(results: StudyResults) -> Section | None:
    """Trials that do not count, and why: knowledge, but the reader should see how much there is of it."""
    failed = results.trials[results.trials["outcome"].isin(FAILURES)]
    if failed.empty:
        return None
    numbers: dict[tuple[str, str], list[int]] = {}
    for row in failed.fillna({"reason": ""}).to_dict("records"):
        numbers.setdefault((str(row["outcome"]).replace("_", " "), str(row["reason"])), []).append(int(row["number"]))
    rows = tuple((*cause, f"{len(trials):,}", _some(trials)) for cause, trials in numbers.items())
    text = "These count against no budget. Infeasible proposals were told to the sampler before any training."
    table = Table("By outcome and reason", ("outcome", "reason", "trials", "numbers"), rows, num_names=2)
    return Section("failures", "Failures", "Trials that do not count", (Text(text), table))


def _some(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return shown if len(numbers) <= 8 else f"{shown}, …"


def settings_section(results: StudyResults) -> Section:
    """What ran where, on what text, with which versions."""
    config, corpus = results.config, results.corpus
    budget = config.base.budget
    rows = [
        ("objective", OBJECTIVES[config.objective]),
        ("budget of a trial", f"{compact(getattr(budget, budget.unit))} {budget.unit}"),
        ("milestones", _milestones_text(budget)),
        ("baseline", results.label_of(results.baseline)),
        *([("the search ended early", results.search_end)] if results.search_end else []),
        *([("results of earlier studies known", exact(results.num_transferred))] if results.num_transferred else []),
        ("sampler, pruner", f"{config.sampler.type} (seed {config.sampler.seed}), {config.pruner.type}"),
        (
            "confirmation",
            f"the best {config.confirm.top}, {config.confirm.seeds} seeds" if config.confirm.top else "none",
        ),
        *((f"corpus {name}".replace("_", " "), _plain(value)) for name, value in corpus.items()),
    ]
    for number, session in enumerate(results.sessions, start=1):
        length = "not ended" if session.ended is None else duration((session.ended - session.started).total_seconds())
        rows.append(
            (
                f"session {number}",
                f"{session.started:%Y-%m-%d %H:%M} UTC, {length}, {session.workers} workers on {session.device}",
            )
        )
    if results.sessions:
        versions = results.sessions[-1].versions
        rows.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    table = Table("Settings and provenance", ("", ""), tuple(rows), num_names=2)
    try:
        limits: tuple[Block, ...] = tuple(
            Text(limit) for limit in transfer_limits(results, choose(results, "best").config)
        )
    except UnknownStudyError:
        limits = ()
    return Section("settings", "Settings", "Settings, provenance, limits", (table, *limits))


def _milestones_text(budget: BudgetConfig) -> str:
    if budget.milestone_share == 1:
        return exact(budget.milestones)
    share = percent(budget.milestone_share)
    return f"{exact(budget.milestones)}, the last on the whole validation split, the others on {share} of it"


def reproduce_section(results: StudyResults) -> Section:
    """The commands that lead here again."""
    values = results.config.model_dump(mode="json", exclude_defaults=True)
    commands = [
        f"python -m moesearch.run {results.name}.yaml",
        f"python -m moesearch.export {results.name} -o best.yaml",
        "python -m moesearch.train best.yaml",
    ]
    blocks = (
        Snippet("Run it again, take the best, train it", "\n".join(commands)),
        Snippet(f"{results.name}.yaml", dump_yaml(values), is_folded=True),
        Text(
            "Beside this page: trials.csv (a row per trial), curves.csv (a row per evaluation), best.yaml, summary.md. "
            "On one machine and one thread a trial gives the same numbers again from its seed."
        ),
    )
    return Section("reproduce", "Reproduce", "How to reproduce it", blocks)


def _plain(value: object) -> str:
    return exact(value) if isinstance(value, int) else str(value)


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]


SECTIONS: tuple[Callable[[StudyResults], Section | None], ...] = (
    verdict_section,
    recommended_section,
    ranking_section,
    pareto_section,
    cost_section,
    curves_section,
    knobs_section,
    routers_section,
    failures_section,
    settings_section,
    reproduce_section,
)
