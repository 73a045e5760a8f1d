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
from collections.abc import Iterable, Sequence

# Where the package lies: FLAXLM_CHECKOUT names another checkout, to see its commands fail a test.
ROOT = pathlib.Path(os.environ.get("FLAXLM_CHECKOUT") or pathlib.Path(__file__).parents[1])


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
def server(preload: str = "") -> subprocess.Popen:
    """Start the server, once in a process for each library; it ends when the pipe to it closes."""
    environment = os.environ | ({"LD_PRELOAD": preload} if preload else {})
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, __file__], text=True, env=environment, **pipes)


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """Runs commands in `cwd`, on one device unless on more; `directory` takes what they print.

    A command that takes longer than `seconds` is ended by SIGALRM. With `preload`, the library of
    `tests/faults/shim.py`, commands may be given a plan of faults.
    """

    directory: pathlib.Path
    cwd: pathlib.Path = ROOT
    devices: int = 1
    seconds: int = 600
    preload: str = ""

    def __call__(self, *arguments: str, max_file_bytes: int = 0, plan=None) -> Done:
        """Run one command; no file that it writes may be larger than `max_file_bytes`, if any."""
        return self.together([arguments], max_file_bytes, [plan])[0]

    def together(
        self, commands: Iterable[Sequence[str]], max_file_bytes: int = 0, plans: Sequence = ()
    ) -> list[Done]:
        """Run several commands at the same time, a process each, and each with its plan if any."""
        requests = []
        for number, arguments in enumerate(commands):
            places = (str(self.directory / f"{name}{number or ''}") for name in ("out", "err"))
            plan = plans[number] if number < len(plans) else None
            limits = [self.devices, self.seconds, max_file_bytes, str(plan.path) if plan else ""]
            requests.append([arguments, *places, str(self.cwd), *limits])
        process = server(self.preload)
        process.stdin.write(json.dumps(requests) + "\n")
        process.stdin.flush()
        codes = json.loads(process.stdout.readline())
        texts = [
            [pathlib.Path(place).read_text() for place in request[1:3]] for request in requests
        ]
        return [Done(code, *text) for code, text in zip(codes, texts, strict=True)]


def trained(root: pathlib.Path, recipe: dict) -> tuple[CommandLine, pathlib.Path]:
    """Train a recipe, which is left in `root`; return command line and run directory."""
    (root / "recipe.json").write_text(json.dumps(recipe))
    line, workdir = CommandLine(root, cwd=root), root / "run"
    done = line("train", f"--config={root / 'recipe.json'}", f"--workdir={workdir}")
    assert done.code == 0, done.err
    return line, workdir


def serve() -> None:
    """Fork for each request of a line on standard input; answer with their exit codes."""
    import gc
    import importlib

    sys.path[0] = str(ROOT)  # as `python -m` has it there
    # Of the package this leaves out `__main__`, which runs anew in each child.
    for verb in ("glue", "generate", "embed", "inspect", "convert"):
        if (ROOT / "flaxlm" / "commands").is_dir():  # the checkout may be one of before them
            importlib.import_module(f"flaxlm.commands.{verb}")
    for late in (
        *("grain", "matplotlib.backends.backend_agg", "matplotlib.figure", "orbax.checkpoint"),
        *("rouge_score.rouge_scorer", "sacrebleu.metrics", "tensorboardX"),
    ):
        importlib.import_module(late)
    gc.freeze()  # nothing of it is garbage for a child to look for
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        children = []
        for request in json.loads(line):
            children.append(os.fork())
            if children[-1] == 0:
                execute(*request)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(codes), file=answers, flush=True)


def execute(
    arguments: list[str],
    out: str,
    err: str,
    cwd: str,
    devices: int,
    seconds: int,
    max_file_bytes: int,
    plan: str,
) -> None:
    """Become `python -m flaxlm arguments…`, or a script's, in `cwd`; does not return."""
    import ctypes
    import resource
    import runpy
    import signal

    import jax

    signal.alarm(seconds)  # a command that hangs is a failure, and not the end of the suite
    jax.config.update("jax_num_cpu_devices", devices)
    os.chdir(cwd)
    os.environ["XDG_CACHE_HOME"] = os.path.dirname(out)
    for number, path in ((0, os.devnull), (1, out), (2, err)):
        mode = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(path, mode), number)
    if max_file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    if plan and ctypes.CDLL(None).faults_arm(os.fsencode(plan)):
        raise OSError(f"the fault plan {plan} cannot be armed")
    script = arguments[0] if arguments and arguments[0].endswith(".py") else ""
    sys.argv = arguments if script else ["flaxlm", *arguments]
    try:
        if script:
            runpy.run_path(script, run_name="__main__")
        else:
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
