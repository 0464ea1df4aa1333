"""How far long work is, said in lines in a log and by a bar on a terminal."""

import io
import sys

import pytest
from tqdm import tqdm

from convert import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that have gone, to be set by the test."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_come_at_shares_of_the_work_and_at_its_end(
    clock: list[float], capsys: pytest.CaptureFixture
):
    with progress.bar(total=40, desc="erasing", initial=10) as bar:
        for step in range(30):
            clock[0] += 1
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
    assert all("it/s" in line and " left" in line for line in lines)
    assert lines[0].endswith(", esd=3")


def test_rates_are_those_since_the_last_line(clock: list[float], capsys: pytest.CaptureFixture):
    bar = progress.bar(total=101)
    clock[0] = 60
    bar.update()
    for _ in range(40):
        clock[0] += 0.5
        bar.update()
    first, *_, last = capsys.readouterr().err.splitlines()
    assert "1 of 101 (1 %), 60.00s/it, " in first
    assert ", 1:40:00 left" in first
    assert "2.00it/s, " in last
    assert last.endswith(", 00:33 left")
    bar.close()


def test_slow_work_tells_every_half_minute(clock: list[float], capsys: pytest.CaptureFixture):
    bar = progress.bar(total=1000)
    for _ in range(6):
        clock[0] += 15
        bar.update()
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(" of 1000")[0] for line in said] == ["2", "4", "6"]
    bar.close()
    assert capsys.readouterr().err == ""


def test_quick_work_has_one_line_and_a_part_of_other_work_none(
    clock: list[float], capsys: pytest.CaptureFixture
):
    for _ in progress.bar(range(3), desc="outer"):
        for _ in progress.bar(range(50), desc="inner", leave=None):
            clock[0] += 0.001
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


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.bar(total=2, desc="erasing") as bar:
        assert type(bar) is tqdm
        bar.update(2)
    assert "\rerasing: 100%|" in terminal.getvalue()
