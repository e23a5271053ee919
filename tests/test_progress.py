"""Progress reports: when they are printed, what they say, and that a library is silent."""

import time

import pytest

from lorica import progress
from lorica.progress import Progress, announce, announce_slow_start, reporting


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


def test_short_work_prints_nothing(capsys, clock):
    with reporting(), Progress("reading rows", 10) as bar:
        clock(1.9)
        bar.update(5)
    assert capsys.readouterr().err == ""


def test_long_work_prints_amount_and_time_left(capsys, clock):
    with reporting(), Progress("reading a.jsonl", 8_000_000, "B") as bar:
        clock(4)
        bar.update(2_000_000, "1,200 rows")
        clock(9)
        bar.update(4_000_000)  # too soon for a second line
        clock(1)
        bar.update(6_000_000)
        clock(2)
    assert capsys.readouterr().err.splitlines() == [
        "reading a.jsonl: 2.0 MB of 8.0 MB, 1,200 rows, 12 s left",
        "reading a.jsonl: 6.0 MB of 8.0 MB, 5 s left",
        "reading a.jsonl: done in 16.0 s",
    ]


def test_without_a_total_no_time_left_is_printed(capsys, clock):
    with reporting(), Progress("evaluating") as bar:
        clock(3)
        bar.advance(1_500)
    printed = capsys.readouterr().err.splitlines()
    assert printed == ["evaluating: 1,500 rows", "evaluating: done in 3.0 s"]


def test_work_that_fails_is_not_done(capsys, clock):
    with pytest.raises(ValueError), reporting(), Progress("merging", 3):
        clock(5)
        raise ValueError
    assert "done" not in capsys.readouterr().err


def test_the_live_line_of_a_terminal_is_cleared(capsys, clock, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with reporting(), Progress("loading", 4, "files") as bar:
        clock(0.3)
        bar.advance()
        clock(0.1)
        bar.advance()
    printed = capsys.readouterr().err
    assert printed == "\r\x1b[Kloading: 1 of 4 files, 1 s left\r\x1b[K"


def test_an_imported_library_is_silent(capsys, clock):
    with Progress("loading", 4) as bar:
        clock(30)
        bar.advance()
    announce("loading a base")
    with reporting(False):
        announce("loading a base")
    assert capsys.readouterr().err == ""
    with reporting():
        announce("loading a base")
    assert capsys.readouterr().err == "loading a base\n"


def test_a_slow_command_is_announced_once(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SLOW_START", 0.01)
    with reporting(), announce_slow_start("lorica train " + "x" * 300):
        until = time.monotonic() + 20
        printed = ""
        while not printed and time.monotonic() < until:
            time.sleep(0.01)
            printed = capsys.readouterr().err
    assert printed.startswith("lorica train xxx") and printed.endswith("...: starting\n")
    assert len(printed) < 200
    monkeypatch.setattr(progress, "SLOW_START", 60.0)
    with reporting(), announce_slow_start("lorica info"):
        pass
    with announce_slow_start("lorica info"):
        pass
    assert capsys.readouterr().err == ""
