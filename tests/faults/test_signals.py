"""SIGTERM and SIGINT to one process, whatever it is at, and a watchdog that names what hangs."""

import fcntl
import json
import pathlib
import signal
import subprocess
import sys

import broken
import fault_recipes
import pytest
import tiny_runs as tiny
from command_line import ROOT, CommandLine, trained
from faults import ALL, selection

from flaxlm.processes import signals

SOON = 15.0  # seconds in which an end without a save has to come
MODEL = dict(model=dict(vocab_size=281))
LONG = tiny.recipe(
    "recurrent",
    **MODEL,
    train=dict(steps=10**6, log_every=10),
    eval=dict(every=0),
    checkpoint=dict(every=0),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory, text):
    recipe = tiny.recipe(
        "recurrent",
        **MODEL,
        train=dict(steps=1),
        data=dict(path=text, document="paragraph", valid_fraction=0.1),
    )
    return trained(tmp_path_factory.mktemp("run"), recipe)


@pytest.fixture
def start(tmp_path, text):
    """Return a function that starts a command in an own directory."""
    line = CommandLine(tmp_path, cwd=tmp_path, seconds=120)

    def command(*arguments, breaks=(), **changes):
        config = LONG | {"data": dict(path=text, document="paragraph", valid_fraction=0.1)}
        for section, values in changes.items():
            config[section] = config.get(section, {}) | values
        (tmp_path / "recipe.json").write_text(json.dumps(config))
        script = [broken.__file__, *breaks] if breaks else []
        given = ["train", f"--config={tmp_path / 'recipe.json'}", f"--workdir={tmp_path / 'run'}"]
        return line.start([[*script, *(arguments or given)]])[0]

    return command


def leaves(running, number: int, code: int, *texts: str, times: int = 1) -> None:
    """Signal a command; it must end soon with a code and one line that has all texts."""
    for _ in range(times):
        running.signal(number)
        running.ended(0.5)
    done = running.wait(SOON)
    assert (done.code, len(done.errors)) == (code, 1), done.err
    assert "bug" not in done.err and "Traceback" not in done.err
    for one in texts:
        assert one in done.errors[0]


def step_of(workdir: pathlib.Path) -> int:
    """Return the newest step that is saved, 0 for none."""
    return max([int(p.name[5:]) for p in workdir.glob("checkpoints/step_*")], default=0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("said", selection(["starting from scratch", "tokenizer:"], 1))
def test_before_the_loop(start, said, number, tmp_path):
    running = start()
    running.until_said(said)
    leaves(running, number, 75, "asked to stop", number.name, "nothing to be saved")
    assert not step_of(tmp_path / "run")


@pytest.mark.parametrize("verb", selection(["train", "tokenize"], 1))
def test_while_it_waits_for_another_process(start, run, verb, tmp_path, text):
    line, workdir = run
    (key,) = [path.name for path in (workdir / "cache").iterdir() if path.is_dir()]
    (tmp_path / "run" / "cache").mkdir(parents=True)
    with open(tmp_path / "run" / "cache" / f".{key}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        recipe = f"--config={line.directory / 'recipe.json'}"
        running = start(verb, recipe, f"--workdir={tmp_path / 'run'}")
        running.until_said("waiting for another process")
        leaves(running, signal.SIGTERM, 75, "asked to stop (SIGTERM)", "the wait for")


VERBS = {
    "evaluate": ("evaluate", "flaxlm.evaluation.evaluate.judged"),
    "generate": ("generate --prompt=Row", "flaxlm.inference.generate.generate"),
    "embed": ("embed --input={texts} --output={out}", "flaxlm.inference.embed.embed"),
    "inspect": ("inspect", "flaxlm.commands.inspect.batch_digest"),
}


@pytest.mark.parametrize("verb", selection(list(VERBS), 1))
def test_while_a_verb_computes(start, run, verb, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "Row 1"}\n')
    words, place = VERBS[verb]
    words = words.format(texts=tmp_path / "texts.jsonl", out=tmp_path / "out.npy").split()
    running = start(*words, f"--workdir={run[1]}", breaks=(place, "hang"))
    running.until_said("broken: hang")
    leaves(running, signal.SIGTERM, 75, "asked to stop (SIGTERM)")
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])  # the latter of a lost terminal
def test_in_the_loop_it_saves(start, number, tmp_path):
    running = start()
    running.until_said("train 10/")
    leaves(running, number, 75, "asked to stop, and saved step")
    assert step_of(tmp_path / "run") >= 10


