"""safetensors in and out: equal to the format's own library, and nothing in a file is believed."""

import json
import os
import pickle
import random
import struct
import tempfile
import tracemalloc
import weakref

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch

from flaxlm.errors import DataError, FlaxlmError, MissingInput, StorageError, Unsafe
from flaxlm.interop.tensor_writer import save
from flaxlm.interop.tensors import DTYPES, Tensors

RNG = np.random.default_rng(0)


def some():
    """Return a tensor of every dtype, one without elements and one without dimensions."""
    made = {}
    for name, dtype in DTYPES.items():
        values = RNG.integers(0, 2, (3, 5)) if name == "BOOL" else RNG.integers(0, 99, (3, 5))
        made[f"a.{name}"] = values.astype(dtype)
    return made | {"empty": np.zeros((0, 4), np.float32), "one": np.array(3, np.float32)}


def announced(tensors):
    return [(k, v.shape, v.dtype, lambda v=v: v) for k, v in tensors.items()]


def same(found, expected):
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


# --- parity with the format's own library


def test_what_the_library_writes_is_read(tmp_path):
    tensors = {k: v for k, v in some().items() if v.dtype != ml_dtypes.bfloat16}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    ours = Tensors(tmp_path)
    assert ours.infos.keys() == tensors.keys()
    assert ours.nbytes == sum(v.nbytes for v in tensors.values())
    for name, tensor in tensors.items():
        found = ours.read(name)
        same(found, tensor)
        assert found.flags.c_contiguous and found.flags.writeable
    half = torch.arange(6).to(torch.bfloat16).reshape(2, 3)
    safetensors.torch.save_file({"x": half}, tmp_path / "model.safetensors")
    same(Tensors(tmp_path).read("x"), half.float().numpy().astype(ml_dtypes.bfloat16))


def test_what_is_written_is_what_the_library_writes(tmp_path):
    tensors = some()
    (file,) = save(tmp_path / "ours", announced(tensors))
    for name, tensor in safetensors.torch.load_file(file).items():
        same(tensor.view(torch.int16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy(),
             tensors[name].view(np.int16) if name == "a.BF16" else tensors[name])  # fmt: skip
    plain = {k: v for k, v in tensors.items() if v.dtype != ml_dtypes.bfloat16}
    (file,) = save(tmp_path / "plain", announced(plain))
    safetensors.numpy.save_file(plain, tmp_path / "theirs", {"format": "pt"})
    assert file.read_bytes() == (tmp_path / "theirs").read_bytes()


def test_shards_keep_below_the_limit_and_are_found_again(tmp_path):
    tensors = {f"t{n}": np.full(n * 10, n, np.float32) for n in range(1, 8)}
    files = save(tmp_path, announced(tensors), limit=500)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert files[-1].name == "model.safetensors.index.json"
    assert index["metadata"]["total_size"] == sum(v.nbytes for v in tensors.values())
    assert sorted(set(index["weight_map"].values())) == [file.name for file in files[:-1]]
    assert {file.name[-21:] for file in files[:-1]} == {
        f"-of-{len(files) - 1:05}.safetensors" for _ in files
    }
    ours = Tensors(tmp_path)
    for name, tensor in tensors.items():
        same(ours.read(name), tensor)
    for file in files[:-1]:
        held = safetensors.numpy.load_file(file)
        assert sum(v.nbytes for v in held.values()) <= 500 or len(held) == 1


def test_one_tensor_at_a_time_is_alive_while_writing(tmp_path):
    alive, most = weakref.WeakSet(), []

    class Array(np.ndarray):
        __hash__ = object.__hash__

    def make(n):
        array = np.full(1000, n, np.float32).view(Array)
        alive.add(array)
        most.append(len(alive))
        return array

    tensors = [(f"t{n}", (1000,), np.dtype("f4"), lambda n=n: make(n)) for n in range(9)]
    save(tmp_path, tensors)
    assert len(most) == 9 and max(most) <= 2


def test_a_failed_save_leaves_nothing(tmp_path):
    def broken():
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        save(tmp_path, [*announced(some()), ("z", (1,), np.dtype("f4"), broken)])
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="announced as"):
        save(tmp_path, [("z", (2,), np.dtype("f4"), lambda: np.zeros(3, np.float32))])
    with pytest.raises(ValueError, match="complex"):
        save(tmp_path, announced({"z": np.zeros(2, np.complex64)}))
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        save(tmp_path / "file" / "x", announced(some()))


