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
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence

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


def ask(preload: str, **question) -> list:
    """Return the server's answer to a question; see `serve`."""
    process = server(preload)
    process.stdin.write(json.dumps(question) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


@dataclasses.dataclass
class Running:
    """A command that was started, which a test may look at, signal and wait for."""

    preload: str
    pid: int
    out: pathlib.Path
    err: pathlib.Path
    code: int | None = None

    def ended(self, within: float = 0.0) -> bool:
        """Return whether the command has ended, or does so `within` seconds."""
        if self.code is None:
            (self.code,) = ask(self.preload, wait=[self.pid], within=within)
        return self.code is not None

    def signal(self, number: int) -> None:
        """Send a signal, unless the command has ended."""
        if not self.ended():
            os.kill(self.pid, number)

    def until(self, condition: Callable[[], bool], within: float = 60.0) -> None:
        """Wait for a condition; AssertionError if the command ends or the time is up before."""
        end = time.monotonic() + within
        while not condition():
            ended, late = self.ended(), time.monotonic() > end
            if (ended or late) and not condition():
                self.kill()
                raise AssertionError(f"ended: {ended}\n{self.err.read_text()}")
            time.sleep(0.02)

    def until_said(self, text: str, within: float = 60.0) -> None:
        """Wait until the command has said `text` on standard error; see `until`."""
        self.until(lambda: self.err.exists() and text in self.err.read_text(), within)

    def wait(self, within: float = 60.0) -> Done:
        """Return what the command left; AssertionError, and it is killed, if that takes longer."""
        if not self.ended(within):
            self.kill()
            raise AssertionError(f"still running after {within} s\n{self.err.read_text()}")
        return Done(self.code, self.out.read_text(), self.err.read_text())

    def kill(self) -> None:
        """End the command whatever it does."""
        self.signal(signal.SIGKILL)
        self.ended(10.0)


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

    def together(self, commands: Iterable[Sequence[str]], *more) -> list[Done]:
        """Run several commands at the same time, a process each; see `start`."""
        return [command.wait(self.seconds + 60) for command in self.start(commands, *more)]

    def start(
        self,
        commands: Iterable[Sequence[str]],
        max_file_bytes: int = 0,
        plans: Sequence = (),
        cwds: Sequence[pathlib.Path] = (),
    ) -> list[Running]:
        """Start several commands, a process each, and do not wait; in `cwds` if they differ."""
        requests = []
        for number, arguments in enumerate(commands):
            places = (str(self.directory / f"{name}{number or ''}") for name in ("out", "err"))
            plan = plans[number] if number < len(plans) else None
            cwd = str(cwds[number] if cwds else self.cwd)
            limits = [self.devices, self.seconds, max_file_bytes, str(plan.path) if plan else ""]
            requests.append([arguments, *places, cwd, *limits])
            for place in requests[-1][1:3]:
                pathlib.Path(place).unlink(missing_ok=True)
        pids = ask(self.preload, start=requests)
        places = [map(pathlib.Path, request[1:3]) for request in requests]
        return [Running(self.preload, pid, *two) for pid, two in zip(pids, places, strict=True)]


def trained(root: pathlib.Path, recipe: dict) -> tuple[CommandLine, pathlib.Path]:
    """Train a recipe, which is left in `root`; return command line and run directory."""
    (root / "recipe.json").write_text(json.dumps(recipe))
    line, workdir = CommandLine(root, cwd=root), root / "run"
    done = line("train", f"--config={root / 'recipe.json'}", f"--workdir={workdir}")
    assert done.code == 0, done.err
    return line, workdir


def serve() -> None:
    """Answer each line on standard input with a line of JSON.

    `start` forks for each of its requests and is answered with their process ids; `wait` is
    answered with the exit codes of such ids, null for those that run on after `within` seconds.
    """
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
        question, answer = json.loads(line), []
        for request in question.get("start", ()):
            answer.append(os.fork())
            if answer[-1] == 0:
                execute(*request)
        end = time.monotonic() + question.get("within", 0.0)
        answer += (ended(child, end) for child in question.get("wait", ()))
        print(json.dumps(answer), file=answers, flush=True)


def ended(child: int, end: float) -> int | None:
    """Return the exit code of a child, or None if it has none at a time of the monotonic clock."""
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.005)


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
    import atexit
    import ctypes
    import resource
    import runpy
    import threading

    import jax

    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the suite was started by
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
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
        code = 0
    except SystemExit as end:
        code = end.code or 0
    if not code:  # what is registered for the end; all else of it copies the server's memory
        threading._shutdown()
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # taking the interpreter down costs 0.6 s, and most refusals less


if __name__ == "__main__":
    serve()
