"""What the fault tests share: how many cases run, and when two directories are the same.

`make test` runs a selection of them, a few minutes; `make faults` sets FLAXLM_FAULTS=all and runs
every point of every sweep.
"""

import hashlib
import json
import os
import pathlib
import re

ALL = os.environ.get("FLAXLM_FAULTS") == "all"


def selection(cases: list, number: int) -> list:
    """Return the cases to run: all in `make faults`, else `number` of them, evenly spread."""
    if ALL or len(cases) <= number:
        return cases
    return [cases[round(i * (len(cases) - 1) / max(number - 1, 1))] for i in range(number)]


# Whose contents no promise is about: locks, what is shown, when and where it ran.
UNPROMISED = re.compile(r"(^|/)(lock|\..*\.lock|run\.json|tensorboard/.*|\..*\.verified-.*\.json)$")
# What a dead process may have left, and the next start removes.
LEFT = re.compile(r"\.(writing|trash|probe)|damaged_|\..*\.(tmp|parts|new|old|\d+)$")


def facts(root: pathlib.Path) -> dict:
    """Return what has to be equal in two directories of runs, by file.

    Every file byte for byte; of a checkpoint its manifest without the times, where the digests of
    the arrays stand; of the metrics the rows without the speed.
    """
    found = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        name = path.relative_to(root).as_posix()
        if UNPROMISED.search(name) or "/state/" in name:
            continue
        if path.name == "manifest.json" and "checkpoints/" in name:
            manifest = json.loads(path.read_bytes())
            found[name] = {k: v for k, v in manifest.items() if k not in ("saved", "checksum")}
        elif path.name == "glue.json":
            # Of which part the seconds are: where it was killed; they are in the checksum.
            times = r'"(seconds|resumed|checksum)": [^,}\n]*'
            found[name] = re.sub(times, "", path.read_text())
        elif path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            speed = ("tokens_per_second", "mfu", "checksum")
            found[name] = [{k: v for k, v in row.items() if k not in speed} for row in rows]
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return found


def leftovers(root: pathlib.Path) -> list[str]:
    """Return what lies in a directory and below that no finished command leaves there."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if LEFT.match(path.name))


def differences(found: dict, wanted: dict) -> list[str]:
    """Return what differs between the facts of two directories, a line each."""
    lines = []
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            what = "missing" if name not in found else "new" if name not in wanted else "differs"
            lines.append(f"{name}: {what}")
    return lines
