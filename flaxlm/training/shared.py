"""What several processes have in common: the disk of the run directory, tokenizer and data."""

import contextlib
import dataclasses
import pathlib
import secrets
import time
from collections.abc import Callable, Mapping

from flaxlm import files
from flaxlm.errors import Unsafe
from flaxlm.processes import current
from flaxlm.training.data_record import SplitRecord, differences

TOKEN = ".shared"  # in a run directory, for a moment


def check_disk(workdir: pathlib.Path) -> None:
    """End all processes where one does not see what process 0 writes in the run directory."""
    group, path = current(), workdir / TOKEN
    if not group:
        return
    try:
        text = secrets.token_hex(8)
        if group.lead:
            files.replace(path, text)
        written = group.gather("the run directory", text)[0]
        seen = group.gather("the run directory", _reads(path, written))
    finally:
        if group.lead:
            path.unlink(missing_ok=True)
    if not all(seen):
        index = seen.index(False)
        group.end(
            Unsafe.exit_code,
            f"process {index}: does not see in its run directory what process 0 writes in "
            f"{workdir}: checkpoints would lie there in parts; give all a --workdir on a disk that "
            "they share",
        )


def _reads(path: pathlib.Path, text: str) -> bool:
    """Return whether a file holds a text; a disk over the network may need a moment to show it."""
    for _ in range(20):
        with contextlib.suppress(OSError):
            if path.read_bytes() == text.encode():
                return True
        time.sleep(0.1)
    return False


def agree(what: str, value, lines: Callable) -> None:
    """End all processes where one reads something else (JSON) than process 0.

    `lines(process 0's, its)` are what differs, for a person.
    """
    group = current()
    if group and (other := group.compare(what, value)):
        index, *both = other
        group.end(
            Unsafe.exit_code,
            f"process {index}: does not read the {what} of process 0: {'; '.join(lines(*both))}; "
            "let all read the same",
        )


def agree_on_data(data: Mapping[str, SplitRecord]) -> None:
    """End all processes where one reads other rows of splits than process 0."""

    def lines(theirs: dict, its: dict) -> list[str]:
        then = {split: SplitRecord(**facts).identity() for split, facts in theirs.items()}
        now = {split: SplitRecord(**facts) for split, facts in its.items()}
        return differences(then, now, {split: facts["sources"] for split, facts in theirs.items()})

    agree("data", {split: dataclasses.asdict(record) for split, record in data.items()}, lines)
