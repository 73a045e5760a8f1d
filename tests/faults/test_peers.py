"""Several processes: what befalls one of them ends all, in time, with one code and one line."""

import json
import pathlib
import signal
import socket
import time

import broken
import pytest
import tiny_runs as tiny
from command_line import CommandLine, Running, trained
from faults import ALL, selection

MODEL = dict(model=tiny.QUICK | dict(vocab_size=281))
STUCK = 20.0  # seconds of train.stuck_after: longer than anything is compiled here
VERBS = ["train", "evaluate", "generate"]
PAIRS = [(2, 1), (2, 0), (4, 2)] if ALL else [(2, 1)]  # how many processes, and which is hit
STOPS = [(verb, *pair) for verb in VERBS[:2] for pair in PAIRS]
CASES = [(verb, *pair) for verb in VERBS for pair in PAIRS]
# What takes long in each verb, on all processes.
LONG = {"evaluate": "flaxlm.sharding.to_global", "generate": "flaxlm.inference.generate.generate"}
READY = {"train": "train 10/", "evaluate": "broken: slow", "generate": "broken: hang"}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def recipe(text: str, steps: int = 10**6, **changes) -> dict:
    sections = dict(
        train=dict(steps=steps, log_every=5),
        eval=dict(every=0),
        checkpoint=dict(every=0),
        data=dict(path=text, document="paragraph", valid_fraction=0.5),
    )
    for name, values in changes.items():
        sections[name] = sections.get(name, {}) | values
    return tiny.recipe("causal", **MODEL, **sections)


@pytest.fixture(scope="module")
def run(tmp_path_factory, text) -> pathlib.Path:
    return trained(tmp_path_factory.mktemp("run"), recipe(text, steps=1))[1]


@pytest.fixture
def start(tmp_path, text, run):
    """Return a function that starts the processes of a verb; all are ended with the test."""
    started: list[Running] = []

    def start(verb, count, *flags, some=None, breaks=None, cwds=(), config=None, only=None):
        """`some` and `breaks` are {index: flags, or what is broken}; `only` some are started."""
        own = verb == "train"
        (tmp_path / "recipe.json").write_text(json.dumps(config or recipe(text)))
        workdir = f"--workdir={tmp_path / 'run' if own else run}"
        port, commands = free_port(), []
        start.port, start.commands = port, commands
        for index in range(count):
            slow = (LONG[verb], READY[verb].split()[1]) if not own and breaks is None else ()
            broke = (breaks or {}).get(index, slow)
            line = [broken.__file__, *broke] if broke else []
            line += [verb] + [workdir] * ("--workdir=run" not in flags)
            line += [f"--coordinator=localhost:{port}", f"--num_processes={count}"]
            line += [f"--process_id={index}"]
            line += [f"--config={tmp_path / 'recipe.json'}"] if own else []
            line += ["--prompt=Row", "--max_new_tokens=8"] if verb == "generate" else []
            commands.append([*line, *flags, *(some or {}).get(index, ())])
        chosen = range(count) if only is None else only
        place = CommandLine(tmp_path, cwd=tmp_path, seconds=150)
        started.extend(place.start([commands[i] for i in chosen], 0, (), cwds))
        return started

    yield start
    for one in started:
        one.signal(signal.SIGCONT)
        one.kill()


def until_ready(verb: str, runs: list[Running]) -> None:
    """Wait until all are in the midst of it."""
    said = runs if verb != "train" else runs[:1]
    for one in said:
        one.until_said(READY[verb], 120)


def end_as_one(
    runs: list[Running], code: int, index: int, *texts: str, within: float = 15.0, but=()
) -> str:
    """Require that all end in time with a code and the same line that names a process; return it.

    `but` are those that could not.
    """
    end, lines = time.monotonic() + within, set()
    for one in runs:
        if one not in but:
            done = one.wait(max(end - time.monotonic(), 0.1))
            assert (done.code, len(done.errors)) == (code, 1), done.err
            assert "Traceback" not in done.err or code == 70, done.err
            assert "Check failure" not in done.err
            lines |= set(done.errors)
    (line,) = lines
    assert line.startswith(f"error: process {index}:"), line
    assert ("a bug in flaxlm" in line) == (code == 70)
    for text in texts:
        assert text in line
    return line


