"""A verdict in words: the sentence that a reader takes away, and the facts that go with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, assert_never

from moesearch.results.statistics import MAX_SEEDS

if TYPE_CHECKING:  # The verdict speaks through this module, so a plain import would be circular.
    from moesearch.results.verdict import Candidate, Comparison, Verdict


def amount(verdict: Verdict, value: float) -> str:
    """A loss or a difference of losses in the verdict's unit, four decimals."""
    return f"{value:.4f} {verdict.unit}"


def percent(value: float) -> str:
    """Two decimals, or two digits where that would be 0.00."""
    return f"{value:.2f} %" if abs(value) >= 0.1 or value == 0 else f"{value:.2g} %"


def joined(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else ""


def sentence(verdict: Verdict) -> str:
    """The verdict in a few sentences."""
    return " ".join(filter(None, headline_and_rest(verdict)))


def headline_and_rest(verdict: Verdict) -> tuple[str, str]:
    """The verdict's answer in one sentence, and those that follow it: empty where there are none."""
    best = verdict.best
    match verdict.conclusion:
        case "nothing":
            return "No configuration has finished its training yet, so there is no answer yet.", ""
        case "unconfirmed":
            assert best is not None
            return _unconfirmed(verdict, best)
        case "alone":
            assert best is not None
            return (
                f"{best.label} reached {amount(verdict, best.mean)}{_interval(verdict, best.low, best.high)} on "
                f"{verdict.num_seeds} fresh seeds.",
                "No other configuration was confirmed, so nothing is said of others.",
            )
        case "winner":
            assert best is not None
            assert verdict.runner_up is not None
            return _winner(verdict, best, verdict.runner_up)
        case "no_difference":
            assert best is not None
            assert verdict.runner_up is not None
            return _no_difference(verdict, best, verdict.runner_up)
        case _:
            assert_never(verdict.conclusion)


def details(verdict: Verdict) -> tuple[str, ...]:
    """What goes with the sentence: luck, noise, the test split, what was left out. A sentence each."""
    facts: list[str] = []
    if (flattery := verdict.flattery) is not None:
        among = "" if verdict.num_searched is None else f", picked from {verdict.num_searched:,} configurations tried,"
        side = "lower" if flattery < 0 else "higher"
        rate = None if verdict.best is None else verdict.best.rate
        fresh = "its mean on fresh seeds"
        if rate is not None and rate.lr != rate.searched_lr:
            fresh = f"on a fresh seed at the same learning rate, {rate.searched_lr:g}"
        facts.append(
            f"Winner's curse: its search value{among} was {amount(verdict, abs(flattery))} {side} than {fresh}."
        )
    facts.extend(_rates(verdict.ranking))
    if verdict.seed_noise is not None:
        noise = amount(verdict, verdict.seed_noise)
        text = f"Seed noise: the loss of one configuration varies by {noise} (standard deviation)"
        if verdict.shows_from is not None:
            shown = amount(verdict, verdict.shows_from)
            text += f"; {verdict.num_seeds} seeds each show a difference of {shown} four times in five"
        facts.append(f"{text}.")
    runner_up = verdict.runner_up
    if runner_up is not None and runner_up.blocks_ahead is not None:
        facts.append(
            f"It is ahead of {runner_up.label} on {runner_up.blocks_ahead} of {runner_up.num_blocks} equal parts of "
            "the validation text. The parts share their seeds, so this alone shows nothing."
        )
    if verdict.test is not None:
        opened = datetime.fromtimestamp(verdict.test.opened_at, UTC)
        facts.append(
            f"The test split was opened once, for this configuration, on {opened:%Y-%m-%d at %H:%M} UTC: "
            f"{verdict.test.mean_loss:.4f} nats, {verdict.test.mean_bits_per_byte:.4f} bits per byte "
            f"(mean of {len(verdict.test.losses)} seed{'s' if len(verdict.test.losses) > 1 else ''})."
        )
    facts.extend(f"Not compared: {left_out.label} ({left_out.reason})." for left_out in verdict.left_out)
    return tuple(facts)


def _rates(ranking: Sequence[Candidate]) -> Iterator[str]:
    """Which learning rate each configuration was confirmed at."""
    found = [(candidate.label, candidate.rate) for candidate in ranking if candidate.rate is not None]
    if found:
        tries = [len(rate.tried) for _, rate in found]
        count = f"{min(tries)}" if min(tries) == max(tries) else f"{min(tries)} to {max(tries)}"
        by_rate: dict[str, list[str]] = {}
        for label, rate in found:
            by_rate.setdefault(f"{rate.lr:.3g}", []).append(label)
        each = "; ".join(f"{lr} for {joined(labels)}" for lr, labels in by_rate.items())
        if len(by_rate) == 1 and len(found) == len(ranking) > 1:
            each = f"{next(iter(by_rate))} for all of them"
        who = "each configuration" if len(found) == len(ranking) else joined([label for label, _ in found])
        were = "were" if 1 < len(found) < len(ranking) else "was"
        yield f"Learning rates: {who} {were} confirmed at the best of {count} tried on a seed apart: {each}."
    ends = [label for label, rate in found if rate.lr in (rate.tried[0][0], rate.tried[-1][0])]
    if ends:
        rates = "learning rate" if len(ends) == 1 else "learning rates"
        are = "is" if len(ends) == 1 else "are"
        yield f"The {rates} of {joined(ends)} {are} at the end of those tried: a better one may lie beyond."


def _interval(verdict: Verdict, low: float | None, high: float | None, kind: str = "") -> str:
    if low is None or high is None:
        return ""
    return f" ({verdict.confidence * 100:g} % interval{kind} {low:.4f} to {high:.4f})"


def _unconfirmed(verdict: Verdict, best: Candidate) -> tuple[str, str]:
    text = f"{best.label} leads with {amount(verdict, best.mean)}, not confirmed yet"
    if len(verdict.ranking) > 1:
        second = verdict.ranking[1]
        text += f": its lead of {amount(verdict, second.mean - best.mean)} over {second.label}"
        if best.num_seeds == second.num_seeds == 1:
            text += " rests on one seed each"
        text += " and was chosen by the numbers that show it"
    return f"{text}.", "Only training on fresh seeds can tell it from luck."


def _winner(verdict: Verdict, best: Candidate, runner_up: Comparison) -> tuple[str, str]:
    name = f"{runner_up.label} (the baseline)" if runner_up.is_baseline else runner_up.label
    others = "" if len(verdict.comparisons) == 1 else f"the runner-up, {name}"
    lead = f"{amount(verdict, runner_up.difference)} ({percent(runner_up.percent)})"
    return (
        f"{_subject(best)} is best: {amount(verdict, best.mean)}, {lead} below {others or name}, at "
        f"{verdict.confidence * 100:g} % confidence ({verdict.num_seeds} fresh seeds each, paired"
        f"{', Holm-corrected' if others else ''}).",
        " ".join(_against(verdict, runner_up)),
    )


def _no_difference(verdict: Verdict, best: Candidate, runner_up: Comparison) -> tuple[str, str]:
    lowest = (
        f"{_subject(best)} has the lowest mean, {amount(verdict, best.mean)}, "
        f"{amount(verdict, runner_up.difference)} ({percent(runner_up.percent)}) below {runner_up.label}"
        f"{_interval(verdict, runner_up.low, runner_up.high, ', Holm-corrected,')}."
    )
    if verdict.seeds_needed is None:
        more_seeds = f"{MAX_SEEDS} seeds each could not show a difference that small: take the cheaper one."
    else:
        more = verdict.seeds_needed - verdict.num_seeds
        seeds = "seed" if more == 1 else "seeds"
        more_seeds = (
            f"If they truly differ by that much, {more} more {seeds} each could show it (now {verdict.num_seeds})."
        )
    rest = (lowest, more_seeds, *_against(verdict, runner_up))
    return f"No difference was shown between the leaders, {joined(verdict.leaders)}.", " ".join(rest)


def _subject(best: Candidate) -> str:
    """The best one's name at the start of a sentence."""
    return best.label[:1].upper() + best.label[1:] if best.is_control else best.label


def _against(verdict: Verdict, already_said: Comparison) -> Iterator[str]:
    """What was shown against the baseline and the dense control, unless it has been said of the runner-up."""
    for other in verdict.comparisons:
        if other is already_said or not (other.is_baseline or other.is_control):
            continue
        name = f"the baseline, {other.label}," if other.is_baseline else f"{other.label} of equal active FLOPs"
        lead = f"{amount(verdict, other.difference)} ({percent(other.percent)})"
        if other.is_shown:
            yield f"It beats {name} by {lead}."
        else:
            yield f"Its lead of {lead} over {name} is not shown either."
