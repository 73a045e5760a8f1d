"""Several processes find each other, and are told and read the same, or all say what is not."""

import json
import os
import pathlib
import signal
import socket
import time

import jax
import pytest
import tiny_runs as tiny
from command_line import CommandLine
from faults import ALL, selection
from peers import MODEL, end_as_one, nothing_is_left, recipe, step_of, until_ready

from flaxlm.commands import COMMANDS, flags, glue, train
from flaxlm.commands import several as joining
from flaxlm.commands.options import ProcessOptions
from flaxlm.errors import ConfigError
from flaxlm.processes.connections import STRANGER, Peer, free_port
from flaxlm.training import manifest

TOLD = {
    "train": (["--config.optimizer.learning_rate=0.5"], "optimizer.learning_rate: 0.01 -> 0.5"),
    "evaluate": (["--split=train"], "--split: 'valid' -> 'train'"),
    "generate": (["--temperature=0.5"], "--temperature"),
    "train, what changes no result": (["--config.train.log_every=7"], "train.log_every: 5 -> 7"),
}


@pytest.mark.parametrize("what", selection(list(TOLD)[::-1], 1))
def test_one_is_told_other_things(several, what):
    given, line = TOLD[what]
    runs = several.start(what.partition(",")[0], 2, some={1: given})
    end_as_one(runs, 2, 1, line, within=60)


def test_one_has_other_settings_of_jax(several):
    """Which decide numbers, and stand in the environment of each machine."""
    runs = several.start("train", 2, breaks={1: ["XLA_FLAGS=--xla_cpu_enable_fast_math=true"]})
    end_as_one(runs, 2, 1, "xla_flags: ", "-> '--xla_cpu_enable_fast_math=true'", within=60)


def test_settings_are_those_that_decide_numbers(monkeypatch, tmp_path):
    for name in os.environ:
        if name.startswith("JAX_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XLA_FLAGS", "--b --a")
    assert manifest.settings() == {"xla_flags": "--a --b", "matmul_precision": "None"}
    changed = {"jax_enable_x64": True, "jax_default_matmul_precision": "bfloat16"}
    changed |= {"jax_disable_jit": True, "jax_random_seed_offset": 7}
    for name, value in changed.items():
        before = getattr(jax.config, name)
        jax.config.update(name, value)
        assert str(value) in manifest.settings().values()
        jax.config.update(name, before)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_x")
    assert manifest.settings()["LIBTPU_INIT_ARGS"] == "--xla_x"
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    monkeypatch.setenv("JAX_TRACEBACK_FILTERING", "off")
    assert manifest.settings().keys() == {
        "xla_flags", "matmul_precision", "LIBTPU_INIT_ARGS", "JAX_DISABLE_MOST_OPTIMIZATIONS"
    }  # fmt: skip
    (tmp_path / "flags").write_text("--d\n--c\n")
    monkeypatch.setenv("XLA_FLAGS", str(tmp_path / "flags"))
    assert manifest.settings()["xla_flags"] == "--c --d"


def test_what_glue_is_told_is_its_recipe_and_what_is_typed():
    options = glue.Options(workdir="w", data="d", init="r")
    nested = options.default_recipe()
    told = options.configure(nested, {"seed": "2"}).raw
    assert told == nested | {"seed": "2"} and json.dumps(told)


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_verb_of_one_process_takes_no_coordinator(verb):
    options = __import__(f"flaxlm.commands.{verb}", fromlist=["Options"]).Options
    if not issubclass(options, ProcessOptions):
        with pytest.raises(ConfigError, match="'coordinator'"):
            flags.parse(options, ["--coordinator=localhost:1"])
    else:
        assert verb in ("train", "evaluate", "generate", "glue")


@pytest.mark.skipif(not ALL, reason="40 s, in make faults")
def test_one_that_is_late_at_the_first_step_is_waited_for(several):
    late = {1: ("flaxlm.train.restore_or_init", "late")}
    for running in several.start("train", 2, "--config.train.steps=2", breaks=late):
        done = running.wait(140)
        assert done.code == 0, done.err


@pytest.mark.parametrize("kind", selection(["text", "task"], 1))
def test_one_reads_another_file(several, tmp_path, text, kind):
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
        config["objective"] = dict(name="classification", labels=("a", "b"))
    runs = several.start("train", 2, cwds=places, config=config)
    end_as_one(runs, 77, 1, "text.txt" if kind == "text" else "rows.jsonl", within=60)
    nothing_is_left(several.workdir)


def test_a_disk_that_is_not_shared(several, tmp_path):
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        place.mkdir()
    runs = several.start("train", 2, "--workdir=run", cwds=places)
    end_as_one(runs, 77, 1, "a disk that they share", within=60)
    for place in places:
        assert not list((place / "run").glob(".shared*"))
        assert not step_of(place / "run")


@pytest.mark.parametrize("missing", [1, 0])
def test_one_never_comes(several, missing):
    (there,) = several.start("train", 2, "--join_timeout=2", only=[1 - missing])
    done = there.wait(20)
    assert (done.code, len(done.errors)) == (75, 1), done.err
    assert done.errors[0].startswith(f"error: process {missing}"), done.errors
    assert "--join_timeout" in done.errors[0]