def test_interrupted_twice_ends_at_once_in_a_save_that_hangs(start, tmp_path):
    place = "flaxlm.training.checkpoint.Checkpointer.save"
    running = start(breaks=(place, "hang"))
    running.until_said("train 10/")
    running.signal(signal.SIGINT)
    running.until_said("broken: hang")
    leaves(running, signal.SIGINT, 130, "interrupted twice", "not saved")


HANGS = {
    "the batch of step": "flaxlm.sharding.to_global",
    "the checkpoint of step": "flaxlm.training.checkpoint.Checkpointer.save",
    "the evaluation of step 5": "flaxlm.evaluation.evaluate.judged",
    "the first parameters": "flaxlm.train.restore_or_init",
}


@pytest.mark.parametrize("what", selection(list(HANGS), 1))
def test_what_hangs_is_named(start, what):
    changes = dict(train=dict(stuck_after=3.0), eval=dict(every=5), checkpoint=dict(every=3))
    done = start(breaks=(HANGS[what], "hang"), **changes).wait(60)
    assert (done.code, len(done.errors)) == (71, 1), done.err
    assert "waited 3 s (train.stuck_after)" in done.errors[0]
    assert what in done.errors[0]


def test_what_hangs_in_glue_between_its_trainings(start, tmp_path):
    fault_recipes.write_data(tmp_path)
    config = tiny.recipe("masked", model=tiny.QUICK | dict(vocab_size=281))
    del config["objective"]
    (tmp_path / "glue.json").write_text(json.dumps(config))
    flags = [f"--data={tmp_path / 'glue'}", f"--config={tmp_path / 'glue.json'}", "--tasks=cola"]
    flags += [f"--workdir={tmp_path / 'run'}", "--config.train.stuck_after=2"]
    running = start("glue", *flags, breaks=("flaxlm.commands.glue.check_rows", "hang"))
    done = running.wait(60)
    assert (done.code, len(done.errors)) == (71, 1), done.err
    assert "waited 2 s (train.stuck_after)" in done.errors[0]


@pytest.mark.skipif(not ALL, reason="half a minute, in make faults")
def test_an_evaluation_that_comes_along_is_not_stuck(start):
    changes = dict(train=dict(stuck_after=8.0, steps=2, batch_size=4, length=8))
    evaluation = dict(every=2, batch_size=4)
    slow = ("flaxlm.sharding.to_global", "slow")  # half a second a batch
    done = start(breaks=slow, **changes, eval=evaluation).wait(100)
    assert done.code == 0, done.err
    assert done.err.count("broken: slow") > 2 + 2 * 8, "the evaluation was no longer than that"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])  # of a shell's jobs; of nohup
def test_what_is_ignored_stays_ignored(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with signals.listen():
            assert signal.getsignal(number) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, signal.SIG_DFL)
    finally:
        signal.signal(number, before)


# What an interpreter still does when the signals have their default actions back.
LAST = """
import os, runpy, sys
class Last:
    def __del__(self, kill=os.kill, process=os.getpid()):
        kill(process, {number})
sys.last = Last()
sys.argv = ["flaxlm", "--help"]
runpy.run_module("flaxlm", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_when_all_is_done_changes_nothing(number):
    command = [sys.executable, "-c", LAST.format(number=int(number))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "") and "train" in done.stdout
