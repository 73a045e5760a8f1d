"""What a run reads: recorded in each of its checkpoints, and compared when it goes on.

Of each split the manifest holds how many rows there are and a digest of the files in their order;
`data.json` beside it names them. Where they lie does not count, what they hold does.
"""

import collections
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from flaxlm import files

FILE = "data.json"
SHOWN = 5  # files that an error names


@dataclasses.dataclass(frozen=True)
class SplitRecord:
    """What one split is read from."""

    rows: Mapping[str, int]  # by what is counted
    sources: Sequence[Mapping[str, Any]]  # path as it was given, bytes, sha256; in their order
    contents: Sequence[str] = ()  # of a text, the digest of its tokens in each cache

    def identity(self) -> dict:
        """Return what the manifest holds; equal wherever and whenever equal data is read."""
        digests = "".join(source["sha256"] for source in self.sources)
        whole = hashlib.sha256(digests.encode()).hexdigest()
        return {"rows": dict(self.rows), "sha256": whole, "contents": list(self.contents)}


def facts_of(path: str) -> dict:
    """Return path, size and digest of a file that is read now."""
    return {"path": path, "bytes": os.path.getsize(path), "sha256": files.sha256(path)}


def differences(
    before: Mapping[str, Mapping], now: Mapping[str, SplitRecord], listed: Mapping[str, Sequence]
) -> list[str]:
    """Return a line for each thing that another data set is told by; none for the same data.

    Args:
      before: {split: `SplitRecord.identity`} of a checkpoint.
      now: of the run that goes on; splits of one side alone are not compared.
      listed: {split: `SplitRecord.sources`} of the checkpoint.
    """
    lines: dict[str, None] = {}
    for split in before.keys() & now.keys():
        then, here = before[split], now[split].identity()
        if then == here:
            continue
        found = _files(listed.get(split, ()), now[split].sources)
        for name in sorted(then["rows"].keys() | here["rows"].keys()):
            a, b, what = then["rows"].get(name), here["rows"].get(name), name.replace("_", " ")
            if a != b:
                found.append(f"the {split} split has {_count(b)} {what} instead of {_count(a)}")
        lines |= dict.fromkeys(found or [f"the {split} split was read in another way"])
    return list(lines)


def _count(number: int | None) -> str:
    return "no" if number is None else f"{number:,}"


def _files(before: Sequence[Mapping], now: Sequence[Mapping]) -> list[str]:
    """Return a line for each file that was changed, is missing or is new."""
    then, here = ({file["path"]: file for file in part} for part in (before, now))
    gone, new = (
        {p: f for p, f in x.items() if p not in y} for x, y in ((then, here), (here, then))
    )
    lines = [
        _changed(path, then[path], file)
        for path, file in here.items()
        if path in then and then[path]["sha256"] != file["sha256"]
    ]
    lines += [f"{path} is new" for path in _unmatched(new, gone)]
    for path in _unmatched(gone, new):
        lines.append(f"{path} is {'no longer read' if os.path.exists(path) else 'missing'}")
    if not lines and [f["sha256"] for f in before] != [f["sha256"] for f in now] and before:
        lines = ["the files are read in another order, or one of them twice"]
    rest = len(lines) - SHOWN
    return lines[:SHOWN] + [f"{rest} more files"] * (rest > 0)


def _unmatched(some: Mapping[str, Mapping], others: Mapping[str, Mapping]) -> list[str]:
    """Return the files that did not come from, or went to, another path."""
    left = collections.Counter(file["sha256"] for file in others.values())
    unmatched = []
    for path, file in some.items():
        left[file["sha256"]] -= 1
        unmatched += [path] * (left[file["sha256"]] < 0)
    return unmatched


def _changed(path: str, old: Mapping, new: Mapping) -> str:
    added = new["bytes"] - old["bytes"]
    if added > 0 and files.sha256(path, old["bytes"]) == old["sha256"]:
        return f"{added:,} bytes were appended to {path}"
    size = f"{old['bytes']:,} → {new['bytes']:,} bytes" if added else "of the same size"
    return f"{path} was changed ({size})"


def listing(now: Mapping[str, SplitRecord]) -> bytes:
    """Return the contents of `data.json`."""
    return (json.dumps({split: list(r.sources) for split, r in now.items()}) + "\n").encode()
