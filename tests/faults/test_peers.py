"""Several processes: what befalls one of them ends all, in time, with one code and one line.

Each fault befalls process 0, where all are connected, and another, of two and of four.
"""

import pathlib
import signal
import time

import pytest
import shim
from faults import ALL, selection
from peers import end_as_one, nothing_is_left, recipe, step_of, until_ready

STUCK = {2: 10, 4: 20}  # seconds of train.stuck_after: longer than so many compile on two cores
VERBS = ["train", "evaluate", "generate"]
PAIRS = [(2, 1), (4, 0), (2, 0), (4, 2)]  # how many processes, and which is hit
CASES = [(verb, *pair) for verb in VERBS for pair in PAIRS]


def crossed(two) -> list[tuple]:
    """Return the cases, each with one of two: both befall process 0 and another of each verb."""
    return [(*case, two[n % 4 > 1]) for n, case in enumerate(CASES)]


@pytest.mark.parametrize(("verb", "count", "hit"), selection(CASES, 1))
def test_one_is_killed(several, verb, count, hit):
    runs = several.start(verb, count)
    until_ready(verb, runs)
    runs[hit].signal(signal.SIGKILL)
    end_as_one(runs, 75, hit, "ended without a word", within=30, but=[runs[hit]])
    if verb == "train":
        nothing_is_left(several.workdir)


@pytest.mark.parametrize(("verb", "count", "hit"), selection(CASES, 1))
def test_one_is_stopped(several, verb, count, hit):
    stuck = STUCK[count]
    runs = several.start(verb, count, f"--config.train.stuck_after={stuck}")
    until_ready(verb, runs)
    runs[hit].signal(signal.SIGSTOP)
    end_as_one(
        runs, 71, hit, "train.stuck_after", "has not answered", within=stuck + 15, but=[runs[hit]]
    )
    runs[hit].signal(signal.SIGCONT)
    end_as_one(runs, 71, hit)


@pytest.mark.skipif(not ALL, reason="half a minute, in make faults")
def test_one_is_stopped_and_goes_on(several, text):
    runs = several.start("train", 2, config=recipe(text, steps=50))
    runs[0].until_said("train 10/", 120)
    runs[1].signal(signal.SIGSTOP)
    time.sleep(8.0)
    runs[1].signal(signal.SIGCONT)
    assert [one.wait(100).code for one in runs] == [0, 0]


FAILS = {
    "train": "flaxlm.training.metrics.MetricWriter.push",
    "evaluate": "flaxlm.evaluation.evaluate.loss_metrics",
    "generate": "flaxlm.inference.generate.generate",
}


@pytest.mark.parametrize(("verb", "count", "hit", "how"), selection(crossed(["refuse", "fail"]), 2))
def test_one_fails(several, verb, count, hit, how):
    runs = several.start(verb, count, breaks={hit: (FAILS[verb], how)})
    runs[hit].until_said(f"broken: {how}", 120)
    end_as_one(runs, {"refuse": 65, "fail": 70}[how], hit, "on purpose")


@pytest.mark.skipif(not ALL, reason="half a minute, in make faults")
@pytest.mark.parametrize(("count", "hit"), PAIRS[:2])
def test_one_hangs(several, count, hit):
    broken_one, stuck = {hit: ("flaxlm.sharding.to_global", "hang")}, STUCK[count]
    runs = several.start("train", count, f"--config.train.stuck_after={stuck}", breaks=broken_one)
    runs[hit].until_said("broken: hang", 120)
    end_as_one(runs, 71, hit, f"waited {stuck} s", "the batch of step 1", within=stuck + 15)


@pytest.mark.parametrize(
    ("verb", "count", "hit", "number"), selection(crossed([signal.SIGTERM, signal.SIGINT]), 2)
)
def test_one_is_asked_to_stop(several, verb, count, hit, number):
    runs = several.start(verb, count)
    until_ready(verb, runs)
    runs[hit].signal(number)
    line = end_as_one(runs, 75, hit, "asked to stop")
    if verb == "train":
        assert f"saved step {step_of(several.workdir)} of" in line
        nothing_is_left(several.workdir)
    else:
        assert "nothing to be saved" in line


@pytest.mark.skipif(not ALL, reason="half a minute, in make faults")
@pytest.mark.parametrize("hit", [0, 1])
def test_a_save_that_fails_is_not_said_to_be_one(several, hit):
    breaks = {0: ("flaxlm.training.store.Store.commit", "refuse")}
    runs = several.start("train", 2, breaks=breaks)
    runs[0].until_said("train 10/", 120)
    runs[hit].signal(signal.SIGTERM)
    line = end_as_one(runs, 74, 0, "was not saved")
    assert "asked to stop" not in line


# What of a run the disk of one process has no room for, or cannot write: {what: (which, where)}.
UNWRITTEN = {
    "its arrays": (1, "run/checkpoints"),
    "the checkpoint": (0, "run/checkpoints/.writing-step_00000004/tokenizer"),
    "the token cache": (0, "run/cache"),
    "the records": (0, "run"),
}
WRITES = [(what, fault) for what in UNWRITTEN for fault in ("full", "broken")]


@pytest.mark.parametrize(("what", "fault"), selection(WRITES, 1))
def test_one_cannot_write(several, text, what, fault):
    hit, where = UNWRITTEN[what]
    config = recipe(text, checkpoint=dict(every=4))
    cause = {"full": "No space left on device (", "broken": "Input/output error"}[fault]
    place: pathlib.Path = several.folder / where
    with shim.Plan(place, fault, 1, kinds=shim.SPACE) as plan:
        runs = several.start(
            "train", 2, config=config, plans={hit: plan}, preload=str(shim.library())
        )
        runs[hit].until(lambda: plan.fired, 120)
        end_as_one(runs, 74, hit, cause, str(several.workdir))
        assert plan.seconds_since() < 10 + 5  # and as long as the others may take


def test_one_is_asked_to_stop_while_it_waits_for_the_others(several):
    (there,) = several.start("train", 2, only=[0])
    time.sleep(1.0)
    there.signal(signal.SIGTERM)
    done = there.wait(15)
    assert (done.code, len(done.errors)) == (75, 1), done.err
    assert "the wait for the other processes" in done.errors[0]


@pytest.mark.skipif(not ALL, reason="half a minute, in make faults")
def test_one_whose_lines_cannot_be_written_ends_with_the_others(several):
    runs = several.start("train", 2, breaks={1: ("flaxlm.train.Loop.run", "mute")})
    until_ready("train", runs)
    runs[0].signal(signal.SIGKILL)
    assert runs[1].wait(30).code == 75
