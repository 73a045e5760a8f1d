"""A command, or one reader, and by how much its memory grew: FILE for the bytes, then what to run.

Run through `CommandLine`, after the imports; what would take more than 3 GB is refused it.
"""

import pathlib
import resource
import runpy
import sys


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def read(reader: str, path: str) -> None:
    """Read a file to its end, keeping nothing; exit as the command does."""
    from flaxlm.data import json_rows, tables
    from flaxlm.data.hugging_face import load_hugging_face
    from flaxlm.data.sources import DataConfig, documents
    from flaxlm.data.tokenizer import load_tokenizer
    from flaxlm.errors import FlaxlmError
    from flaxlm.interop.tensors import Tensors
    from flaxlm.tasks import conll, squad_json
    from flaxlm.training.config import read_json

    most = 64 << 20
    readers = {
        "rows": lambda: tables.rows(path, 0),
        "lines": lambda: documents(DataConfig(path=path, document="line")),
        "file": lambda: documents(DataConfig(path=path, document="file")),
        "paragraphs": lambda: documents(DataConfig(path=path, document="paragraph")),
        "conll": lambda: conll.read(path, most),
        "questions": lambda: squad_json.read_questions(path, most),
        "json": lambda: json_rows.loads(pathlib.Path(path).read_text(), path),
        "config": lambda: read_json(pathlib.Path(path)),
        "tensors": lambda: Tensors(pathlib.Path(path)).infos,
        "hub": lambda: load_hugging_face(path).encode("a b"),
        "tokenizer": lambda: load_tokenizer(path).encode("a b"),
    }
    try:
        for _ in readers[reader]():
            pass
    except FlaxlmError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    size = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (3 << 30),) * 2)
    place, first, *arguments = sys.argv[1:]
    before = peak()
    try:
        if first == "read":
            read(*arguments)
        else:
            sys.argv = ["flaxlm", first, *arguments]
            runpy.run_module("flaxlm", run_name="__main__", alter_sys=True)
    finally:
        pathlib.Path(place).write_text(str(peak() - before))
