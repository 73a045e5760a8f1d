"""Write the table of `make faults` into the README: `table.py [SUMMARY [README]]`."""

import collections
import json
import os
import pathlib
import re
import sys

BEGIN, END = "<!-- faults: tests/faults/table.py -->\n", "<!-- /faults -->"


# How what is counted may have ended, of flips: in columns of their own.
ENDED = ("refused", "said", "the same", "silent")


def table(summary: dict) -> str:
    """Return the table of what the tests counted: a row for each kind of fault."""
    rows: dict = collections.defaultdict(collections.Counter)
    failed: collections.Counter = collections.Counter()
    for run in summary.values():
        for row, figures in run["rows"].items():
            rows[row].update(figures)
            failed[row] += run["failed"]
    lines = ["| faults | tried | ended | minutes |", "|---|---|---|---|"]
    for row, figures in sorted(rows.items()):
        tried = counts(figures, [n for n in sorted(figures) if n not in (*ENDED, "seconds")])
        ended = counts(figures, ENDED) or "as promised"
        ended = f"**{failed[row]} tests failed**" if failed[row] else ended
        lines.append(f"| {row} | {tried} | {ended} | {figures['seconds'] / 60:.1f} |")
    dates = sorted({run["date"] for run in summary.values()})
    machine = f"{os.cpu_count()} cores of {model()}, {', '.join(dates)}"
    return "\n".join(lines) + f"\n\n`make faults` on {machine}.\n"


def counts(figures: dict, names) -> str:
    """Return figures with their names, without those that are 0."""
    return ", ".join(f"{figures[name]:,.0f} {name}" for name in names if figures.get(name))


def model() -> str:
    """Return the processor's name, or of what architecture it is."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    return re.sub(r"\((R|TM)\)", "", found[1]) if found else os.uname().machine


def main(summary: str = "runs/faults/summary.json", readme: str = "README.md") -> None:
    """Put the table between its marks."""
    path = pathlib.Path(readme)
    text = path.read_text(encoding="utf-8")
    made = BEGIN + table(json.loads(pathlib.Path(summary).read_text())) + END
    path.write_text(
        re.sub(re.escape(BEGIN) + ".*" + re.escape(END), lambda _: made, text, flags=re.S)
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