# --- hostile files


def file_of(header, data=b"", length=None):
    """Return the bytes of a file with a header (an object, or the text of one) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape, begin, end, dtype="F32", **more):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]} | more


EXECUTED = os.path.join(tempfile.gettempdir(), f"flaxlm-was-executed-{os.getpid()}")
GOOD = {"x": tensor([2, 3], 0, 24)}
DATA = bytes(24)


class Payload:
    """What a pickle would do when it is loaded."""

    def __reduce__(self):
        return os.system, (f"touch '{EXECUTED}'",)


HOSTILE = {
    "empty": (b"", DataError, "is empty"),
    "seven bytes": (b"1234567", DataError, "cut off"),
    "header longer than the file": (file_of(GOOD, DATA, 10_000), DataError, "cut off"),
    "header of 2**63 bytes": (file_of(GOOD, DATA, 2**63), DataError, "header of 9,223"),
    "header of 10 GB": (file_of(GOOD, DATA, 10**10), DataError, "header of 10,000"),
    "no header": (struct.pack("<Q", 0), DataError, "no JSON object|cut off"),
    "10 GB claimed": (
        file_of({"x": tensor([50_000, 50_000], 0, 10**10)}, bytes(900)), DataError, "cut off",
    ),
    "offsets behind the end": (file_of({"x": tensor([2, 3], 8, 32)}, DATA), DataError, "cut off"),
    "offsets reversed": (file_of({"x": tensor([2, 3], 24, 0)}, DATA), DataError, "begin and end"),
    "offsets negative": (file_of({"x": tensor([2, 3], -24, 0)}, DATA), DataError, "begin and end"),
    "offsets float": (file_of({"x": tensor([2, 3], 0.0, 24.0)}, DATA), DataError, "begin and end"),
    "tensors that overlap": (
        file_of({"x": tensor([4], 0, 16), "y": tensor([4], 8, 24)}, DATA), DataError, "overlaps",
    ),
    "a gap": (file_of({"x": tensor([2], 0, 8), "y": tensor([2], 16, 24)}, DATA),
              DataError, "8 bytes before tensor 'y'"),
    "bytes behind": (file_of(GOOD, DATA + b"12345"), DataError, "last 5 bytes"),
    "another size than the shape's": (file_of({"x": tensor([2, 4], 0, 24)}, DATA), DataError,
                                      "has 32 bytes"),
    "negative dimensions": (file_of({"x": tensor([-2, -3], 0, 24)}, DATA), DataError, "shape"),
    "boolean dimensions": (file_of({"x": tensor([True, 6], 0, 24)}, DATA), DataError, "shape"),
    "float dimensions": (file_of({"x": tensor([2.0, 3], 0, 24)}, DATA), DataError, "shape"),
    "a shape that overflows": (file_of({"x": tensor([2**62, 2**62, 0], 0, 0)}), DataError,
                               "too big"),
    "100 dimensions": (file_of({"x": tensor([1] * 100, 0, 4)}, bytes(4)), DataError, "up to 64"),
    "an unknown dtype": (file_of({"x": tensor([6], 0, 24, "F33")}, DATA), DataError, "F33"),
    "a dtype that is no string": (file_of({"x": tensor([6], 0, 24, [1])}, DATA), DataError,
                                  "dtype"),
    "a key too many": (file_of({"x": tensor([2, 3], 0, 24, z=1)}, DATA), DataError, "object of"),
    "a key too few": (file_of({"x": {"dtype": "F32"}}, DATA), DataError, "object of"),
    "a name twice": (
        file_of(b'{"x":%s,"x":%s}' % ((json.dumps(GOOD["x"]).encode(),) * 2), DATA), DataError,
        "'x' stands twice",
    ),
    "no UTF-8": (file_of(b'{"\xff": 1}'), DataError, "not UTF-8"),
    "half a surrogate pair": (file_of(b'{"\\ud800": 1}'), DataError, "no JSON"),
    "NaN for a number": (file_of(b'{"x": NaN}'), DataError, "no JSON"),
    "no JSON": (file_of(b'{"x": '), DataError, "no JSON"),
    "nested 100,000 times": (file_of(b'{"x": ' + b"[" * 100_000), DataError, "nested|JSON"),
    "a list": (file_of(b"[1, 2]"), DataError, "no JSON object"),
    "metadata of numbers": (file_of(GOOD | {"__metadata__": {"a": 1}}, DATA), DataError,
                            "__metadata__"),
    "a pickle": (pickle.dumps(Payload()), Unsafe, "pickle.*save_pretrained"),
    "a pickle of protocol 2": (pickle.dumps(Payload(), 2), Unsafe, "pickle.*not loaded"),
    "a zip of torch": (b"PK\x03\x04" + bytes(100), Unsafe, "zip archive.*not loaded"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
                             DataError, "git lfs pull"),
    "a web page": (b"<!DOCTYPE html><html>not found</html>", DataError, "no safetensors file"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(name, tmp_path):
    content, error, message = HOSTILE[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        Tensors(tmp_path)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text and len(text) < 800 + 2 * len(str(path))
    assert not os.path.exists(EXECUTED)


def test_what_a_file_claims_takes_no_memory(tmp_path):
    path = tmp_path / "model.safetensors"
    tracemalloc.start()
    for name in ("10 GB claimed", "header of 10 GB", "a shape that overflows"):
        path.write_bytes(HOSTILE[name][0])
        with pytest.raises(DataError):
            Tensors(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    whole = file_of(GOOD, DATA)
    for size in range(len(whole)):
        (tmp_path / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(DataError):
            Tensors(tmp_path)


def test_mutated_files_are_read_only_if_the_library_reads_them_alike(tmp_path):
    whole = file_of({"x": tensor([2, 3], 0, 24), "y": tensor([4], 24, 28, "U8")}, bytes(range(28)))
    rng, path, read = random.Random(0), tmp_path / "model.safetensors", 0
    for _ in range(3000):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            position = rng.randrange(len(content))
            content[position] = rng.choice([rng.randrange(256), *b'0123456789[]{},:"- '])
        path.write_bytes(content)
        try:
            ours = Tensors(tmp_path)
            found = {name: ours.read(name) for name in ours.infos}
        except FlaxlmError:
            continue
        read += 1
        if any(a.dtype == ml_dtypes.bfloat16 for a in found.values()):
            continue
        theirs = safetensors.numpy.load_file(path)
        assert theirs.keys() == found.keys()
        for name, array in theirs.items():
            same(found[name], array)
    assert 100 < read < 2900


# --- hostile directories


def indexed(directory, places, files=("a.safetensors",)):
    for name in files:
        (directory / name).write_bytes(file_of(GOOD, DATA))
    text = places if isinstance(places, str) else json.dumps({"weight_map": places})
    (directory / "model.safetensors.index.json").write_text(text)


@pytest.mark.parametrize(
    "places, error, message",
    [
        ({"x": "../a.safetensors"}, Unsafe, "plain names"),
        ({"x": "/etc/passwd"}, Unsafe, "plain names"),
        ({"x": "..\\a.safetensors"}, Unsafe, "plain names"),
        ({"x": "C:a.safetensors"}, Unsafe, "plain names"),
        ({"x": "a\n.safetensors"}, Unsafe, "plain names"),
        ({"x": "pytorch_model.bin"}, Unsafe, "pickles are not loaded"),
        ({"x": 3}, DataError, "no file name"),
        ({"x": ""}, DataError, "no file name"),
        ({"x": "b.safetensors"}, MissingInput, "b.safetensors, which model.safetensors.index"),
        ({"x": "a.safetensors", "y": "a.safetensors"}, DataError, "lacks tensor 'y'"),
        ({}, MissingInput, ""),
        ('{"weight_map": [1]}', DataError, "no object weight_map"),
        ('{"metadata": {}}', DataError, "no object weight_map"),
        ("{", DataError, "no JSON"),
    ],
)
def test_a_hostile_index_is_refused(places, error, message, tmp_path):
    indexed(tmp_path, places)
    if places == {}:
        assert not Tensors(tmp_path).infos
        return
    with pytest.raises(error, match=message):
        Tensors(tmp_path)


def test_a_shard_with_more_than_the_index_says_is_refused(tmp_path):
    indexed(tmp_path, {"x": "a.safetensors"}, ["a.safetensors", "b.safetensors"])
    both = {"x": tensor([2], 0, 8), "y": tensor([4], 8, 24)}
    (tmp_path / "a.safetensors").write_bytes(file_of(both, DATA))
    with pytest.raises(DataError, match=r"holds tensor 'y', which .* does not name there"):
        Tensors(tmp_path)


def test_links_stay_inside(tmp_path):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir(), inside.mkdir()
    (outside / "secret").write_bytes(file_of(GOOD, DATA))
    link = inside / "model.safetensors"
    link.symlink_to(outside / "secret")
    with pytest.raises(Unsafe, match=r"is a link to .*outside"):
        Tensors(inside)
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(MissingInput, match="cannot read"):
        Tensors(inside)
    link.unlink()
    (inside / "real").write_bytes(file_of(GOOD, DATA))
    link.symlink_to("real")
    assert Tensors(inside).read("x").shape == (2, 3)
    # The hub's cache: what a snapshot links to lies beside the snapshots.
    cache = tmp_path / "models--owner--name"
    (cache / "blobs").mkdir(parents=True), (cache / "snapshots" / "1").mkdir(parents=True)
    (cache / "blobs" / "hash").write_bytes(file_of(GOOD, DATA))
    (cache / "snapshots" / "1" / "model.safetensors").symlink_to("../../blobs/hash")
    assert Tensors(cache / "snapshots" / "1").read("x").shape == (2, 3)


def test_only_regular_files_are_opened(tmp_path):
    path = tmp_path / "model.safetensors"
    os.mkfifo(path)  # reading it would wait for ever
    with pytest.raises(DataError, match="no regular file"):
        Tensors(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="no regular file"):
        Tensors(tmp_path)


def test_pickles_are_refused_saying_how_to_convert_them(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(Unsafe, match=r"pytorch_model\.bin.*execute code.*save_pretrained"):
        Tensors(tmp_path)
    assert not os.path.exists(EXECUTED)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(MissingInput, match=r"looked for model\.safetensors"):
        Tensors(tmp_path)
    with pytest.raises(MissingInput, match="none"):
        Tensors(tmp_path / "none")
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(file_of(GOOD, DATA))
    with pytest.raises(MissingInput, match=r"no model\.safetensors\.index\.json"):
        Tensors(tmp_path)


def test_a_file_that_changes_under_way_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of(GOOD, DATA))
    ours = Tensors(tmp_path)
    path.write_bytes(file_of(GOOD, DATA[:-1]))
    with pytest.raises(DataError, match="changed after it was opened"):
        ours.read("x")
    path.unlink()
    with pytest.raises(MissingInput, match="cannot read"):
        ours.read("x")


def test_a_bool_that_is_neither_is_refused(tmp_path):
    header = {"x": tensor([3], 0, 3, "BOOL")}
    (tmp_path / "model.safetensors").write_bytes(file_of(header, b"\0\1\2"))
    with pytest.raises(DataError, match="'x' is BOOL and holds 2"):
        Tensors(tmp_path).read("x")
