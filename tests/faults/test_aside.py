"""What is made aside appears whole, one writer's or another's, and what the dead left is swept."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest
from checkpoint_cases import make_state
from dying import Killed, dying, left_aside

from flaxlm import files, locks
from flaxlm.errors import ConfigError, Unsafe
from flaxlm.evaluation import report
from flaxlm.evaluation.evaluate import Evaluation
from flaxlm.tasks import TASKS
from flaxlm.tasks.task import Answer
from flaxlm.training import config as run_config
from flaxlm.training import metrics, reading
from flaxlm.training.checkpoint import CheckpointConfig, Checkpointer
from flaxlm.untrusted import unsealed

pytestmark = pytest.mark.usefixtures("one_device")


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
    result = unsealed(json.loads((tmp_path / "result.json").read_text()))
    assert result == {f"{v}/{n}": v for v in range(1, 6) for n in range(rounds)}
    assert left_aside(tmp_path) == []


ASIDE = (
    "import pathlib, sys; from flaxlm import files, locks\n"
    "place = pathlib.Path(sys.argv[1])\n"
    "with files.replacing(place / 'result.json'), locks.replacing_directory(place / 'report'):\n"
    "    print('held', flush=True); sys.stdin.read()"  # until the test has ended, however it does
)


def test_what_a_dead_process_left_aside_is_swept_and_a_living_ones_is_not(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(files.__file__).parents[1])}
    command = [sys.executable, "-c", ASIDE, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as writer:
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
