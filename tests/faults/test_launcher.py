"""The launcher restarts what asks for it, and hands on what it is itself asked by a signal."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from command_line import ROOT

LAUNCHER = ROOT / "experiments/launchers/one_machine.sh"
# In the place of `python`: a run that ends with the next code, or waits for a signal and saves.
RUN = """#!/bin/bash
echo "$@" >> started
trap 'echo INT >> got; sleep 0.2; echo saved >> got; exit 75' INT
trap 'echo TERM >> got; sleep 0.2; echo saved >> got; exit 75' TERM
trap 'echo HUP >> got; sleep 0.2; echo saved >> got; exit 75' HUP
read -r code < codes
sed -i 1d codes
[ "$code" = wait ] && for _ in {1..1000}; do /bin/sleep 0.02; done
exit "$code"
"""


def as_in_front() -> None:
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def launch(tmp_path):
    """Return a function that starts the launcher, whose runs end with these codes in turn."""
    (tmp_path / "bin").mkdir()
    for name, text in (("python", RUN), ("sleep", '#!/bin/bash\n/bin/sleep "0.$1"\n')):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    started = []

    def launch(*codes):
        (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
        environment = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
        command = ["bash", LAUNCHER, "recipe.py", "runs/a", "--config.data.path=a b"]
        # A shell keeps ignoring what it is started with ignored, as in the background of another.
        started.append(
            subprocess.Popen(command, cwd=tmp_path, env=environment, preexec_fn=as_in_front)
        )
        return started[-1]

    yield launch
    for process in started:
        process.kill()


def lines(path: pathlib.Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_a_run_is_started_again_as_long_as_it_asks_for_that(launch, tmp_path):
    assert launch(75, 75, 0).wait(20) == 0
    command = "-m flaxlm train --config=recipe.py --workdir=runs/a --config.data.path=a b"
    assert lines(tmp_path / "started") == [command] * 3
    assert launch(65).wait(20) == 65 and len(lines(tmp_path / "started")) == 4


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP"])
def test_who_is_asked_to_stop_lets_the_run_save_and_starts_none(launch, tmp_path, name):
    launcher, end = launch("wait", 0), time.monotonic() + 20
    while not lines(tmp_path / "started") or lines(tmp_path / "codes") != ["0"]:
        assert time.monotonic() < end
        time.sleep(0.02)
    launcher.send_signal(getattr(signal, f"SIG{name}"))
    assert launcher.wait(20) == 75
    assert lines(tmp_path / "got") == [name, "saved"]
    assert len(lines(tmp_path / "started")) == 1


QUICKSTART = """
import sys
sys.path.insert(0, "experiments/quickstart")
import quickstart
sys.exit(quickstart.passing_signals_on([sys.executable, "-c", sys.argv[1]]))
"""
SAVES = """
import signal, sys, time
got = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, _: got.append(number))
print("ready", flush=True)
while not got:
    time.sleep(0.01)
time.sleep(0.5)
print("saved", got, flush=True)
sys.exit(75)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("whole", [False, True], ids=["the script", "its terminal"])
def test_the_quickstart_lets_a_command_save(number, whole):
    command = [sys.executable, "-c", QUICKSTART, SAVES]
    running = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert running.stdout.readline() == "ready\n"
        (os.killpg if whole else os.kill)(running.pid, number)
        out, _ = running.communicate(timeout=20)
    finally:
        running.kill()
    assert (running.returncode, out) == (75, f"saved [{int(number)}]\n")
