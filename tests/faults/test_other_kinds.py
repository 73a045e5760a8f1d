"""What is no file where a run has its files is named, with the way out, and never waited for."""

import os
import pathlib
import shutil

import pytest
from command_line import CommandLine
from faults import selection

from flaxlm import files
from flaxlm.errors import Unsafe

STEP = "checkpoints/step_00000002"
WAY = "{} is in the way (Is a directory); choose another workdir, or remove it"
NONE = "{} is no regular file; remove it, or take another path"
# Where, what is made there, by which verb it is met, the exit code, what is said.
KINDS = (
    ("lock", "directory", "train", 74, WAY),
    ("config.json", "pipe", "train", 77, NONE),
    ("checkpoints/.writing-step_00000003", "file", "train", 0, ""),
    ("checkpoints/.trash-step_00000001", "link", "train", 0, ""),
    (f"{STEP}/manifest.json", "pipe", "train", 74, "can be read: there is no sound manifest.json"),
    ("result.json", "pipe", "train", 0, "{} was damaged, and is result.json.damaged now: it is no"),
    ("lock", "pipe", "train", 77, NONE),
    ("checkpoints/.probe", "directory", "train", 0, ""),
    ("config.json", "directory", "inspect", 77, NONE),
    (f"{STEP}/config.json", "pipe", "inspect", 74, "file config.json cannot be read"),
    ("metrics.jsonl", "pipe", "train", 0, ""),
    ("run.json", "pipe", "train", 77, NONE),
    (".probe", "directory", "evaluate", 0, ""),
    ("result.json", "directory", "inspect", 74, "cannot write {}: Is a directory"),
    ("checkpoints/.trash-step_00000001", "file", "train", 0, ""),
    ("checkpoints/.writing-step_00000003", "link", "train", 0, ""),
)


@pytest.mark.parametrize("case", selection([*KINDS], 6), ids=lambda case: "-".join(case[:2]))
def test_it_is_named_with_the_way_out_or_removed(case, text_run, tmp_path):
    name, kind, verb, code, said = case
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    shutil.copytree(text_run / "run", run)
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    place = run / name
    place.unlink(missing_ok=True)
    make = {"directory": pathlib.Path.mkdir, "pipe": os.mkfifo, "file": pathlib.Path.touch}
    make.get(kind, lambda path: path.symlink_to(elsewhere))(place)
    done = CommandLine(tmp_path, cwd=tmp_path, seconds=60)(verb, f"--workdir={run}")
    assert done.code == code and len(done.errors) == (code > 0), done.err
    assert said.format(place) in done.err, done.err
    if "/." in name and not code:
        assert not os.path.lexists(place) and (elsewhere / "kept").exists()


@pytest.mark.parametrize("kind", ["pipe", "device", "stream", "directory"])
def test_a_file_takes_the_place_of_files_alone(kind, tmp_path):
    place = tmp_path / "place"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "directory":
        place.mkdir()
    else:
        place = pathlib.Path("/dev/null" if kind == "device" else "/dev/stdout")
    before = os.lstat(place)
    error = IsADirectoryError if kind == "directory" else Unsafe
    with pytest.raises(error, match=str(place)), files.replacing(place):
        raise AssertionError("the long work has begun")
    after = os.lstat(place)
    assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)


def test_a_place_that_nothing_can_be_written_to_is_refused_before_the_work(text_run, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n')
    line, run = CommandLine(tmp_path, cwd=tmp_path, seconds=60), text_run / "run"
    os.mkfifo(tmp_path / "pipe")
    for verb, words, code in (
        ("embed", f"--workdir={run} --input=texts.jsonl --output=/dev/null", 77),
        ("embed", f"--workdir={run} --input=texts.jsonl --output={tmp_path}", 74),
        ("convert", f"--from={run} --to=hf:/dev/null", 74),
        ("tokenize", f"--config={run / 'config.json'} --workdir=pipe", 74),
    ):
        done = line(verb, *words.split())
        assert done.code == code and len(done.errors) == 1, done.err
        place = words.rpartition("=")[2].removeprefix("hf:")
        assert place in done.errors[0] and "free the disk" not in done.err, done.err
        assert "step 2" not in done.err  # nothing was read
