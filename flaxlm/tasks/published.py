"""Published sets by their directory: which file holds which split."""

import dataclasses
import os
from collections.abc import Sequence

from flaxlm.data.sources import DataConfig


def in_directory(data: DataConfig, train: str, files: Sequence[str]) -> DataConfig:
    """Return `data` with the files of a set in the place of its directory and of their parts.

    Args:
      data: its `path` is the directory, and then `valid_path` and `test_path` are parts, or files
        elsewhere; with any other path nothing is changed.
      train: the part that is trained on.
      files: the names that a part's file may have, with `{}` for the part.
    """
    if not isinstance(data.path, str) or not os.path.isdir(os.path.expanduser(data.path)):
        return data
    root = os.path.expanduser(data.path)

    def place(part: str) -> str:
        """Return where a part stands; of one that does not, where it would."""
        names = [part, *(os.path.join(root, name.format(part)) for name in files)]
        return next(filter(os.path.isfile, names), names[1])

    held = {key: getattr(data, key) for key in ("valid_path", "test_path")}
    held = {key: place(part) for key, part in held.items() if part}
    return dataclasses.replace(data, path=place(train), **held)
