"""Progress of long work: lines in a log, or a bar on a terminal."""

import io
import sys

import jax
import jax.numpy as jnp
import pytest
from jax import monitoring

from flux_jax import progress
from flux_jax.system import xla_flags


class Clock:
    """A clock with the time that the test sets, in seconds."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Make stderr a terminal."""
    made = io.StringIO()
    monkeypatch.setattr(made, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", made)
    return made


def test_the_pace_leaves_out_what_compiles(clock: Clock):
    pace = progress.Pace(clock)
    pace.compiles()
    clock.now += 100
    pace.iterated(1)
    assert pace.rate is None
    for _ in range(3):
        clock.now += 0.5
        pace.iterated(2)
    assert pace.rate == pytest.approx(4)
    # Another program is compiled later.
    pace.compiles()
    clock.now += 50
    pace.iterated(2)
    assert pace.rate == pytest.approx(4)
    clock.now += 0.5
    pace.iterated(2)
    assert pace.rate == pytest.approx(4)


def test_the_pace_follows_work_that_slows_down(clock: Clock):
    pace = progress.Pace(clock)
    for seconds in (*[1] * 200, *[10] * 200):
        clock.now += seconds
        pace.iterated(1)
    assert pace.rate == pytest.approx(0.1, rel=0.05)


def test_lines_come_at_shares_of_the_work_and_at_its_end(
    clock: Clock, capsys: pytest.CaptureFixture
):
    with progress.bar(total=40, desc="erasing", initial=10, clock=clock) as bar:
        for step in range(30):
            clock.now += 1
            bar.set_postfix({"esd": f"{step}"}, refresh=False)
            bar.update()
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert "".join(lines).isprintable()
    assert [line.partition(",")[0] for line in lines] == [
        *(f"erasing: {n} of 40 ({round(2.5 * n)} %)" for n in (14, 18, 22, 26, 30, 34, 38)),
        "erasing: 40 of 40 (100 %)",
    ]
    assert all(("1.00it/s" in line or "1.00s/it" in line) and " left" in line for line in lines)
    assert lines[0].endswith(", 00:26 left, esd=3")


def test_lines_leave_compiling_out_and_say_it(clock: Clock, capsys: pytest.CaptureFixture):
    # A resumed run: earlier iterations do not count for the rate.
    bar = progress.bar(total=1000, initial=500, desc="erasing", clock=clock)
    bar.compiles()
    # Each iteration has two programs, reported once.
    bar.compiled()
    bar.compiles()
    assert capsys.readouterr().err == "erasing: 500 of 1000, compiling\n"
    clock.now += 145
    bar.compiled()
    bar.update()
    first = capsys.readouterr().err
    assert first.startswith("erasing: 501 of 1000 (50 %), ?it/s, ")
    assert first.endswith(" elapsed, ? left\n")
    for _ in range(99):
        clock.now += 0.5
        bar.update()
    last = capsys.readouterr().err.splitlines()[-1]
    # The last line came 60 iterations after the first.
    assert "561 of 1000" in last
    assert "2.00it/s, " in last
    assert last.endswith(", 03:39 left")
    clock.now += 100
    bar.compiles()
    bar.update()
    assert ": 600 of 1000, compiling\n" in capsys.readouterr().err
    bar.close()
    assert "601 of 1000 (60 %), 2.00it/s" in capsys.readouterr().err


def test_work_of_one_iteration_that_compiles_has_the_whole_rate(
    clock: Clock, capsys: pytest.CaptureFixture
):
    with progress.bar(total=2, desc="pictures", clock=clock) as bar:
        bar.compiles()
        clock.now += 10
        bar.update(2)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("pictures: 2 of 2 (100 %), ")
    assert last.endswith(" 00:00 left")


def test_slow_work_tells_every_half_minute(clock: Clock, capsys: pytest.CaptureFixture):
    bar = progress.bar(total=1000, clock=clock)
    for _ in range(6):
        clock.now += 15
        bar.update()
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(" of 1000")[0] for line in said] == ["2", "4", "6"]
    bar.close()
    assert capsys.readouterr().err == ""


def test_quick_work_has_one_line_and_a_part_of_other_work_none(
    clock: Clock, capsys: pytest.CaptureFixture
):
    for _ in progress.bar(range(3), desc="outer", clock=clock):
        for _ in progress.bar(range(50), desc="inner", leave=None, clock=clock):
            clock.now += 0.001
    err = capsys.readouterr().err
    assert err.startswith("outer: 3 of 3 (100 %)")
    assert err.count("\n") == 1


def test_what_is_written_meanwhile_stays_a_line(capsys: pytest.CaptureFixture):
    with progress.bar(total=2) as bar:
        bar.update()
        bar.write("erased")
    out, err = capsys.readouterr()
    assert out == "erased\n"
    assert err.count("\n") == 1
    assert "\r" not in err


def test_a_terminal_has_a_bar_that_says_compiling(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    terminal = on_terminal(monkeypatch)

    def shown() -> str:
        return terminal.getvalue().rpartition("\r")[2]

    with progress.bar(total=41, desc="erasing", clock=clock, mininterval=0) as bar:
        bar.set_postfix({"esd": "1"})
        bar.compiles()
        assert shown().endswith("?it/s, compiling, esd=1]")
        clock.now += 60
        bar.compiled()
        assert "compiling" not in shown()
        bar.update()
        assert "<?, ?it/s, esd=1]" in shown()
        clock.now += 2
        bar.update()
        assert "<01:18,  2.00s/it" in shown()
    assert "\rerasing:   2%|" in terminal.getvalue()
    assert "2.00s/it" in terminal.getvalue().splitlines()[-1]


def test_bars_that_are_off_say_nothing(capsys: pytest.CaptureFixture):
    for made in (progress.Bar(total=2, disable=True), progress.Lines(total=2, disable=True)):
        with made as bar:
            bar.compiles()
            bar.compiled()
            bar.update()
    assert capsys.readouterr().err == ""


class Heard(progress.Lines):
    """A bar that records its events."""

    def __init__(self):
        self.heard = []
        super().__init__(disable=True)

    def compiles(self) -> None:
        self.heard.append("compiles")

    def compiled(self) -> None:
        self.heard.append("compiled")


def test_jax_tells_when_it_compiles(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(xla_flags, "LARGE", 0.0)
    bar = Heard()
    program = jax.jit(lambda x: jnp.sin(x) * 2)
    x = jnp.ones(3)
    with xla_flags.told(bar):
        program(x)
        assert bar.heard == ["compiles", "compiled"]
        program(x)
        assert bar.heard == ["compiles", "compiled"]
    program(jnp.ones(4))
    assert bar.heard == ["compiles", "compiled"]


def test_small_programs_are_not_worth_a_word():
    bar = Heard()
    with xla_flags.told(bar):
        for _ in range(5):
            # Together they took long, but each one was short.
            monitoring.record_event_duration_secs(xla_flags.TRACED, 0.06)
            monitoring.record_event_duration_secs(xla_flags.LOWERED, 0.02)
            monitoring.record_event_duration_secs(xla_flags.COMPILED, 0.1)
        assert "compiles" not in bar.heard
        monitoring.record_event_duration_secs(xla_flags.TRACED, 0.09)
        monitoring.record_event_duration_secs(xla_flags.LOWERED, 0.02)
        assert bar.heard[-1] == "compiles"
