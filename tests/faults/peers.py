"""Several processes of a verb on this machine, and what has to be so when one ends them all."""

import functools
import json
import os
import pathlib
import signal
import time

import broken
import tiny_runs as tiny
from command_line import CommandLine, Running

from flaxlm.processes.connections import free_port

MODEL = dict(model=tiny.QUICK | dict(vocab_size=281))
# What takes long in each verb, on all processes.
LONG = {
    "evaluate": ("flaxlm.sharding.to_global", "slow"),
    "generate": ("flaxlm.inference.generate.generate", "hang"),
}
READY = {"train": "train 10/", "evaluate": "broken: slow", "generate": "broken: hang"}
# What a checkout of before (`FLAXLM_CHECKOUT`) does not know it waits for without an end.
UNKNOWN_BEFORE = ("--join_timeout",)


def recipe(text: str, steps: int = 10**6, **changes) -> dict:
    """Return a recipe on text that neither evaluates nor saves by itself."""
    sections = dict(
        train=dict(steps=steps, log_every=5),
        eval=dict(every=0),
        checkpoint=dict(every=0),
        data=dict(path=text, document="paragraph", valid_fraction=0.5),
    )
    for name, values in changes.items():
        sections[name] = sections.get(name, {}) | values
    return tiny.recipe("causal", **MODEL, **sections)


class Peers:
    """The processes of a verb in a folder; `run` returns the run that is read.

    `commands` are those of the last start, `port` where process 0 listens.
    """

    def __init__(self, folder: pathlib.Path, text: str, run):
        self.folder, self.text, self._run = folder, text, run
        self.started: list[Running] = []

    @functools.cached_property
    def workdir(self) -> pathlib.Path:
        """The directory of what is trained."""
        return self.folder / "run"

    def start(
        self, verb, count, *flags, some=None, breaks=None, cwds=(), config=None, only=None,
        plans=None, preload="", found=False,
    ) -> list[Running]:  # fmt: skip
        """Start the processes, `only` some of them; return all that were started here.

        `some`, `breaks` and `plans` are {index: flags, what is broken (see `broken.py`), plan of
        faults}; where they are `found`, no flag says which they are.
        """
        own, self.port, self.commands = verb == "train", free_port(), []
        config = config or recipe(self.text)
        (self.folder / "recipe.json").write_text(json.dumps(config))
        place = f"--workdir={self.workdir if own else self._run()}"
        known = "FLAXLM_CHECKOUT" not in os.environ
        for index in range(count):
            broke = (breaks or {}).get(index, () if own or breaks is not None else LONG[verb])
            line = [broken.__file__, *broke] if broke else []
            line += [verb] + [place] * ("--workdir=run" not in flags)
            which = [f"--coordinator=localhost:{self.port}", f"--num_processes={count}"]
            line += [*which, f"--process_id={index}"] * (not found)
            line += [f"--config={self.folder / 'recipe.json'}"] if own else []
            line += ["--prompt=Row", "--max_new_tokens=8"] if verb == "generate" else []
            more = [flag for flag in flags if known or not flag.startswith(UNKNOWN_BEFORE)]
            self.commands.append([*line, *more, *(some or {}).get(index, ())])
        chosen = list(range(count) if only is None else only)
        line = CommandLine(self.folder, cwd=self.folder, seconds=150, preload=preload)
        plans = [(plans or {}).get(index) for index in chosen]
        self.started += line.start([self.commands[i] for i in chosen], 0, plans, cwds)
        return self.started

    def close(self) -> None:
        """End what still runs, and require that no process of it is left behind."""
        for one in self.started:
            one.signal(signal.SIGCONT)
            one.kill()
        assert not left_in(self.folder)


def left_in(folder: pathlib.Path) -> list[str]:
    """Return the processes that work in a folder."""
    left = []
    for link in pathlib.Path("/proc").glob("[0-9]*/cwd"):
        try:
            if pathlib.Path(os.readlink(link)).is_relative_to(folder):
                left.append(link.parent.name)
        except OSError:  # it has ended, or is another's
            continue
    return left


def until_ready(verb: str, runs: list[Running]) -> None:
    """Wait until all are in the midst of it."""
    for one in runs if verb != "train" else runs[:1]:
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
    """Return the newest step that is saved, 0 for none."""
    return max([int(p.name[5:]) for p in workdir.glob("checkpoints/step_*")], default=0)
