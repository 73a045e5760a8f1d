"""Who reads standard output may leave, and it may be full: what was found is kept all the same."""

import json
import pathlib
import shutil

import pytest
from command_line import CommandLine

SCRIPT = pathlib.Path(__file__).with_name("streams.py")
FULL = "standard output cannot be written: No space left on device"


@pytest.mark.parametrize(
    ("command", "place", "streams", "code"),
    [
        ("train --config.train.steps=3", "closed", "1", 0),
        ("evaluate", "full", "1", 74),
        ("generate --prompt=a --max_new_tokens=1", "closed", "12", 0),
        ("--help", "closed", "1", 0),
        ("--help", "full", "1", 74),
        ("train --nonsense", "closed", "12", 2),
        ("train --nonsense", "full", "2", 2),
    ],
)
def test_what_cannot_be_shown_is_kept(command, place, streams, code, text_run, tmp_path):
    run = shutil.copytree(text_run / "run", tmp_path / "run")
    (run / "result.json").unlink()
    words = [*command.split(), *[f"--workdir={run}"] * (command != "--help")]
    line = CommandLine(tmp_path, cwd=tmp_path, seconds=60)
    done = line(str(SCRIPT), place, streams, *words)
    said = [line for line in done.err.splitlines() if line.startswith(("error", "warning"))]
    assert done.code == code, done.err
    assert said == [f"error: {FULL}"] * (code == 74), done.err
    if command.startswith("generate"):
        assert (run / "generations.jsonl").read_text()
    if command != "--help" and code != 2:
        assert json.loads((run / "result.json").read_text())
