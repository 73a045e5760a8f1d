"""Results are made from the last checkpoint: at the end, or by the next start after a kill."""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import shutil

import pytest
import tiny_runs as tiny
from dying import Killed, dying, left_aside
from faults import selection

from flaxlm import train as loop
from flaxlm.commands import evaluate, inspect
from flaxlm.errors import StorageError
from flaxlm.evaluation import report
from flaxlm.training import config as run_config
from flaxlm.training import metrics
from flaxlm.training import workdir as workdir_of_a_run
from flaxlm.training.manifest import Manifest
from flaxlm.untrusted import parse_json, sealed, unsealed

pytestmark = pytest.mark.usefixtures("one_device")


def contents(root: pathlib.Path) -> dict:
    """Return the bytes and the time of change of all that a start has no business to change."""
    same = ("lock", "config.json", "run.json", "manifest.json")
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file() and path.name not in same and "cache" not in path.parts
    }


def results(root: pathlib.Path) -> dict[str, bytes]:
    """Return what a killed run must have as the uninterrupted one has it."""
    wanted = [root / "result.json", *(root / "evaluations").glob("*/*")]
    found = {str(p.relative_to(root)): p.read_bytes() for p in wanted if p.suffix != ".png"}
    steps = sorted(p.name for p in (root / "checkpoints").glob("step_*"))
    return found | {"steps": steps}


def figures(root: pathlib.Path) -> dict:
    return unsealed(json.loads((root / "result.json").read_text()))


def recipe(directory, **sections):
    rows = [{"text": f"{'sun' if i % 2 else 'fog'} {i}", "label": "ab"[i % 2]} for i in range(24)]
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = dict(path=str(path), split="file", valid_path=str(path))
    base = dict(
        task=dict(name="classification"),
        objective=dict(name="classification", labels=("a", "b")),
        model=dict(vocab_size=281) | tiny.QUICK,
        data=data,
        train=dict(steps=4, batch_size=16, length=16),
        # The learning rate undoes what was learnt: the best checkpoint is not the last.
        optimizer=dict(learning_rate=3e-2),
        eval=dict(every=1, metric="accuracy", mode="max", patience=9),
        checkpoint=dict(every=2, keep=1),
    )
    for name, values in sections.items():
        base[name] = base[name] | values
    return run_config.from_dict(tiny.recipe("causal", **base))


@pytest.fixture(scope="module")
def train():
    """`train`, compiled once, without pictures, which take a second each."""
    with tiny.shared_programs() as train, pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_pictures", lambda *_: None)
        yield train


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """Config and directory of an uninterrupted run, and the changes of the disk to die at.

    From the first rename on: a process that dies for real does not keep the lock, made before.
    """
    directory = tmp_path_factory.mktemp("whole")
    config = recipe(directory)
    with dying(directory, 0) as seen:
        train(config, directory / "run")
    first = next(i for i, (name, *_) in enumerate(seen, 1) if name == "replace")
    return config, directory / "run", range(first, len(seen) + 1)


def again(train, config, workdir, capfd) -> str:
    """Start a run again, and once more; return what the first of the two said."""
    train(config, workdir)
    said = capfd.readouterr().err
    before = contents(workdir)
    train(config, workdir)
    assert "nothing to do: step" in capfd.readouterr().err
    assert contents(workdir) == before
    assert left_aside(workdir) == []
    return said


@pytest.mark.parametrize("part", selection(range(5), 3))
def test_killed_at_any_change_of_the_disk_a_run_ends_with_the_same_results(
    part, whole, train, tmp_path, capfd, count
):
    config, undisturbed, changes = whole
    assert len(changes) > 150
    for at in selection(changes, 6)[part::5]:
        workdir = tmp_path / str(at)
        with dying(workdir, at), contextlib.suppress(Killed, StorageError):
            train(config, workdir)
        again(train, config, workdir, capfd)
        assert results(workdir) == results(undisturbed), at
        shutil.rmtree(workdir)
        count("training and its results, in one process", kills=1)


