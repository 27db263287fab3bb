"""Which knobs decided whether a configuration was among the best: Optuna's PED-ANOVA, fed with what pruning hides."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState, create_trial

from moesearch.results.frames import outcome_of
from moesearch.results.study import StudyResults

MIN_TRIALS = 10
MIN_BEST = 5
"""PED-ANOVA's authors advise at least this many trials among the best."""

FEW_TRIALS = 100


@dataclass(frozen=True)
class Importance:
    """The share of each knob, 0 to 1 and 1 in sum, largest first; or none, and why."""

    shares: dict[str, float]
    caveats: tuple[str, ...]


def knob_importance(results: StudyResults) -> Importance:
    """Importance of each searched knob for coming out among the best.

    Optuna reads complete trials only, which are the survivors of pruning: a knob whose bad values were all pruned would
    seem to matter little. PED-ANOVA needs only to know which trials are among the best, and a pruned one is not; so
    pruned trials are counted as worse than every complete one.
    """
    trials = results.search_trials
    complete = [trial for trial in trials if outcome_of(trial) == "complete" and trial.values]
    pruned = [trial for trial in trials if outcome_of(trial) == "pruned"]
    num_trials = len(complete) + len(pruned)
    if num_trials < MIN_TRIALS or len(complete) < MIN_BEST:
        return Importance({}, (f"Not computed: it takes {MIN_TRIALS} finished trials, of them {MIN_BEST} complete.",))
    values = {float(trial.values[0]) for trial in complete}
    varied = [path for path in results.config.search if _varies(path, [*complete, *pruned])]
    if len(values) == 1 or not varied:
        return Importance({}, ("Not computed: all trials are alike in their values or in their loss.",))
    share_of_best = min(max(0.1, MIN_BEST / num_trials), 0.5, len(complete) / num_trials)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of knobs that few trials have
        shares = get_param_importances(
            _ranked_study(complete, pruned),
            evaluator=PedAnovaImportanceEvaluator(target_quantile=share_of_best),
            params=varied,
        )
    caveats = [
        f"Share of each knob in whether a trial is among the best {round(share_of_best * num_trials):,} of "
        f"{num_trials:,} finished ones (PED-ANOVA). It is no size: the effects show those."
    ]
    if num_trials < FEW_TRIALS:
        caveats.append(f"From {num_trials:,} trials it is a hint, not a measurement.")
    if pruned:
        caveats.append(
            f"{len(pruned):,} of {num_trials:,} trials were pruned and count as not among the best, whatever they "
            "would have reached."
        )
    constant = [path for path in results.config.search if path not in varied]
    if constant:
        caveats.append(f"Not varied by the trials so far: {', '.join(constant)}.")
    return Importance(shares, tuple(caveats))


def _varies(path: str, trials: list[FrozenTrial]) -> bool:
    return len({repr(trial.params.get(path)) for trial in trials}) > 1


def _ranked_study(complete: list[FrozenTrial], pruned: list[FrozenTrial]) -> optuna.Study:
    """A study in memory in which pruned trials are complete ones with the worst value."""
    worst = 1.0 + max(float(trial.values[0]) for trial in complete)
    study = optuna.create_study()
    study.add_trials(
        create_trial(
            state=TrialState.COMPLETE,
            value=float(trial.values[0]) if outcome_of(trial) == "complete" else worst,
            params=trial.params,
            distributions=trial.distributions,
        )
        for trial in [*complete, *pruned]
    )
    return study
