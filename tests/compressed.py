"""Files of any format, compressed as their names say."""

import gzip
import pathlib

import zstandard


def write(path: pathlib.Path, text: str | bytes) -> str:
    """Write a file, compressed by its ending; return its path."""
    data = text.encode() if isinstance(text, str) else text
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        data = zstandard.compress(data)
    path.write_bytes(data)
    return str(path)
