"""A command, or one reader, and by how much its memory grew: FILE for the bytes, then what to run.

Run through `CommandLine`, after the imports; what would take more than 3 GB is refused it.
"""

import importlib.util
import pathlib
import resource
import runpy
import sys


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def read(reader: str, path: str) -> None:
    """Read a file to its end, keeping nothing; exit as the command does."""
    from flaxlm.errors import FlaxlmError

    def of(module: str, name: str):  # imported late: another checkout may lack the others
        if module == "data.tables" and not importlib.util.find_spec(f"flaxlm.{module}"):
            module, name = "tasks.records", "read_table"  # where it lay before
        return getattr(importlib.import_module(f"flaxlm.{module}"), name)

    def documents(unit: str):
        config = of("data.sources", "DataConfig")(path=path, document=unit)
        return of("data.sources", "documents")(config)

    def tensors(kind: type):
        return getattr(kind, "open", kind)(place).infos

    most, place = 64 << 20, pathlib.Path(path)
    readers = {
        "rows": lambda: of("data.tables", "rows")(path, most),
        "lines": lambda: documents("line"),
        "file": lambda: documents("file"),
        "paragraphs": lambda: documents("paragraph"),
        "records": lambda: of("tasks.records", "records")(
            of("data.sources", "DataConfig")(path=path), "train"
        ),
        "conll": lambda: of("tasks.conll", "read")(path, most),
        "questions": lambda: of("tasks.squad_json", "read_questions")(path, most),
        "config": lambda: of("training.config", "read_json")(place),
        "tensors": lambda: tensors(of("interop.tensors", "Tensors")),
        "long": lambda: of("data.hugging_face", "load_hugging_face")(path).encode_array(
            "a b " * (3 << 20), "uint16"
        ),
        "hub": lambda: of("data.hugging_face", "load_hugging_face")(path).encode("a b"),
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