@pytest.mark.parametrize("part", selection(range(3), 1))
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_an_error_at_any_change_after_the_last_save_is_mended(
    number, part, whole, train, tmp_path, capfd, count
):
    config, undisturbed, changes = whole
    for at in selection(changes[-60:], 3)[part::3]:
        workdir = tmp_path / str(at)
        with dying(workdir, at, number), contextlib.suppress(StorageError):
            train(config, workdir)
        again(train, config, workdir, capfd)
        assert results(workdir) == results(undisturbed), at
        shutil.rmtree(workdir)
        count("training and its results, in one process", errors=1)


def test_figures_that_a_kill_left_stale_are_made_by_the_next_start(whole, train, tmp_path, capfd):
    config, _, _ = whole
    workdir, parts = tmp_path / "run", ["result.json", "evaluations"]
    train(recipe(tmp_path, train=dict(steps=3)), workdir)
    config = recipe(tmp_path)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop.Loop, "finish", lambda *_: (_ for _ in ()).throw(Killed))
        train(config, workdir)
    assert json.loads((workdir / "result.json").read_text())["step"] == 3
    metrics.write_result(workdir, {"test/accuracy": 0.25})  # another verb's
    said = again(train, config, workdir, capfd)
    assert "made what was not there: " in said and "result.json: step 4 of 4" in said
    result = json.loads((workdir / "result.json").read_text())
    assert result["step"] == 4 and result["test/accuracy"] == 0.25
    # The report, and the figures, of another checkpoint are not the run's.
    for gone in parts:
        with contextlib.suppress(NotADirectoryError):
            shutil.rmtree(workdir / gone)
    scores = evaluate.evaluate(config, workdir, "valid", "latest")
    metrics.write_result(workdir, scores | {"step": 0})
    again(train, config, workdir, capfd)
    assert json.loads((workdir / "result.json").read_text()) == result


def test_pruning_that_a_kill_left_undone_is_done(whole, train, tmp_path, capfd):
    config, undisturbed, _ = whole
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    (newest,) = sorted((workdir / "checkpoints").glob("step_*"))[-1:]
    kept = results(workdir)["steps"]
    places = [workdir / "checkpoints" / f"step_{step:08d}" for step in range(1, 5)]
    step, old = next(pair for pair in enumerate(places, 1) if not pair[1].exists())
    shutil.copytree(newest, old)
    record = dataclasses.replace(Manifest.read(newest), step=step, metrics={})
    (old / "manifest.json").write_bytes(record.to_bytes())
    shutil.copytree(newest, workdir / "checkpoints" / ".trash-step_00000000")
    again(train, config, workdir, capfd)
    assert results(workdir)["steps"] == kept


def test_a_result_that_cannot_be_written_is_an_error_and_a_damaged_one_is_kept(tmp_path):
    (tmp_path / "result.json").mkdir()
    with pytest.raises(StorageError, match=r"cannot write .*result.json: Is a directory"):
        metrics.write_result(tmp_path, {"step": 1})
    (tmp_path / "result.json").rmdir()
    for damaged in (b'{"step": 3, "x', b"[1]", b"\xff{}", b"[" * 5000):
        (tmp_path / "result.json").write_bytes(damaged)
        with pytest.warns(UserWarning, match="was damaged, and is result.json.damaged now"):
            metrics.write_result(tmp_path, {"step": 4})
        assert (tmp_path / "result.json.damaged").read_bytes() == damaged
        assert figures(tmp_path) == {"step": 4}


