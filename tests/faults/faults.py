"""What the fault tests share.

`make test` runs a selection of them, a few minutes; `make faults` sets FLAXLM_FAULTS=all and runs
every point of every sweep.
"""

import os

ALL = os.environ.get("FLAXLM_FAULTS") == "all"


def selection(cases: list, number: int) -> list:
    """Return the cases to run: all in `make faults`, else `number` of them, evenly spread."""
    if ALL or len(cases) <= number:
        return cases
    return [cases[round(i * (len(cases) - 1) / max(number - 1, 1))] for i in range(number)]
