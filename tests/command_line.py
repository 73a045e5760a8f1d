"""`python -m flaxlm` many times over, its imports paid for once.

A server imports what the command imports and forks for every command: the child has its own exit
code, streams, working memory and limits, and runs the package as `python -m` does. No device is
touched before the fork.
"""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The `error:` lines on standard error."""
        return [line for line in self.err.splitlines() if line.startswith("error:")]


@functools.cache
def server() -> subprocess.Popen:
    """Start the server, once in a process; it ends when the pipe to it closes."""
    return subprocess.Popen(
        [sys.executable, __file__], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """Runs commands in `cwd`, on one device unless on more; `directory` takes what they print."""

    directory: pathlib.Path
    cwd: pathlib.Path = ROOT
    devices: int = 1

    def __call__(self, *arguments: str, max_file_bytes: int = 0) -> Done:
        """Run one command; no file that it writes may be larger than `max_file_bytes`, if any."""
        places = self.directory / "out", self.directory / "err", self.cwd
        request = [arguments, *map(str, places), self.devices, max_file_bytes]
        server().stdin.write(json.dumps(request) + "\n")
        server().stdin.flush()
        code, (out, err, _) = int(server().stdout.readline()), places
        return Done(code, out.read_text(), err.read_text())


def trained(root: pathlib.Path, recipe: dict) -> tuple[CommandLine, pathlib.Path]:
    """Train a recipe, which is left in `root`; return command line and run directory."""
    (root / "recipe.json").write_text(json.dumps(recipe))
    line, workdir = CommandLine(root, cwd=root), root / "run"
    done = line("train", f"--config={root / 'recipe.json'}", f"--workdir={workdir}")
    assert done.code == 0, done.err
    return line, workdir


def serve() -> None:
    """Fork for each request on standard input; answer with the exit code."""
    import gc
    import importlib

    sys.path[0] = str(ROOT)  # as `python -m` has it there
    # Of the package this leaves out `__main__`, which runs anew in each child.
    for verb in ("glue", "generate", "embed", "inspect", "convert"):
        importlib.import_module(f"flaxlm.commands.{verb}")
    for late in (
        *("grain", "matplotlib.backends.backend_agg", "matplotlib.figure", "orbax.checkpoint"),
        *("rouge_score.rouge_scorer", "sacrebleu.metrics", "tensorboardX"),
    ):
        importlib.import_module(late)
    gc.freeze()  # nothing of it is garbage for a child to look for
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            execute(*json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def execute(
    arguments: list[str], out: str, err: str, cwd: str, devices: int, max_file_bytes: int
) -> None:
    """Become `python -m flaxlm arguments…` in `cwd`; does not return."""
    import resource
    import runpy

    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    os.chdir(cwd)
    os.environ["XDG_CACHE_HOME"] = os.path.dirname(out)
    for number, path in ((0, os.devnull), (1, out), (2, err)):
        mode = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(path, mode), number)
    if max_file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    sys.argv = ["flaxlm", *arguments]
    try:
        runpy.run_module("flaxlm", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if not end.code:
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code)  # taking the interpreter down costs more than most refusals
    sys.exit(0)


if __name__ == "__main__":
    serve()
