from __future__ import annotations

from optuna.trial import FrozenTrial, TrialState, create_trial

from moesearch.results.records import CONTINUES, FINGERPRINT, OUTCOME, REPLICATE
from moesearch.search.ledger import Ledger, takes_room


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
            system_attrs={CONTINUES: {"number": 0, "milestone": 1}} if kind == "goes on" else {},
        )
        trial.number = number
        found.append(trial)
    return found


KINDS = ("done", "void", "goes on", "done", "runs", "done", "waits", "void", "done")


def test_what_is_ahead_is_what_a_full_count_finds_however_often_it_is_asked() -> None:
    trials, ledger = _trials(*KINDS), Ledger()
    for number in (8, 4, 2, 9, 0, 5):
        assert ledger.num_ahead(trials, number) == sum(map(takes_room, trials[:number]))


def test_trials_are_settled_as_far_as_all_have_ended() -> None:
    ledger = Ledger()
    assert [trial.number for trial in ledger.open_trials(_trials(*KINDS))] == [4, 5, 6, 7, 8]
    later = _trials(*KINDS[:4], "void", *KINDS[5:])
    assert [trial.number for trial in ledger.open_trials(later)] == [6, 7, 8]
    assert (ledger.num_settled, ledger.num_finished) == (6, 4)
    assert ledger.num_ahead(later, 9) == sum(map(takes_room, later))


def test_the_next_replicate_is_one_more_than_any_other_trial_has() -> None:
    trials, ledger = _trials(*KINDS), Ledger()
    assert ledger.next_replicate(trials, "a", number=8) == 8
    assert ledger.next_replicate(trials, "a", number=5) == 9
    assert ledger.next_replicate(trials, "b", number=5) == 0
