"""What a run directory says of its run: its config, and what was typed where and when."""

import json
import pathlib
import shlex
import subprocess
import sys

from flaxlm import files
from flaxlm.errors import Unsafe
from flaxlm.training import config as run_config
from flaxlm.training import manifest
from flaxlm.training.logs import Log
from flaxlm.training.newest import CONFIG, begun, may_move, newest
from flaxlm.training.values import changes


def record(config: run_config.RunConfig, workdir: pathlib.Path) -> None:
    """Write config, command, git commit and versions; refuse another run's directory.

    Raises:
      Unsafe: checkpoints stand here that another config made; the keys that differ are listed.
    """
    if begun(workdir) and run_config.is_run(workdir):
        # A key that an earlier version did not have stood at its default.
        before = run_config.expand(run_config.read_run(str(workdir)))
        moved = may_move(newest(workdir))
        if changed := changes(before, config.raw, moved):
            raise Unsafe(
                f"{workdir} holds a run of another config; take another run directory, or undo: "
                + "; ".join(changed)
            )
    path = workdir / CONFIG
    files.replace(path, config.to_json())
    facts = {
        "command": command_line(sys.argv),
        "commit": _commit(),
        "versions": manifest.versions(),
        "fingerprint": manifest.fingerprint(),
    }
    with Log(workdir / "run.json").spared():
        files.replace(workdir / "run.json", json.dumps(facts, indent=2) + "\n")


def command_line(argv: list[str]) -> str:
    """Return the command that was typed: `flaxlm …`, `python -m flaxlm …`, or a script's own."""
    python, started = pathlib.Path(sys.executable).name, pathlib.Path(argv[0])
    if started.name == "__main__.py":
        start = [python, "-m", started.parent.name]
    else:
        start = [python, argv[0]] if started.suffix == ".py" else [started.name]
    return shlex.join([*start, *argv[1:]])


def _commit() -> str:
    """Return the source's git commit, `-dirty` added for local changes; '' outside a checkout."""
    try:
        command, here = "git describe --always --dirty --abbrev=40", pathlib.Path(__file__).parent
        done = subprocess.run(command.split(), cwd=here, capture_output=True, text=True, timeout=10)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
