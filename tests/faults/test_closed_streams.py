"""Where nobody can be told, the exit code still tells; and a user without a home is none the worse.

What of that concerns several processes is in `test_peers.py`.
"""

import json
import signal
import subprocess
import sys

import broken
import pytest
from command_line import ROOT, CommandLine
from peers import recipe

# What is done to the streams of a command, and the codes of `nosuch` and of `--help` then.
STREAMS = {"2>/dev/full": (2, 0), ">&- 2>&-": (2, 0), "2>&-": (2, 0), ">/dev/full 2>&1": (2, 74)}


@pytest.mark.parametrize("streams", STREAMS)
def test_a_refusal_keeps_its_code(streams):
    for argument, code in zip(("nosuch", "--help"), STREAMS[streams], strict=True):
        line = f"exec {sys.executable} -m flaxlm {argument} {streams}"
        assert subprocess.run(["sh", "-c", line], cwd=ROOT, timeout=60).returncode == code, argument


def test_a_signal_keeps_its_code(tmp_path, text):
    (tmp_path / "recipe.json").write_text(json.dumps(recipe(text)))
    command = ["train", f"--config={tmp_path}/recipe.json", f"--workdir={tmp_path}/run"]
    place = "flaxlm.training.inputs.record"
    (running,) = CommandLine(tmp_path, cwd=tmp_path, seconds=100).start(
        [[broken.__file__, place, "mute", *command]]
    )
    running.until_said("broken: mute")
    running.signal(signal.SIGTERM)
    assert running.wait(15).code == 75


HOMELESS = """
import os, pwd, sys, jax
def nobody(uid):
    raise KeyError(uid)
pwd.getpwuid = nobody
for name in ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
    os.environ.pop(name, None)
jax.config.update("jax_compilation_cache_dir", None)
sys.argv[0] = "flaxlm"
from flaxlm.__main__ import main
sys.exit(main())
"""


def test_a_user_without_a_home_has_no_compilation_cache(tmp_path, read_run):
    (tmp_path / "homeless.py").write_text(HOMELESS)
    done = CommandLine(tmp_path, cwd=tmp_path, seconds=100)(
        str(tmp_path / "homeless.py"), "generate", f"--workdir={read_run()}", "--prompt=Row",
        "--max_new_tokens=2",
    )  # fmt: skip
    assert (done.code, done.errors) == (0, []), done.err
