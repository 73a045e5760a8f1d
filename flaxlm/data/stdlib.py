"""The Python standard library's own source text: the corpus that every machine has."""

import fnmatch
import os
import pathlib
import sysconfig
from collections.abc import Sequence

from flaxlm.errors import MissingInput

# Tests and vendored wheels are not library text; the build's own settings name the machine.
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo"}
SKIPPED_FOLDERS |= {"site-packages", "dist-packages", "ensurepip", "lib-dynload", "__pycache__"}
SKIPPED_FILES = ("_sysconfigdata_*", "_sysconfig_vars_*")


def stdlib_root() -> pathlib.Path:
    """Return the folder of the running Python's library."""
    return pathlib.Path(sysconfig.get_path("stdlib"))


def stdlib_files(include: Sequence[str] = (), exclude: Sequence[str] = ()) -> list[pathlib.Path]:
    """Return the `.py` files of the running Python's standard library, sorted by name.

    `include` and `exclude` are patterns on the name below the library's folder, such as
    `json/*`: what matches `exclude` is left out, and with `include` whatever matches none of it.
    """
    root = stdlib_root()
    sources = []
    for folder, folders, names in os.walk(root):
        folders[:] = [f for f in folders if f not in SKIPPED_FOLDERS]
        for name in names:
            if name.endswith(".py") and not any(fnmatch.fnmatch(name, s) for s in SKIPPED_FILES):
                sources.append(pathlib.Path(folder, name).relative_to(root).as_posix())
    if not sources:
        raise MissingInput(f"this Python has no standard library source below {root}")
    return [root / name for name in sorted(sources) if wanted(name, include, exclude)]


def wanted(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Say whether `name` matches one of `include`, if there are any, and none of `exclude`."""
    if include and not any(fnmatch.fnmatchcase(name, pattern) for pattern in include):
        return False
    return not any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude)
