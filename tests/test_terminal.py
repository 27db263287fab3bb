from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from moesearch.snapshots import clock_text, left_text, plain_line
from moesearch.terminal import Leader, LiveDisplay, RunningTrial, Snapshot, estimate_seconds_left, frame

SNAPSHOT = Snapshot(
    study_name="experts_topk",
    objective="val_loss",
    phase="search",
    num_trials=24,
    complete=9,
    pruned=3,
    infeasible=1,
    failed=0,
    running=(
        RunningTrial(13, "E4 k1 kaiming noise-on", 2, 10, 2.5312),
        RunningTrial(14, "E8 k4 kaiming noise-on", 6, 10, 2.4921),
        RunningTrial(15, "E16 k1 xavier noise-on", 0, 10, None),
    ),
    leaders=(Leader(12, "E8 k2 xavier noise-off", 2.412), Leader(7, "E16 k2 xavier noise-off", 2.4183)),
    elapsed_seconds=252.0,
    seconds_left=310.0,
)


class Clock:
    """A clock that stands where it is put."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def drawn(
    snapshot: Snapshot, columns: int = 80, rows: int = 24, waited_seconds: float = 0.0, *, is_over: bool = False
) -> list[str]:
    console = Console(width=columns, height=rows, file=io.StringIO(), record=True, color_system=None)
    console.print(frame(snapshot, waited_seconds, columns, rows, is_over=is_over))
    return console.export_text().splitlines()


# The words.


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (252.9, "4:12"), (3852, "1:04:12")])
def test_a_duration_reads_as_on_a_clock(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "time left unknown yet"),
        (2, "a few seconds left"),
        (7, "about 10 s left"),
        (44, "about 40 s left"),
        (58, "about 1 min left"),
        (3569, "about 59 min left"),
        (3571, "about 1 h left"),
        (7900, "about 2 h 10 min left"),
    ],
)
def test_an_estimate_is_no_finer_than_it_deserves(seconds: float | None, text: str) -> None:
    assert left_text(seconds) == text


def test_no_time_is_forecast_before_a_trial_has_ended() -> None:
    assert estimate_seconds_left([], 24, [0.5], 2) is None


def test_the_work_left_is_shared_among_the_workers() -> None:
    # 20 s on average; 3 whole trials and two halves are 80 s of work for 2 workers.
    assert estimate_seconds_left([30.0, 10.0], 3, [0.5, 0.5], 2) == pytest.approx(40.0)


def test_the_end_is_no_nearer_than_the_longest_running_trial() -> None:
    assert estimate_seconds_left([20.0], 0, [0.0, 1.0], 8) == pytest.approx(20.0)


def test_a_line_says_all_that_matters() -> None:
    assert plain_line(SNAPSHOT) == (
        "experts_topk: 12/24 trials; 9 complete, 3 pruned, 1 infeasible; "
        "best val_loss 2.4120 (E8 k2 xavier noise-off #12); 3 running; 4:12 elapsed, about 5 min left"
    )


def test_the_confirmation_counts_its_own_runs() -> None:
    assert "confirming, 4/9 runs" in plain_line(replace(SNAPSHOT, phase="confirm", confirmed=4, num_confirm_runs=9))


# The tables of a terminal.


def test_the_picture_at_80_columns() -> None:
    assert [line.rstrip() for line in drawn(SNAPSHOT)] == [
        "experts_topk                                      4:12 elapsed, about 5 min left",
        "━━━━━━━━━━━━━━━                 12/24 trials  9 complete  3 pruned  1 infeasible",
        "",
        "     best so far                                               val_loss   behind",
        "#12  E8 k2 xavier noise-off                                      2.4120",
        " #7  E16 k2 xavier noise-off                                     2.4183  +0.0063",
        "",
        "     running                                                            val_loss",
        "#14  E8 k4 kaiming noise-on                         ━━━━━━━       6/10    2.4921",
        "#13  E4 k1 kaiming noise-on                         ━━            2/10    2.5312",
        "#15  E16 k1 xavier noise-on                                       0/10",
    ]


def test_a_wide_terminal_has_both_tables_side_by_side() -> None:
    (headings,) = [line for line in drawn(SNAPSHOT, columns=120) if "best so far" in line]
    assert "running" in headings


@pytest.mark.parametrize("columns", [20, 40, 80, 120, 300])
@pytest.mark.parametrize("rows", [10, 14, 24, 60])
def test_a_picture_fits_its_terminal(columns: int, rows: int) -> None:
    trials = tuple(replace(SNAPSHOT.running[0], number=n, label="a very long label " * 9) for n in range(64))
    leaders = tuple(replace(SNAPSHOT.leaders[0], number=n, label="a very long label " * 9) for n in range(64))
    lines = drawn(replace(SNAPSHOT, running=trials, leaders=leaders), columns, rows)
    assert len(lines) < rows
    assert max(map(len, lines)) <= columns


def test_trials_that_do_not_fit_are_counted() -> None:
    trials = tuple(replace(SNAPSHOT.running[0], number=n) for n in range(64))
    assert any("running (56 more)" in line for line in drawn(replace(SNAPSHOT, running=trials)))


def test_the_clock_runs_on_between_snapshots() -> None:
    assert "4:22 elapsed, about 5 min left" in drawn(SNAPSHOT, waited_seconds=10.0)[0]


def test_what_stays_at_the_end_makes_no_forecast() -> None:
    assert drawn(SNAPSHOT, is_over=True)[0].endswith("4:12 elapsed")


def test_markup_and_control_characters_of_a_name_are_shown_and_not_obeyed() -> None:
    (line,) = [
        line
        for line in drawn(replace(SNAPSHOT, leaders=(Leader(1, "[red]x[/red]\x1b[2J\n", 2.0),)))
        if line.startswith("#1 ")
    ]
    assert "[red]x[/red]�[2J�" in line


# Which of the two is shown, and when.


def shown(stream: io.StringIO, *, quiet: bool = False) -> str:
    with LiveDisplay(stream=stream, quiet=quiet) as display:
        display.update(SNAPSHOT)
        display.note("a note")
        display.warn("take care")
    return stream.getvalue()


def test_a_pipe_gets_plain_lines() -> None:
    assert shown(io.StringIO()) == f"{plain_line(SNAPSHOT)}\na note\nwarning: take care\n"


def test_a_pipe_gets_plain_lines_even_where_colour_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in shown(io.StringIO())


def test_a_terminal_gets_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "best so far" in shown(Terminal())


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not any(code in shown(Terminal()) for code in ("\x1b[32m", "\x1b[1;32m", "\x1b[36m"))


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in shown(Terminal())


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_quiet_leaves_only_warnings(stream: io.StringIO) -> None:
    assert shown(stream, quiet=True) == "warning: take care\n"


def test_plain_lines_do_not_flood() -> None:
    stream, clock = io.StringIO(), Clock()
    with LiveDisplay(stream=stream, clock=clock) as display:
        for complete in range(100):  # a trial every half second for 50 s
            display.update(replace(SNAPSHOT, complete=complete))
            clock.now += 0.5
    assert stream.getvalue().count("\n") == 6  # the first, one in ten seconds, and the last


def test_a_study_that_only_comes_further_says_so_once_a_minute() -> None:
    stream, clock = io.StringIO(), Clock()
    with LiveDisplay(stream=stream, clock=clock) as display:
        for milestone in range(130):
            display.update(replace(SNAPSHOT, running=(RunningTrial(1, "E4", milestone, 1000, 2.5),)))
            clock.now += 1.0
    assert stream.getvalue().count("\n") == 3


def test_a_new_phase_is_told_at_once() -> None:
    stream = io.StringIO()
    with LiveDisplay(stream=stream, clock=Clock()) as display:
        display.update(SNAPSHOT)
        display.update(replace(SNAPSHOT, phase="report"))
    assert "writing the report" in stream.getvalue()


def test_the_last_news_are_told_at_the_end() -> None:
    stream = io.StringIO()
    with LiveDisplay(stream=stream, clock=Clock()) as display:
        display.update(SNAPSHOT)
        display.update(replace(SNAPSHOT, complete=10))
    assert stream.getvalue().splitlines()[-1].startswith("experts_topk: 13/24 trials; 10 complete")


def test_an_error_in_the_block_leaves_the_terminal_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), LiveDisplay(stream=stream):
        raise KeyboardInterrupt
    hidden, shown_again = stream.getvalue().rfind("\x1b[?25l"), stream.getvalue().rfind("\x1b[?25h")
    assert 0 <= hidden < shown_again
