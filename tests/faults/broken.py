"""`python -m flaxlm`, with a function of the package that hangs or fails.

    broken.py PLACE HOW ARGUMENTS…

PLACE is module.function or module.class.method; HOW is `hang`, in foreign code that no signal
interrupts, `fail`, with an error that nobody foresaw, `refuse`, with one of the package's, or
`slow`: each call takes half a second.
"""

import functools
import hashlib
import importlib
import sys
import time


def hang() -> None:
    """Compute in C, without the interpreter, until the process is killed."""
    while True:
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)


def fail() -> None:
    """Raise what is no error of the package."""
    raise RuntimeError("broken on purpose")


def refuse() -> None:
    """Raise an error of the package."""
    from flaxlm.errors import DataError

    raise DataError("refused on purpose")


def slow() -> None:
    """Take half a second."""
    time.sleep(0.5)


def breaks(place: str, how: str) -> None:
    """Replace the function at `place`."""
    module, _, name = place.rpartition(".")
    try:
        owner = importlib.import_module(module)
    except ModuleNotFoundError:
        module, _, kind = module.rpartition(".")
        owner = getattr(importlib.import_module(module), kind)
    act = {"hang": hang, "fail": fail, "refuse": refuse, "slow": slow}[how]
    whole = getattr(owner, name)

    @functools.wraps(whole)
    def broken(*arguments, **options):
        print(f"broken: {how}", file=sys.stderr, flush=True)
        act()
        return whole(*arguments, **options)

    setattr(owner, name, broken)


if __name__ == "__main__":
    breaks(*sys.argv[1:3])
    sys.argv = ["flaxlm", *sys.argv[3:]]
    from flaxlm.__main__ import main

    sys.exit(main())
