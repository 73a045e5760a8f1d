"""Ten commands at once on one run: each is right, or a clear refusal, and the run is as alone."""

import json
import random

import pytest
import tiny_runs as tiny
from command_line import CommandLine
from faults import ALL

# What a command may end with beside 0, and a part of its line.
REFUSALS = {
    77: ("is in use by another run",),
    66: ("holds no checkpoint; train there first", "is not a run directory"),
}


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """Return the command line in a folder with a text and a recipe."""
    root, draw = tmp_path_factory.mktemp("at_once"), random.Random(0)
    texts = (f"Row {i} has {draw.random()}, or so.\n\n" for i in range(300))
    (root / "text.txt").write_text("".join(texts))
    # So many that who makes a cache of them has not ended when the other begins.
    (root / "rows.txt").write_text("".join(f"Row {i} of very many.\n\n" for i in range(30_000)))
    fractions = dict(valid_fraction=0.1, test_fraction=0.1)
    recipe = tiny.recipe(
        "recurrent",
        model=dict(vocab_size=281, num_layers=1),
        data=dict(path="text.txt", document="paragraph", cache_dir="cache", **fractions),
        train=dict(steps=20, batch_size=8, length=16),
        eval=dict(every=2, patience=99),  # readers take the best checkpoint, which moves on
        checkpoint=dict(every=1, keep=1),
    )
    (root / "recipe.json").write_text(json.dumps(recipe))
    return CommandLine(root, cwd=root, seconds=300)


@pytest.fixture(scope="module")
def alone(line) -> dict:
    """Return the figures of a run that nothing goes on beside."""
    done = line("train", "--config=recipe.json", "--workdir=alone")
    assert done.code == 0, done.err
    return json.loads((line.directory / "alone" / "result.json").read_text())


def commands_of(run: str, text: str) -> list[tuple[str, ...]]:
    """Return ten commands on one run, two of which make one cache; five in the selection."""
    train = ("train", "--config=recipe.json", f"--workdir={run}")
    other = ("--config.data.path=rows.txt", f"--config.data.min_chars={text.partition('-')[2]}")
    more = [
        train,
        ("evaluate", f"--workdir={run}", "--split=test", "--checkpoint=latest"),
        ("generate", f"--workdir={run}", "--prompt=has", "--max_new_tokens=2"),
    ]
    more += [
        ("inspect", f"--workdir={run}"),
        ("generate", f"--workdir={run}", "--prompt=Row", "--max_new_tokens=2"),
    ]
    return [
        train,
        ("evaluate", f"--workdir={run}"),
        ("evaluate", f"--workdir={run}", "--split=test"),
        *(more if ALL else []),
        *(("tokenize", "--config=recipe.json", f"--workdir={text}-{x}", *other) for x in "ab"),
    ]


@pytest.mark.parametrize("number", range(20 if ALL else 1))
def test_ten_commands_at_once_on_one_run_are_right_or_refused(number, line, alone, count):
    run, place = f"run-{number}", line.directory
    train = ("train", "--config=recipe.json")
    # Odd rounds meet a run that has not begun.
    if number % 2 == 0:
        done = line(*train, f"--workdir={run}", "--config.train.steps=2")
        assert done.code == 0, done.err
    commands = commands_of(run, f"text-{number}")
    ended = line.together(commands)
    for command, done in zip(commands, ended, strict=True):
        said = f"{command}: {done.code}\n{done.err}"
        assert done.code == 0 or any(x in done.err for x in REFUSALS.get(done.code, ())), said
        assert len(done.errors) == (done.code != 0) and "Traceback" not in done.err, said
        assert "damaged" not in done.err, said
    trained = [d.code for c, d in zip(commands, ended, strict=True) if c[0] == "train"]
    assert 0 in trained and set(trained) <= {0, 77}
    assert [done.code for done in ended[-2:]] == [0, 0]
    done = line(*train, f"--workdir={run}")
    assert done.code == 0, done.err
    result, wanted = (json.loads((place / p / "result.json").read_text()) for p in (run, "alone"))
    wanted.pop("checksum", None)  # of all figures, also those that are of other verbs
    assert {name: result[name] for name in wanted} == wanted
    wrote = {"inspect": "digest/params", "generate": "generate/texts"}
    names = [wrote.get(command[0]) for command, done in zip(commands, ended, strict=True)
             if done.code == 0]  # fmt: skip
    names += ["test/loss"] * (ended[2].code == 0)
    assert set(filter(None, names)) <= result.keys()
    left = (".tmp", ".old", ".parts", ".new", ".probe")
    assert [p.name for p in place.rglob(".*") if p.name.endswith(left)] == []
    count("commands at once on one run", commands=len(commands))