def test_who_listens_is_not_process_0_or_is_stopped(several, tmp_path):
    several.start("train", 2, "--join_timeout=2", only=[])
    with socket.create_server(("localhost", several.port)):
        place = CommandLine(tmp_path, cwd=tmp_path, seconds=60)
        (there,) = place.start(several.commands[1:])
        done = there.wait(20)
    assert (done.code, len(done.errors)) == (75, 1), done.err
    assert "has not answered as process 0 within 2 s (--join_timeout)" in done.errors[0]


def test_two_are_the_same(several):
    runs = several.start("train", 3, only=[0, 1, 1])
    end_as_one(runs, 2, 1, "--process_id=1")


STRANGERS = [b"GET / HTTP/1.0\n\n", b'{"end": [99, "bye"]}\n', b'{"put": ["9 x", 1]}\n' * 9]
STRANGERS += [b'{"blame": [5, [0, 0, ""]]}\n', b"[" * 200_000 + b"\n", b"a" * 9999]


@pytest.mark.skipif(not ALL, reason="13 s, in make faults")
def test_strangers_and_latecomers_are_not_heard(several, tmp_path):
    runs = several.start("train", 2)
    until_ready("train", runs)
    for message in STRANGERS:
        with socket.create_connection(("localhost", several.port)) as one:
            one.sendall(message)
            time.sleep(0.1)
    (tmp_path / "late").mkdir()
    (late,) = CommandLine(tmp_path / "late", cwd=tmp_path, seconds=60).start(several.commands[1:])
    done = late.wait(60)
    assert (done.code, len(done.errors)) == (2, 1) and "so was another" in done.err, done.err
    runs[0].until_said("train 20/", 120)
    runs[0].signal(signal.SIGTERM)
    end_as_one(runs, 75, 0, "saved step")


def test_a_line_without_an_end_costs_a_stranger_its_connection_and_a_process_no_time():
    with socket.create_server(("localhost", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        peer, began = Peer(listener.accept()[0]), time.monotonic()
    far.sendall(b'"' + b"a" * 2 * STRANGER)
    assert peer.receive() is None
    peer.index, received = 1, []
    for _ in range(800):  # 52 MB, put together once and not 800 times
        far.sendall(b"a" * (1 << 16))
        received.append(peer.receive())
        assert time.monotonic() - began < 5
    far.sendall(b'"\n')
    while not received[-1]:
        received.append(peer.receive())
    assert len(received[-1][0]) == 2 * STRANGER + (800 << 16)


SLURM = dict(SLURM_JOB_ID="7", SLURM_STEP_NODELIST="localhost", SLURM_LOCALID="0")
# Whether what a shell or a launcher set makes a command one of several, and what it says then.
SET = [
    (dict(SLURM_NTASKS="4"), ""),  # a shell of salloc
    (dict(SLURM_NTASKS="x", SLURM_PROCID="0"), ""),
    (dict(SLURM_NTASKS="1", SLURM_PROCID="0"), ""),
    (dict(SLURM_NTASKS="2", SLURM_PROCID="0"), "cannot be told from the environment"),
    (SLURM | dict(SLURM_NTASKS="2", SLURM_PROCID="x"), "cannot be told from the environment"),
    (SLURM | dict(SLURM_NTASKS="2", SLURM_PROCID="2"), "--process_id=2 is not one of"),
    (dict(TPU_WORKER_HOSTNAMES="a"), ""),
    (dict(TPU_WORKER_HOSTNAMES="a,b", TPU_SKIP_MDS_QUERY="1"), "cannot be told from"),
]


@pytest.mark.parametrize(("variables", "refused"), SET)
def test_what_is_set_in_part_is_no_group(variables, refused, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    options = train.Options(workdir="w")
    if refused:
        with pytest.raises(ConfigError, match=refused):
            joining.join(options)
    else:
        joining.join(options)  # alone


@pytest.mark.skipif(not ALL, reason="10 s, in make faults")
def test_processes_that_slurm_started_find_each_other(several, text):
    variables = SLURM | dict(SLURM_NTASKS="2", JAX_COORDINATOR_PORT=str(free_port()))
    each = [variables | dict(SLURM_PROCID=str(index)) for index in range(2)]
    breaks = {i: [f"{name}={value}" for name, value in one.items()] for i, one in enumerate(each)}
    runs = several.start("train", 2, config=recipe(text, steps=2), breaks=breaks, found=True)
    done = [one.wait(100) for one in runs]
    assert [one.code for one in done] == [0, 0], done
    record = json.loads((several.workdir / "run.json").read_text())
    assert record["fingerprint"]["processes"] == 2


@pytest.mark.skipif(not ALL, reason="six trainings, in make faults")
def test_a_run_goes_on_with_another_number_of_processes(several, text):
    before = 0
    for steps, count in ((2, 2), (4, 4), (6, 1), (8, 2)):
        runs = several.start("train", count, config=recipe(text, steps=steps))
        assert [one.wait(100).code for one in runs[-count:]] == [0] * count
        said = runs[-count].err.read_text()
        (line,) = [x for x in said.splitlines() if x.startswith("resuming from")] or [""]
        assert (line != "") == (steps > 2)
        if line:
            assert line.startswith(f"resuming from step {steps - 2}: same data order, not the same")
            assert f"processes {before} → {count}" in line, line
        before = count
    assert step_of(several.workdir) == 8