def test_no_flipped_bit_of_a_result_is_silent(tmp_path):
    """Nor one of a row of metrics, which is written alike; a file without a checksum is taken."""
    path, values = tmp_path / "result.json", {"valid/loss": 5.125, "step": 4, "model": "decoder"}
    metrics.write_result(tmp_path, values)
    whole = path.read_bytes()
    for text in (whole, json.dumps(sealed(values)).encode()):
        for bit in range(8 * len(text)):
            flipped = bytearray(text)
            flipped[bit // 8] ^= 1 << bit % 8
            with contextlib.suppress(ValueError):
                assert unsealed(parse_json(bytes(flipped))) == values
    path.write_bytes(whole.replace(b"5.125", b"5.325"))
    with pytest.warns(UserWarning, match=r"damaged, and is .*: it is not what was written: its ch"):
        assert metrics.write_result(tmp_path, {"step": 4})
    assert figures(tmp_path) == {"step": 4}
    path.write_text('{"test/loss": 2.5}')  # by hand, or by an earlier version
    metrics.write_result(tmp_path, {"step": 4})
    assert figures(tmp_path) == {"step": 4, "test/loss": 2.5}


@pytest.mark.parametrize("name", ["result.json", "metrics.jsonl"])
def test_a_changed_figure_is_found_by_the_next_start(name, whole, train, tmp_path):
    config, undisturbed, _ = whole
    workdir = pathlib.Path(shutil.copytree(undisturbed, tmp_path / "run"))
    text = (workdir / name).read_text()
    loss = text.index("/loss" if name == "result.json" else '"loss')
    changed = text[:loss] + text[loss:].replace(".", ".9", 1)
    (workdir / name).write_text(changed)
    said = f"{name} was damaged" if name == "result.json" else f"{name}, line 1: no row of metrics"
    with pytest.warns(UserWarning, match=said):
        train(config, workdir)
    assert results(workdir) == results(undisturbed)
    assert (workdir / f"{name}.damaged").read_text() in (changed, changed.split("\n")[0] + "\n")


def test_figures_of_an_older_step_say_so_and_the_run_keeps_its_step(train, tmp_path, capfd):
    sections = dict(eval=dict(patience=0, every=4), checkpoint=dict(every=2, keep=2))
    config, workdir = recipe(tmp_path, **sections), tmp_path / "run"
    train(config, workdir)
    before = figures(workdir)
    assert (before["step"], before["valid/step"]) == (4, 4)
    capfd.readouterr()
    for verb in (evaluate, inspect):
        verb.run(verb.Options(workdir=str(workdir), checkpoint="2"), config)
    said = "result.json: valid/… are those of step 2 now, and were of step 4"
    assert said in capfd.readouterr().err
    mixed = figures(workdir)
    assert (mixed["step"], mixed["valid/step"], mixed["digest/step"]) == (4, 2, 2)
    assert mixed["valid/loss"] != before["valid/loss"]
    assert mixed["train/loss"] == before["train/loss"]
    metrics.write_result(workdir, {"valid/of_step_2": 1.0, "baseline/right": 0.5})
    train(config, workdir)  # has its own again
    after = figures(workdir)
    assert {k: v for k, v in after.items() if k in before} == before
    assert {k.partition("/")[0] for k in after.keys() - before} == {
        *("digest", "model", "objective", "parameters", "tokenizer")
    }


def test_a_run_that_patience_ended_says_so_however_long_it_is_made(train, tmp_path, capfd):
    """And no more is promised of it than is so: a shorter one was judged at its end."""
    patient = dict(eval=dict(every=2, patience=1), optimizer=dict(learning_rate=1e-9))
    ended = {}
    for first in (3, 4):
        workdir = tmp_path / str(first)
        for steps in (first, 9):
            capfd.readouterr()
            train(recipe(tmp_path, train=dict(steps=steps), **patient), workdir)
        ended[first] = capfd.readouterr().err
    straight = train(recipe(tmp_path, train=dict(steps=9), **patient), tmp_path / "straight")
    assert "eval.patience=1 ended the run at step 4 of 9" in capfd.readouterr().err
    assert straight["step"] == 4
    for first, said in ended.items():
        assert f"nothing to do: eval.patience=1 ended the run at step {first} of 9" in said
    assert "as if never interrupted" in ended[4] and "as if never" not in ended[3]
    assert "not the same bits: at step 3 the run of 3 steps was judged, at its end" in ended[3]


def test_a_run_that_cannot_be_written_is_not_evaluated_first(whole, tmp_path, monkeypatch):
    config, undisturbed, _ = whole

    def never(*_):
        raise AssertionError("it was evaluated")

    monkeypatch.setattr(evaluate, "examine", never)
    monkeypatch.setattr(workdir_of_a_run.files, "create", read_only)
    with pytest.raises(StorageError, match=r"cannot write in .*: Read-only file system"):
        evaluate.evaluate(config, undisturbed, "valid", "latest")


def read_only(path):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
