"""Logs cannot stop a run: what is damaged is moved aside, what cannot be written is a warning."""

import errno
import json
import os
import sys
import warnings

import pytest
import tiny_runs as tiny
from command_line import CommandLine, trained
from tensorboardX.proto.event_pb2 import Event

from flaxlm.progress import note
from flaxlm.training.logs import Events, Log, Rows
from flaxlm.untrusted import sealed

pytestmark = pytest.mark.usefixtures("one_device")


def row(step: int, **more) -> bytes:
    return json.dumps({"step": step, "loss": 1.0 / step} | more).encode() + b"\n"


GOOD = row(1) + row(2)
DAMAGE = {
    "one bad byte": (GOOD + row(3).replace(b"loss", b"l\xffss") + row(4), [3]),
    "a torn line": (GOOD + row(3)[:9], [3]),
    "a torn line that was gone on after": (GOOD + row(3)[:9] + row(4) + row(5), [3]),
    "NULs": (GOOD + bytes(4096), [3]),
    "no object": (b"5\n" + GOOD + b"[1]\nnull\n", [1, 4, 5]),
    "no step": (GOOD + b'{"loss": 1.0}\n{"step": "3"}\n{"step": true}\n', [3, 4, 5]),
    "nested deeply": (GOOD + b"[" * 100_000 + b"\n", [3]),
    "the bytes of something else": (b"\x89PNG\r\n\x1a\n" + GOOD, [1, 2]),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_lines_are_moved_aside_and_the_good_ones_kept(kind, tmp_path):
    data, bad = DAMAGE[kind]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(data)
    with pytest.warns(
        UserWarning, match=rf"metrics.jsonl, line {', '.join(map(str, bad))}: no row"
    ):
        rows = Rows(path, 4)
    wanted = [line for n, line in enumerate(data.split(b"\n"), 1) if line and n not in bad]
    kept = [line for line in wanted if json.loads(line)["step"] <= 4]
    assert path.read_bytes() == b"".join(line + b"\n" for line in kept)
    aside = (tmp_path / "metrics.jsonl.damaged").read_bytes()
    assert aside.count(b"\n") == len(bad) and all(
        line in aside for n, line in enumerate(data.removesuffix(b"\n").split(b"\n"), 1) if n in bad
    )
    last = {"step": 5, "loss": 0.5}
    rows.row(last)
    assert path.read_bytes().endswith(b"}\n" + json.dumps(sealed(last)).encode() + b"\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the next start finds nothing
        Rows(path, 5)


def test_the_last_row_of_a_torn_file_does_not_stand_twice(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(GOOD + row(3).removesuffix(b"\n"))  # whole, but for its end
    Rows(path, 3).row({"step": 4})
    assert [json.loads(line)["step"] for line in path.open()] == [1, 2, 3, 4]
    before = path.stat().st_mtime_ns
    Rows(path, 4)
    assert path.stat().st_mtime_ns == before


def test_the_row_of_an_evaluation_that_is_still_to_be_made_does_not_stand_twice(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 2, "loss": 1.0}, {"step": 2, "valid/loss": 1.0}, {"step": 3, "loss": 1.0}]
    path.write_text("".join(f"{json.dumps(r)}\n" for r in [*rows, {"step": 3, "valid/loss": 1.0}]))
    Rows(path, 3, scored=2)
    assert [json.loads(line) for line in path.open()] == rows


def full(monkeypatch, after: int):
    """Make the disk full, `after` bytes of a write, until the list that is returned holds any."""
    real, room = os.write, []

    def write(file, data):
        if room:
            return real(file, data)
        if len(data) == size.setdefault(file, len(data)):  # the beginning of a record
            return real(file, data[:after])
        size.clear()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    size: dict[int, int] = {}
    monkeypatch.setattr(os, "write", write)
    return room


def test_rows_that_a_full_disk_has_no_room_for_are_counted_and_none_is_torn(tmp_path, monkeypatch):
    log = Rows(tmp_path / "metrics.jsonl", 0)
    log.row({"step": 1})
    room = full(monkeypatch, after=7)
    with pytest.warns(UserWarning, match=r"metrics.jsonl cannot be written: No space left") as said:
        for step in (2, 3, 4):
            log.row({"step": step})
    assert len(said) == 1
    room.append(True)
    log.row({"step": 5})
    assert [json.loads(line)["step"] for line in log.path.open()] == [1, 5]
    with pytest.warns(UserWarning, match="metrics.jsonl lacks 3 records"):
        log.close()


def test_events_of_a_full_disk_are_whole_records_and_nothing_waits(tmp_path, monkeypatch):
    log = Events(tmp_path / "tensorboard", 0)
    for step in range(1, 40):
        if step == 5:
            room = full(monkeypatch, after=3)
        if step == 30:
            room.append(True)
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            log.row({"step": step, "loss": 1.0})
    data, steps = log.path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        steps += [event.step] * bool(event.summary.value)
        data = data[16 + size :]
    assert steps == [*range(1, 5), *range(30, 40)] and log.lost == 25


def test_standard_error_on_a_full_disk_stops_nothing():
    with warnings.catch_warnings():  # the child computes nothing
        warnings.simplefilter("ignore")
        child = os.fork()
    if not child:
        code = 1
        try:
            os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            note("a line")
            note("another")
            code = 0
        finally:  # else the child would run the tests that follow
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_trace_that_cannot_be_written_is_a_warning(tmp_path):
    trace = Log(tmp_path / "profile")
    warned = pytest.warns(UserWarning, match="profile cannot be written: No profile started")
    with warned, trace.spared(RuntimeError):
        raise RuntimeError("No profile started")
    with pytest.raises(RuntimeError), trace.spared():
        raise RuntimeError


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"Row {i} of the text, which is long enough.\n\n" for i in range(200)))
    data = dict(path=str(path), document="paragraph", valid_fraction=0.1)
    train = dict(steps=4, batch_size=8, length=16, log_every=1, profile_steps="1:2")
    parts = dict(data=data, train=train, model=dict(vocab_size=281), eval=dict(every=2))
    return tiny.recipe("recurrent", **parts, checkpoint=dict(every=2))


