"""No write goes through a link that somebody laid: it is refused, or a file put in its place."""

import json
import os
import stat

import pytest
import tiny_runs as tiny
from command_line import CommandLine

from flaxlm import files
from flaxlm.errors import Unsafe

KEPT = b"not to be touched\n"


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "target"
    path.write_bytes(KEPT)
    yield path
    assert path.read_bytes() == KEPT


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "corpus.txt").write_text("".join(f"words of text {i}\n\n" for i in range(99)))
    data = {"path": str(tmp_path / "corpus.txt"), "document": "paragraph", "valid_fraction": 0.1}
    model = tiny.QUICK | {"vocab_size": 281}
    train = {"steps": 1, "batch_size": 2}
    made = tiny.recipe("causal", data=data, train=train, eval={"every": 0}, model=model)
    (tmp_path / "recipe.json").write_text(json.dumps(made))
    return f"--config={tmp_path / 'recipe.json'}"


def test_a_file_is_made_in_the_place_of_a_link(tmp_path, target):
    link = tmp_path / "link"
    link.symlink_to(target)
    with files.create(link) as file:
        file.write(b"new")
    assert link.read_bytes() == b"new" and not link.is_symlink()


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
def test_an_append_or_a_lock_follows_no_link_and_waits_for_no_pipe(tmp_path, target, kind):
    place = tmp_path / "place"
    if kind == "pipe":
        os.mkfifo(place)
        reader = os.open(place, os.O_RDONLY | os.O_NONBLOCK)
    else:
        place.symlink_to(target if kind == "link" else tmp_path / "none")
    with pytest.raises(Unsafe, match=f"{place} is (a link to|no regular file)"):
        files.append(place, "row\n")
    with pytest.raises(Unsafe, match=str(place)):
        files.handle(place, os.O_RDWR | os.O_CREAT)
    assert not (tmp_path / "none").exists()
    if kind == "pipe":
        os.close(reader)


def test_an_append_makes_the_file_and_goes_on(tmp_path):
    path = tmp_path / "rows"
    files.append(path, "a\n")
    files.append(path, b"b\n")
    assert path.read_bytes() == b"a\nb\n" and stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600


@pytest.mark.parametrize("name", ["lock", "metrics.jsonl"])
def test_train_refuses_a_link_for_its_lock_and_its_log(tmp_path, recipe, target, name,
                                                       compilation_cache):  # fmt: skip
    run = tmp_path / "run"
    run.mkdir()
    (run / name).symlink_to(target if name == "lock" else tmp_path / "none.jsonl")
    done = CommandLine(tmp_path)("train", recipe, f"--workdir={run}")
    assert done.code == 77 and len(done.errors) == 1, done.err
    assert f"{run / name} is a link to" in done.errors[0], done.err
    assert not (tmp_path / "none.jsonl").exists()


def test_tokenize_refuses_a_link_for_the_lock_of_the_cache(tmp_path, recipe, target):
    run, line = tmp_path / "run", CommandLine(tmp_path)
    assert line("tokenize", recipe, f"--workdir={run}").code == 0
    (lock,) = (run / "cache").glob(".*.lock")
    (cache,) = (run / "cache").glob("[0-9a-f]*")
    lock.unlink()
    lock.symlink_to(target)
    (cache / "manifest.json").unlink()
    done = line("tokenize", recipe, f"--workdir={run}")
    assert done.code == 77 and f"{lock} is a link to" in done.errors[0], done.err


def test_a_run_directory_may_be_a_link_itself(tmp_path, recipe):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    done = CommandLine(tmp_path)("tokenize", recipe, f"--workdir={tmp_path / 'run'}")
    assert done.code == 0 and (tmp_path / "disk" / "cache").is_dir(), done.err
