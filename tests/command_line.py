"""`python -m flaxlm` many times over, its imports paid for once.

A server imports what the command imports and forks for every command: the child has its own exit
code, streams, working memory and limits, and runs the package as `python -m` does. No device is
touched before the fork.
"""

import contextlib
import dataclasses
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


class CommandLine:
    """Runs commands in `cwd`, on one device unless on more; close it at the end."""

    def __init__(self, directory: pathlib.Path, cwd: pathlib.Path = ROOT, devices: int = 1):
        self.directory = directory
        environment = os.environ | {"XDG_CACHE_HOME": str(directory)}
        environment["JAX_NUM_CPU_DEVICES"] = str(devices)
        self.server = subprocess.Popen(
            [sys.executable, __file__], cwd=cwd, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def __call__(self, *arguments: str, max_file_bytes: int = 0) -> Done:
        """Run one command; no file that it writes may be larger than `max_file_bytes`, if any."""
        out, err = self.directory / "out", self.directory / "err"
        request = [list(arguments), str(out), str(err), max_file_bytes]
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return Done(int(self.server.stdout.readline()), out.read_text(), err.read_text())

    def close(self) -> None:
        """End the server."""
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()


@contextlib.contextmanager
def trained(root: pathlib.Path, recipe: dict):
    """Train a recipe, which is left in `root`; yield (command line, run directory)."""
    (root / "recipe.json").write_text(json.dumps(recipe))
    line, workdir = CommandLine(root, cwd=root), root / "run"
    try:
        done = line("train", f"--config={root / 'recipe.json'}", f"--workdir={workdir}")
        assert done.code == 0, done.err
        yield line, workdir
    finally:
        line.close()


def serve() -> None:
    """Fork for each request on standard input; answer with the exit code."""
    import gc
    import importlib

    sys.path[0] = str(ROOT)  # as `python -m` has it there
    # Of the package this leaves out `__main__`, which runs anew in each child.
    for verb in ("glue", "generate", "embed", "inspect", "convert"):
        importlib.import_module(f"flaxlm.commands.{verb}")
    for late in ("grain", "matplotlib.backends.backend_agg", "orbax.checkpoint", "tensorboardX"):
        importlib.import_module(late)
    gc.freeze()  # nothing of it is garbage for a child to look for
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            execute(*json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def execute(arguments: list[str], out: str, err: str, max_file_bytes: int) -> None:
    """Become `python -m flaxlm arguments…`; does not return."""
    import resource
    import runpy

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
