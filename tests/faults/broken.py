"""`python -m flaxlm`, with a function of the package that hangs or fails.

    broken.py [NAME=VALUE …] [PLACE HOW …] ARGUMENTS…

NAME is a variable of the environment. PLACE is module.function or module.class.method; HOW is
`hang`, in foreign code that no signal interrupts, `fail`, with an error that nobody foresaw,
`refuse`, with one of the package's, `slow`: each call takes half a second, or `mute`: standard
error is on a full disk from then on. `late` takes 40 s, longer than Gloo waits for anyone.
"""

import ctypes
import functools
import importlib
import os
import pathlib
import re
import sys
import time

import flaxlm


def hang() -> None:
    """Wait in C, without the interpreter, until the process is killed."""
    lock, library = ctypes.create_string_buffer(256), ctypes.CDLL(None)
    library.pthread_mutex_init(lock, None)
    while True:
        library.pthread_mutex_lock(lock)  # the second time it waits for itself


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


def late() -> None:
    """Take 40 s."""
    time.sleep(40)


def mute() -> None:
    """Let no line that follows be written."""
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)


def breaks(place: str, how: str) -> None:
    """Replace the function at `place`."""
    if not pathlib.Path(flaxlm.__file__).with_name("inference").is_dir():  # a checkout of before
        place = place.replace(".inference.", ".").replace(".evaluation.", ".")
    module, _, name = place.rpartition(".")
    try:
        owner = importlib.import_module(module)
    except ModuleNotFoundError:
        module, _, kind = module.rpartition(".")
        owner = getattr(importlib.import_module(module), kind)
    act = globals()[how]
    whole = getattr(owner, name)

    @functools.wraps(whole)
    def broken(*arguments, **options):
        print(f"broken: {how}", file=sys.stderr, flush=True)
        act()
        return whole(*arguments, **options)

    setattr(owner, name, broken)


if __name__ == "__main__":
    given = sys.argv[1:]
    while re.match(r"\w+=", given[0]):
        name, _, value = given.pop(0).partition("=")
        os.environ[name] = value
    while "." in given[0]:
        breaks(given.pop(0), given.pop(0))
    sys.argv = ["flaxlm", *given]
    from flaxlm.__main__ import main

    sys.exit(main())
