"""Faults at every call of an operation that changes the disk: SQLite's method.

The first call is faulted, then the second, until none is left to fault. After each the operation is
started again without faults, and has to end like one that nothing disturbed.
"""

import pathlib
import re
import shutil
import signal
from collections.abc import Sequence

import shim
from faults import ALL, differences, facts, leftovers

# Two faults a point; killed after a call is killed before the next.
KILLS, ERRORS = ["kill"], ["full", "eio", "short", "broken", "enospc", "quota"]
# What may fail and the operation succeeds all the same: what is to be deleted stays, logs, a record
# of what was verified, making a directory that is there, a copy that goes on in another way.
LOGS = re.compile(r"/metrics\.jsonl|/\.?run\.json|/tensorboard")
OPTIONAL = re.compile(
    rf"{LOGS.pattern}|/\.trash-|/\.[^/]*\.lock|\.verified-|^unlink|^rmdir|^mkdir|^sendfile"
)


def points(seen: int, number: int) -> list[int]:
    """Return the points to fault: all of them, or `number` evenly spread."""
    if ALL or seen <= number:
        return [*range(1, seen + 1)]
    return sorted({1 + round(i * (seen - 1) / (number - 1)) for i in range(number)})


def judge(done, plan, fault: str, before: str) -> None:
    """Check how a faulted command ended; `before` is the call before the one that was faulted."""
    place = f"{fault} at {plan.what}: {done.code}\n{done.err}"
    if "kill" in fault:
        assert done.code == -signal.SIGKILL, place
    elif done.code == 0:
        synced = plan.what.startswith("fsync") and before.startswith("rename")  # a new name
        assert OPTIONAL.search(before if synced else plan.what), place
    else:
        assert done.code == 74 and len(done.errors) == 1, place
        assert plan.seconds_since() < 10, place
        if fault in ("full", "short", "quota"):
            assert re.search(r"[\d,.]+ (bytes|MB|GB) (needed, .*free|free and)", done.err), place


def layout(root: pathlib.Path) -> tuple:
    """Return names and sizes of what lies below, without what differs from process to process."""
    paths = sorted(root.rglob("*"))
    own = re.compile(r"[0-9a-f]{9,}|(?<=\.)\d+(?=\.tmp$)")
    names = [own.sub("#", path.relative_to(root).as_posix()) for path in paths]
    sizes = [path.stat().st_size if path.is_file() else -1 for path in paths]
    return tuple(sorted(zip(names, sizes, strict=True)))


class Sweep:
    """Faults at the points of one operation.

    Args:
      start: makes the directory that the operation begins with, at the path that it is given.
      run: runs the operation there, with a plan or none; returns a Done.
      root: a folder for the directory.
      again: exit codes of a second start; 77 where the first was killed when all was done.
    """

    def __init__(self, start, run, root: pathlib.Path, again: Sequence[int] = (0,)):
        self.start, self.run, self.place, self.again = start, run, root / "here", again
        start(self.place)
        with shim.Plan(self.place) as plan:
            done = run(self.place, plan)
        assert done.code == 0 and plan.seen, done.err
        self.calls, self.wanted = plan.points(), facts(self.place)
        self.seen, self.left, self.restarts = plan.seen, set(), 0
        assert leftovers(self.place) == []

    def fault(self, fault: str, at: int) -> bool:
        """Fault the point `at`, from 1, and start again; return whether there was such a point.

        What an earlier fault left as well was started from then: of each state once. Half of the
        calls make none, they sync what was written, or open it.
        """
        shutil.rmtree(self.place)
        self.start(self.place)
        # A fault counts the calls that it may meet.
        number = sum(shim.counts(fault, call) for call in self.calls[:at])
        number += max(at - self.seen, 0)
        with shim.Plan(self.place, fault, number) as plan:
            done = self.run(self.place, plan)
        if not plan.fired:
            assert done.code == 0, done.err
            return False
        judge(done, plan, fault, ["", *self.calls][min(at - 1, self.seen)])
        if (state := layout(self.place)) in self.left:
            return True
        self.left.add(state)
        again, self.restarts = self.run(self.place, None), self.restarts + 1
        place = f"{fault} at {plan.what}, then {again.code}\n{again.err}"
        assert again.code in self.again, place
        found, left = differences(facts(self.place), self.wanted), leftovers(self.place)
        if fault != "kill" and LOGS.search(plan.what):  # said, and gone
            found = [line for line in found if not LOGS.search(f"/{line}")]
        assert found == left == [], f"{place}\n{found}\n{left}"
        return True

    def all(self, faults: Sequence[str], number: int) -> int:
        """Fault every point, or `number` of them, with these in turn; return how many there were.

        There may be a few more than were counted: threads do not always meet alike.
        """
        fired = 0
        for at in points(self.seen, number):
            meets = [f for f in faults if shim.counts(f, self.calls[at - 1])]
            fired += self.fault(meets[at % len(meets)], at)
        (last, *_), at = [f for f in faults if shim.counts(f, "unlink")], self.seen + 1
        while ALL and self.fault(last, at):
            at, fired = at + 1, fired + 1
        return fired
