from __future__ import annotations

from optuna.trial import FrozenTrial, TrialState, create_trial

from moesearch.results.records import FINGERPRINT, OUTCOME, REPLICATE
from moesearch.results.standing import is_void
from moesearch.search.ledger import Ledger


def _trials(*kinds: str) -> list[FrozenTrial]:
    """Trials of one configuration, whose numbers are their places."""
    found = []
    for number, kind in enumerate(kinds):
        state = {"runs": TrialState.RUNNING, "waits": TrialState.WAITING, "void": TrialState.FAIL}.get(
            kind, TrialState.COMPLETE
        )
        trial = create_trial(
            state=state,
            value=1.0 if state is TrialState.COMPLETE else None,
            user_attrs={FINGERPRINT: "a", REPLICATE: number, OUTCOME: "error" if kind == "void" else "complete"},
        )
        trial.number = number
        found.append(trial)
    return found


KINDS = ("done", "void", "waits", "done", "runs", "done", "waits", "void", "done")


def test_what_is_ahead_is_what_a_full_count_finds_however_often_it_is_asked() -> None:
    ledger = Ledger()
    for trials in (_trials(*KINDS), _trials(*KINDS[:4], "void", *KINDS[5:], "done")):
        for number in (8, 4, 2, 9, 0, 5):
            assert ledger.num_ahead(trials, number) == sum(not is_void(trial) for trial in trials[:number])


def test_trials_are_settled_once_they_have_ended_whatever_those_before_them_do() -> None:
    ledger = Ledger()
    assert [trial.number for trial in ledger.open_trials(_trials(*KINDS))] == [2, 4, 6]
    later = _trials(*KINDS[:4], "void", *KINDS[5:], "runs")
    assert [trial.number for trial in ledger.open_trials(later)] == [2, 6, 9]
    assert ledger.num_finished == 4


def test_the_next_replicate_is_one_more_than_any_other_trial_has() -> None:
    trials, ledger = _trials(*KINDS), Ledger()
    assert ledger.next_replicate(trials, "a", number=8) == 9
    assert ledger.next_replicate(trials, "a", number=6) == 9
    assert ledger.next_replicate(trials, "b", number=6) == 0
