"""Several processes under `jax.distributed`, for real: the same batches, the same run."""

import json
import pathlib
import random
import socket

import numpy as np
import process_child
import pytest
import tiny_runs as tiny
from command_line import CommandLine

DEVICES = 4
BATCHES = 100


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return f"localhost:{s.getsockname()[1]}"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    draw = random.Random(0)
    words = "the sea was calm and grey that day we rowed to a far green island".split()
    text = "".join(f"{' '.join(draw.choices(words, k=9))}. And on.\n\n" for _ in range(400))
    (folder / "text.txt").write_text(text)
    config = tiny.recipe(
        "masked",
        model=tiny.QUICK | {"vocab_size": 281},
        data=dict(
            path=str(folder / "text.txt"),
            document="paragraph",
            valid_fraction=0.1,
            sentences=True,
        ),
        sharding=dict(data=-1),
        eval=dict(every=2),
    )
    path = folder / "recipe.json"
    path.write_text(json.dumps(config))
    return path


def run_processes(count: int, folder: pathlib.Path, command) -> None:
    """Run `command(coordinator, index)` in each process, on DEVICES devices together."""
    coordinator = free_port()
    line = CommandLine(folder, devices=DEVICES // count)
    for done in line.together([command(coordinator, str(index)) for index in range(count)]):
        assert done.code == 0, done.err


def rows(recipe, folder, count) -> list[dict]:
    """Return what each of `count` processes made of the first global batches."""

    def command(coordinator, index):
        out = folder / f"{count}-{index}.npz"
        arguments = (coordinator, count, index, recipe, folder / "run", BATCHES, out)
        return [process_child.__file__, *map(str, arguments)]

    run_processes(count, folder, command)
    return [dict(np.load(folder / f"{count}-{index}.npz")) for index in range(count)]


def test_global_batches_are_the_same_on_1_2_and_4_processes(recipe, tmp_path):
    (whole,) = rows(recipe, tmp_path, 1)
    assert (whole.pop("start"), whole.pop("stop")) == (0, 16)
    assert whole["tokens"].shape[:2] == (BATCHES, 16)
    assert len(np.unique(whole["tokens"].reshape(BATCHES * 16, -1), axis=0)) > BATCHES
    for count in (2, 4):
        parts = sorted(rows(recipe, tmp_path, count), key=lambda part: part["start"])
        assert [int(part["start"]) for part in parts] == list(range(0, 16, 16 // count))
        for name, array in whole.items():
            joined = np.concatenate([part[name] for part in parts], axis=1)
            np.testing.assert_array_equal(joined, array, err_msg=f"{name}, {count} processes")


def test_a_run_of_two_processes_is_the_run_of_one(recipe, tmp_path):
    def train(count):
        workdir = tmp_path / str(count)

        def command(coordinator, index):
            several = ["--coordinator=" + coordinator, f"--num_processes={count}"]
            return ["train", f"--config={recipe}", f"--workdir={workdir}"] + (
                [*several, f"--process_id={index}"] if count > 1 else []
            )

        run_processes(count, tmp_path, command)
        rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        assert (workdir / "checkpoints").exists()
        return rows, json.loads((workdir / "result.json").read_text())

    (one, result), (two, other) = train(1), train(2)
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for key in ("loss", "grad_norm", "valid/loss"):
        values = [[row[key] for row in rows if key in row] for rows in (one, two)]
        assert values[0], key
        np.testing.assert_allclose(*values, rtol=1e-5)
    assert result.keys() == other.keys()