def test_a_run_whose_logs_cannot_be_written_ends_as_any_other(recipe, tmp_path):
    place = tmp_path / "run"
    for name in ("metrics.jsonl", "run.json"):
        (place / name).mkdir(parents=True)
    for name in ("tensorboard", "profile"):
        (place / name).write_text("")
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    line = CommandLine(tmp_path, cwd=tmp_path, seconds=120)
    done = line("train", f"--config={tmp_path / 'recipe.json'}", f"--workdir={place}")
    assert done.code == 0 and done.errors == [], done.err
    said = [line for line in done.err.splitlines() if line.startswith("warning:")]
    for name in ("metrics.jsonl", "run.json", "profile"):
        assert sum(f"{name} cannot be written" in line for line in said) == 1, done.err
    assert sum("tensorboard/events" in x and "cannot be written" in x for x in said) == 1, done.err
    assert any("metrics.jsonl lacks 6 records" in line for line in said)
    assert json.loads((place / "result.json").read_text())["step"] == 4
    # What is a result is no log.
    (place / "result.json").unlink()
    (place / "result.json").mkdir()
    done = line("train", f"--workdir={place}")
    assert done.code == 74 and len(done.errors) == 1
    assert "result.json: Is a directory" in done.errors[0]


def test_a_damaged_metrics_file_is_gone_on_with(recipe, tmp_path):
    """And a resume past the first step of a profile; and figures that a kill left stale."""
    train = recipe["train"] | dict(profile_steps="")
    line, place = trained(tmp_path, recipe | {"train": train})
    path = place / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"step": 2', b'"step": \xff', 1) + b'{"st')
    more = ("--config.train.steps=6", "--config.train.profile_steps=1:6")
    done = line("train", f"--workdir={place}", *more)
    assert done.code == 0 and done.errors == [], done.err
    assert "metrics.jsonl, line 2, 7: no row of metrics as it was written, moved to " in done.err
    assert "profile cannot be written: No profile started" in done.err
    rows = [json.loads(line) for line in path.open()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 3, 4, 5, 6]
    whole = (place / "result.json").read_bytes()
    for stale in (b'{"step": 4, "train/loss": 9.0}\n', b""):
        (place / "result.json").write_bytes(stale)
        done = line("train", f"--workdir={place}", *more)
        assert done.code == 0 and "made what was not there: result.json: step 6 of 6" in done.err
        assert (place / "result.json").read_bytes() == whole
