"""A process with too few descriptors left says so (74), and blames no file, whatever it reads."""

import contextlib
import dataclasses
import errno
import json
import os
import resource

import compressed
import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_hostile import directory, pipeline

from flaxlm import files
from flaxlm.data import cache, shards, sources, verified
from flaxlm.data.tokenizer import TokenizerConfig, load_tokenizer
from flaxlm.interop import tensor_writer
from flaxlm.interop.tensors import Tensors
from flaxlm.tasks import conll, squad_json
from flaxlm.tasks.records import read_table
from flaxlm.training.manifest import verify_files

MOST = 1 << 20
ROWS = [json.dumps({"text": f"a b {n}"}) for n in range(40)]


@contextlib.contextmanager
def descriptors(count: int):
    """Leave so many descriptors to open."""
    free = [os.open(os.devnull, os.O_RDONLY) for _ in range(count + 1)]
    for file in free:
        os.close(file)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(free), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def readers(root) -> dict:
    """Return {name: a reader of what is whole}."""
    found = {}
    contents = dict.fromkeys(("a.txt", "a.txt.gz", "a.txt.zst"), "a b\n" * 40)
    contents |= {"a.jsonl": "\n".join(ROWS), "a.json": f"[{','.join(ROWS)}]"}
    for name, text in contents.items():
        config = sources.DataConfig(path=compressed.write(root / name, text), document="line")
        found[name] = lambda config=config: list(sources.documents(config))
    pq.write_table(pa.table({"text": ["a b"] * 40}), root / "a.parquet")
    datasets.Dataset.from_dict({"text": ["a b"] * 9}).save_to_disk(root / "set")
    compressed.write(root / "a.csv", "text,label\na,b\n")
    for name in ("a.parquet", "set", "a.csv"):
        found[name] = lambda path=str(root / name): list(read_table(path, MOST))
    tags = compressed.write(root / "a.conll", "a O\nb O\n\n")
    found["a.conll"] = lambda: list(conll.read(tags, MOST))
    asked = compressed.write(root / "q.json", '{"data": []}')
    found["q.json"] = lambda: list(squad_json.read_questions(asked, MOST))

    config = sources.DataConfig(path=str(root / "a.txt"), document="line", valid_fraction=0.3)
    config, kind = dataclasses.replace(config, split="tail"), TokenizerConfig(kind="byte")
    _, (made,) = cache.prepare(config, kind, root / "run", lambda line: None)
    found["cache"] = lambda: shards.open_cache(made, "train")
    found["cache, whole"] = lambda: shards.open_cache(made, "train", verify=True)
    facts = shards.read_manifest(made)["files"]
    found["verification"] = lambda: verified.verify(made, facts, whole=True)
    found["start"] = lambda: cache.prepare(config, kind, root / "run", lambda line: None)
    found["tokenizer"] = lambda: load_tokenizer(root / "run" / "tokenizer")
    hub = directory(root, pipeline())
    found["published tokenizer"] = lambda: load_tokenizer(hub)
    array = np.zeros(2, np.float32)
    tensor_writer.save(root / "tensors", [("a", (2,), array.dtype, lambda: array)])
    found["tensors"] = lambda: Tensors(root / "tensors").read("a")
    digest = files.sha256(root / "a.csv")
    found["file of a checkpoint"] = lambda: verify_files(root, {"a.csv": digest})
    return found


def test_too_few_descriptors_are_no_fault_of_a_file(tmp_path):
    for name, read in readers(tmp_path).items():
        read()  # what is imported late is there
        for count in range(20):
            with descriptors(count):
                try:
                    read()
                except OSError as error:
                    assert error.errno == errno.EMFILE, (name, count, error)
                except Exception as error:
                    pytest.fail(f"{name}, {count} descriptors: {type(error).__name__}: {error}")
                else:
                    break
        else:
            pytest.fail(f"{name} takes more than {count} descriptors")
        assert count, name