def nothing_is_left(workdir: pathlib.Path) -> None:
    """Require that a run directory has no token, and is locked by nobody."""
    assert not list(workdir.glob(".shared*"))
    locks = pathlib.Path("/proc/locks").read_text()
    assert f":{(workdir / 'lock').stat().st_ino} " not in locks


def step_of(workdir: pathlib.Path) -> int:
    return max([int(p.name[5:]) for p in workdir.glob("checkpoints/step_*")], default=0)


@pytest.mark.parametrize(("verb", "count", "hit"), selection(CASES, 1))
def test_one_is_killed(start, verb, count, hit, tmp_path):
    runs = start(verb, count)
    until_ready(verb, runs)
    runs[hit].signal(signal.SIGKILL)
    end_as_one(runs, 75, hit, "ended without a word", within=30, but=[runs[hit]])
    if verb == "train":
        nothing_is_left(tmp_path / "run")


@pytest.mark.parametrize(("verb", "count", "hit"), selection(STOPS, 1))
def test_one_is_stopped(start, verb, count, hit):
    runs = start(verb, count, f"--config.train.stuck_after={STUCK}")
    until_ready(verb, runs)
    runs[hit].signal(signal.SIGSTOP)
    end_as_one(
        runs, 71, hit, "train.stuck_after", "has not answered", within=STUCK + 15, but=[runs[hit]]
    )
    runs[hit].signal(signal.SIGCONT)
    end_as_one(runs, 71, hit)


@pytest.mark.skipif(not ALL, reason="half a minute, in make faults")
def test_one_is_stopped_and_goes_on(start, text):
    runs = start("train", 2, config=recipe(text, steps=50))
    runs[0].until_said("train 10/", 120)
    runs[1].signal(signal.SIGSTOP)
    time.sleep(8.0)
    runs[1].signal(signal.SIGCONT)
    assert [one.wait(100).code for one in runs] == [0, 0]


FAILS = {
    "train": "flaxlm.training.metrics.MetricWriter.push",
    "evaluate": "flaxlm.evaluation.evaluate.loss_metrics",
    "generate": "flaxlm.inference.generate.generate",
}
ERRORS = [(*case, how) for case in CASES for how in ("refuse", "fail")]


@pytest.mark.parametrize(("verb", "count", "hit", "how"), selection(ERRORS, 2))
def test_one_fails(start, verb, count, hit, how):
    runs = start(verb, count, breaks={hit: (FAILS[verb], how)})
    runs[hit].until_said(f"broken: {how}", 120)
    end_as_one(runs, {"refuse": 65, "fail": 70}[how], hit, "on purpose")


@pytest.mark.skipif(not ALL, reason="half a minute, in make faults")
@pytest.mark.parametrize(("count", "hit"), PAIRS)
def test_one_hangs(start, count, hit):
    broken_one = {hit: ("flaxlm.sharding.to_global", "hang")}
    runs = start("train", count, f"--config.train.stuck_after={STUCK}", breaks=broken_one)
    runs[hit].until_said("broken: hang", 120)
    end_as_one(runs, 71, hit, f"waited {STUCK:g} s", "the batch of step 1", within=STUCK + 15)


TOLD = {
    "train": (["--config.optimizer.learning_rate=0.5"], "optimizer.learning_rate: 0.01 -> 0.5"),
    "evaluate": (["--split=train"], "--split: 'valid' -> 'train'"),
    "generate": (["--temperature=0.5"], "--temperature"),
}


@pytest.mark.parametrize("verb", selection(VERBS, 1))
def test_one_is_told_other_things(start, verb):
    flags, line = TOLD[verb]
    end_as_one(start(verb, 2, some={1: flags}), 2, 1, line, within=60)


