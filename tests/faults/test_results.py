"""Results are made from the last checkpoint: at the end, or by the next start after a kill."""

import contextlib
import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import tiny_runs as tiny
from checkpoint_cases import make_state
from faults import selection

from flaxlm import files, locks
from flaxlm import train as loop
from flaxlm.commands import evaluate
from flaxlm.errors import ConfigError, StorageError, Unsafe
from flaxlm.evaluation import report
from flaxlm.evaluation.evaluate import Evaluation
from flaxlm.tasks import TASKS
from flaxlm.tasks.task import Answer
from flaxlm.training import config as run_config
from flaxlm.training import metrics, reading
from flaxlm.training.checkpoint import CheckpointConfig, Checkpointer

pytestmark = pytest.mark.usefixtures("one_device")
CHANGES = ("replace", "rename", "unlink", "rmdir", "mkdir", "fsync", "write", "ftruncate")


class Killed(BaseException):
    """Stands for a signal that nobody can catch."""


@contextlib.contextmanager
def dying(root: pathlib.Path, at: int, error: int = 0):
    """Kill the process at its change `at` of the disk: from there on nothing changes any more.

    Yields the list of all changes. With an `error` number that one change fails instead.
    """
    seen, lock = [], threading.Lock()

    def wrapped(name, real):
        def change(*arguments, **options):
            with lock:
                seen.append((name, *arguments[:2]))
                number = len(seen)
            if error and number == at:
                raise OSError(error, os.strerror(error))
            if not error and at and number >= at:
                raise Killed
            return real(*arguments, **options)

        return change

    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            patch.setattr(os, name, wrapped(name, getattr(os, name)))
        yield seen


def left_aside(root: pathlib.Path) -> list[str]:
    """Return what is neither a result nor a lock."""
    return [path.name for path in root.rglob(".*") if not path.name.endswith(".lock")]


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
    for at in selection(changes[part::5], 1):
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
    for at in selection(changes[-60:][part::3], 1):
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
    old = workdir / "checkpoints" / "step_00000001"
    record = json.loads((newest / "manifest.json").read_bytes())
    if not old.exists():
        shutil.copytree(newest, old)
        from flaxlm.training.manifest import Manifest

        sound = Manifest.read(newest)
        (old / "manifest.json").write_bytes(
            type(sound)(**{**vars(sound), "step": 1, "metrics": {}}).to_bytes()
        )
    shutil.copytree(newest, workdir / "checkpoints" / ".trash-step_00000000")
    assert record["step"] == 4
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
        assert json.loads((tmp_path / "result.json").read_text()) == {"step": 4}


def evaluation(value: int) -> Evaluation:
    examples = [{"id": f"f:{i}", "text": "t", "target": "x"} for i in range(40)]
    answers = [Answer(f"answer {value}", float(value)) for _ in examples]
    return Evaluation({"exact_match": float(value)}, examples, ["x"] * 40, answers)


def test_reports_and_results_written_at_once_are_each_of_one_evaluation(tmp_path):
    place, rounds, wrong = tmp_path / "evaluations" / "text_to_text-valid", 4, []
    task = TASKS["text_to_text"]()
    report.write(place, evaluation(0), task)

    def write(value):
        for number in range(rounds):
            report.write(place, evaluation(value), task, step=value)
            metrics.write_result(tmp_path, {f"{value}/{number}": value})

    def read():
        while any(writer.is_alive() for writer in writers):
            with locks.locked(place.parent, shared=True):
                lines = (place / "predictions.jsonl").read_text().splitlines()
                scores = json.loads((place / "scores.json").read_text())
            found = {json.loads(line)["prediction"] for line in lines}
            if found != {f"answer {scores['step']}"} or len(lines) != 40:
                wrong.append((found, scores))

    writers = [threading.Thread(target=write, args=(value,)) for value in range(1, 6)]
    reader = threading.Thread(target=read)
    for thread in [*writers, reader]:
        thread.start()
    for thread in [*writers, reader]:
        thread.join(60)
    assert wrong == []
    result = json.loads((tmp_path / "result.json").read_text())
    assert result == {f"{v}/{n}": v for v in range(1, 6) for n in range(rounds)}
    assert left_aside(tmp_path) == []


ASIDE = (
    "import pathlib, sys, time; from flaxlm import files, locks\n"
    "place = pathlib.Path(sys.argv[1])\n"
    "with files.replacing(place / 'result.json'), locks.replacing_directory(place / 'report'):\n"
    "    print('held', flush=True); time.sleep(60)"
)


def test_what_a_dead_process_left_aside_is_swept_and_a_living_ones_is_not(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(files.__file__).parents[1])}
    command = [sys.executable, "-c", ASIDE, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "held\n"
        locks.sweep(tmp_path)
        assert len(left_aside(tmp_path)) == 2
        writer.send_signal(signal.SIGKILL)
        writer.wait(10)
    (tmp_path / ".result.json.lock").touch()
    locks.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".result.json.lock"]


def test_a_report_whose_replacement_was_killed_is_put_back(tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "scores.json").write_text("{}")
    with dying(tmp_path, 0) as seen, locks.replacing_directory(tmp_path / "report") as aside:
        (aside / "scores.json").write_text("{}")
    # After the one before was moved away.
    at = 1 + next(i for i, (name, *_) in enumerate(seen, 1) if name == "replace")
    with pytest.raises(Killed), dying(tmp_path, at), locks.replacing_directory(tmp_path / "report"):
        pass
    assert not (tmp_path / "report").exists()
    locks.sweep(tmp_path)
    assert [p.name for p in (tmp_path / "report").iterdir()] == ["scores.json"]
    assert not [name for name in left_aside(tmp_path) if name.endswith(".old")]


def test_a_lock_that_is_not_given_back_is_refused_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    refused = pytest.raises(Unsafe, match="x is in use: another process has held")
    with locks.locked(tmp_path / "x"), refused, locks.locked(tmp_path / "x"):
        pass
    with locks.locked(tmp_path / "y", shared=True):  # a reader makes none
        assert not (tmp_path / ".y.lock").exists()


def test_a_reader_takes_another_checkpoint_where_the_run_deletes_its_own(tmp_path):
    config = CheckpointConfig(keep=1, keep_best=1)
    with Checkpointer(tmp_path, config, metric="valid/loss") as saved:
        saved.save(1, make_state(1), {"valid/loss": 2.0}, wait=True)
        asked = run_config.EvalConfig()

        def read(source):
            if source.step == 1:  # while it is read
                saved.save(2, make_state(2), {"valid/loss": 1.0}, wait=True)
            return source.saved.restore_params(source.step)[1].step

        for word in ("best", "latest", ""):
            assert reading.read_chosen(tmp_path, word, asked, read) == 2
            if word == "best":
                continue
        saved.save(3, make_state(3), {"valid/loss": 0.5}, wait=True)
        with pytest.raises(ConfigError, match=r"--checkpoint=1 is not there; .* or 3"):
            reading.read_chosen(tmp_path, "1", asked, read)
