"""What is shown of long work, with a terminal and without."""

import contextlib
import os
import pty
import select
import sys

import pytest

from flaxlm import progress
from flaxlm.progress import Progress, clock


@pytest.fixture
def now(monkeypatch):
    """Return a clock that stands still until it is moved."""
    time = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])

    def move(seconds):
        time[0] += seconds

    return move


def test_lines_carry_amount_rate_and_time_left(now, capsys):
    with Progress("reading", 10_000_000, unit="MB", scale=1e6) as bar:
        for _ in range(4):
            now(2)
            bar.add(1_000_000)
    assert capsys.readouterr().err == "reading 3.0/10.0 MB  0.5 MB/s  0:14 left\n"


def test_time_left_counts_from_where_the_work_was_taken_up(now, capsys):
    with Progress("train", 100, done=60) as bar:
        now(10)
        bar.update(80, "loss 1.0")
        bar.update(81, "")
    assert capsys.readouterr().err == "train 80/100 steps  loss 1.0  0:10 left\n"


def test_an_unknown_total_has_no_time_left_and_quiet_says_nothing(now, capsys):
    for quiet in (False, True):
        with Progress("reading", None, quiet=quiet) as bar:
            now(6)
            bar.add(12)
    assert capsys.readouterr().err == "reading 12 steps  2.0 steps/s\n"


@contextlib.contextmanager
def a_terminal(monkeypatch):
    """Make standard error a terminal; yield a function that reads it until a text has come."""
    lead, follower = pty.openpty()
    with os.fdopen(follower, "w") as file:
        monkeypatch.setattr(sys, "stderr", file)

        def read(text):
            file.flush()
            shown = b""
            while text.encode() not in shown:  # a terminal gives what it has, which may be a part
                assert select.select([lead], [], [], 10)[0], f"only {shown} came"
                shown += os.read(lead, 65536)
            return shown.decode()

        yield read
    os.close(lead)


def test_a_terminal_gets_a_bar(now, monkeypatch):
    with a_terminal(monkeypatch) as read:
        with Progress("train", 4) as bar:
            now(1)
            bar.update(3, "loss 2.5")
        shown = read("loss 2.5")
    assert "train" in shown
    assert "3/4 steps" in shown


def test_work_within_work_has_a_bar_below(now, monkeypatch):
    with a_terminal(monkeypatch) as read:
        with Progress("train", 4) as bar:
            bar.update(3, "loss 2.5")
            with Progress("evaluate", 2, unit="batches") as inner:
                inner.update(1)
                shown = read("1/2 batches")
                assert shown.rindex("train") < shown.rindex("evaluate")
            bar.update(4, "loss 2.4")
        assert "evaluate" not in read("loss 2.4").rpartition("4/4 steps")[2]
        with Progress("read", 1):
            read("0/1 steps")


def test_clock():
    assert [clock(s) for s in (0, 59.6, 61, 3599.4, 3600)] == [
        "0:00", "1:00", "1:01", "59:59", "1:00:00"
    ]  # fmt: skip