@pytest.mark.parametrize("kind", selection(["text", "task"], 1))
def test_one_reads_another_file(start, tmp_path, text, kind):
    places = [tmp_path / "a", tmp_path / "b"]
    for number, place in enumerate(places):
        place.mkdir()
        (place / "text.txt").write_text(pathlib.Path(text).read_text() + "One more.\n\n" * number)
        rows = [{"text": f"row {i}", "label": "ab"[i % 2]} for i in range(40 + number)]
        (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = recipe("text.txt")
    if kind == "task":
        config = tiny.recipe(
            "masked",
            **MODEL,
            task=dict(name="classification"),
            data=dict(path="rows.jsonl", valid_fraction=0.0),
            eval=dict(split=""),
        )
        config["objective"] = dict(name="classification", labels="auto")
    runs = start("train", 2, cwds=places, config=config)
    end_as_one(runs, 77, 1, "text.txt" if kind == "text" else "rows.jsonl", within=60)
    nothing_is_left(tmp_path / "run")


def test_a_disk_that_is_not_shared(start, tmp_path):
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        place.mkdir()
    runs = start("train", 2, "--workdir=run", cwds=places)
    end_as_one(runs, 77, 1, "a disk that they share", within=60)
    for place in places:
        assert not list((place / "run").glob(".shared*"))
        assert not step_of(place / "run")


@pytest.mark.parametrize("missing", [1, 0])
def test_one_never_comes(start, missing):
    (there,) = start("train", 2, "--join_timeout=2", only=[1 - missing])
    done = there.wait(20)
    assert (done.code, len(done.errors)) == (75, 1), done.err
    assert done.errors[0].startswith(f"error: process {missing}"), done.errors
    assert "--join_timeout" in done.errors[0]


def test_two_are_the_same(start):
    runs = start("train", 3, only=[0, 1, 1])
    end_as_one(runs, 2, 1, "--process_id=1")


STRANGERS = [b"GET / HTTP/1.0\n\n", b'{"end": [99, "bye"]}\n', b'{"put": ["9 x", 1]}\n' * 9]
STRANGERS += [b'{"blame": [5, [0, 0, ""]]}\n', b"[" * 200_000 + b"\n", b"a" * 9999]


def test_strangers_and_latecomers_are_not_heard(start, tmp_path):
    runs = start("train", 2)
    until_ready("train", runs)
    for message in STRANGERS:
        with socket.create_connection(("localhost", start.port)) as one:
            one.sendall(message)
            time.sleep(0.1)
    (tmp_path / "late").mkdir()
    (late,) = CommandLine(tmp_path / "late", cwd=tmp_path, seconds=60).start(start.commands[1:])
    done = late.wait(60)
    assert (done.code, len(done.errors)) == (2, 1) and "so was another" in done.err, done.err
    runs[0].until_said("train 50/", 120)
    runs[0].signal(signal.SIGTERM)
    end_as_one(runs, 75, 0, "saved step")


SIGNALS = [(*case, number) for case in CASES for number in (signal.SIGTERM, signal.SIGINT)]


@pytest.mark.parametrize(("verb", "count", "hit", "number"), selection(SIGNALS, 2))
def test_one_is_asked_to_stop(start, verb, count, hit, number, tmp_path):
    runs = start(verb, count)
    until_ready(verb, runs)
    runs[hit].signal(number)
    line = end_as_one(runs, 75, hit, "asked to stop")
    if verb == "train":
        assert f"saved step {step_of(tmp_path / 'run')} of" in line
        nothing_is_left(tmp_path / "run")
    else:
        assert "nothing to be saved" in line


@pytest.mark.parametrize("hit", [0, 1] if ALL else [0])
def test_a_save_that_fails_is_not_said_to_be_one(start, hit):
    place = "flaxlm.training.checkpoint.Checkpointer._finish"
    runs = start("train", 2, breaks={0: ("flaxlm.training.store.Store.commit", "refuse")})
    runs[0].until_said("train 10/", 120)
    runs[hit].signal(signal.SIGTERM)
    line = end_as_one(runs, 74, 0, "was not saved")
    assert "asked to stop" not in line, place


def test_one_is_asked_to_stop_while_it_waits_for_the_others(start):
    (there,) = start("train", 2, only=[0])
    time.sleep(1.0)
    there.signal(signal.SIGTERM)
    done = there.wait(15)
    assert (done.code, len(done.errors)) == (75, 1), done.err
    assert "the wait for the other processes" in done.errors[0]


@pytest.mark.skipif(not ALL, reason="six trainings, in make faults")
def test_a_run_goes_on_with_another_number_of_processes(start, text, tmp_path):
    before = 0
    for steps, count in ((2, 2), (4, 4), (6, 1), (8, 2)):
        runs = start("train", count, config=recipe(text, steps=steps))
        assert [one.wait(100).code for one in runs[-count:]] == [0] * count
        said = runs[-count].err.read_text()
        (line,) = [x for x in said.splitlines() if x.startswith("resuming from")] or [""]
        assert (line != "") == (steps > 2)
        if line:
            assert line.startswith(f"resuming from step {steps - 2}: same data order, not the same")
            assert f"processes {before} → {count}" in line, line
        before = count
    assert step_of(tmp_path / "run") == 8
