"""Write the table of `make faults` into the README: `table.py [SUMMARY [README]]`."""

import datetime
import json
import os
import pathlib
import re
import sys

BEGIN, END = "<!-- faults: tests/faults/table.py -->\n", "<!-- /faults -->"


def table(summary: dict) -> str:
    """Return the table of what was counted, a row each, flips in one."""
    lines = ["| faults | | outcome | minutes |", "|---|---|---|---|"]
    for row, figures in sorted(summary.items()):
        names = [n for n in figures if n not in ("tests", "failed", "seconds")]
        counts = ", ".join(f"{figures[name]:,.0f} {name}" for name in sorted(names))
        failed = figures.get("failed", 0)
        result = f"{failed} tests failed" if failed else "all as promised"
        lines.append(f"| {row} | {counts} | {result} | {figures.get('seconds', 0) / 60:.1f} |")
    machine = f"{os.cpu_count()} cores, {os.uname().machine}, {datetime.date.today()}"
    return "\n".join(lines) + f"\n\n`make faults` on {machine}.\n"


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
