"""Small files that unpack to gigabytes are refused in 400 MB; large files are read in a stream."""

import gzip
import json
import pathlib
import random
import struct

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_runs as tiny
import zstandard
from command_line import CommandLine
from faults import ALL, selection

from flaxlm.data import parquet, tables
from flaxlm.errors import DataError

SCRIPT = str(pathlib.Path(__file__).parent / "peak.py")
MOST = 400 << 20
GIGABYTES = (4 if ALL else 1) << 30  # that files unpack to
UNIT = 1 << 20


def packed(path, head: bytes, unit: bytes, total: int = GIGABYTES) -> pathlib.Path:
    """Write `head`, and `unit` over and over, packed as the name says, without making it all."""
    count = max(1, UNIT // len(unit))
    block = unit * count
    with path.open("wb") as file:
        if path.suffix == ".zst":
            with zstandard.ZstdCompressor(level=1).stream_writer(file) as out:
                out.write(head)
                for _ in range(total // len(block)):
                    out.write(block)
        else:  # a member of the block, over and over: the packed bytes are made once
            file.write(gzip.compress(head, 1) if head else b"")
            member = gzip.compress(block * 16, 9)
            for _ in range(total // len(block) // 16):
                file.write(member)
    return path


# name: (ending, what stands first, what is repeated, reader, what the line says)
ROW = b'{"text": "a b", "label": "x"}\n'
CHAT = b'{"messages": [{"role": "user", "content": "' + b"a" * (1 << 16) + b'"}]}\n'
PACKED = {
    "a line": ("txt", b"", b"a" * 99, "lines", "line 1 is longer than 67,108,864 bytes"),
    "a document of lines": ("txt", b"", b"a b\n", "file", "more than 50 times its size"),
    "a paragraph": ("txt", b"", b"a b\n", "paragraphs", "more than 50 times its size"),
    "a row": ("jsonl", b'{"text": "', b"a" * 99, "rows", "longer than 67,108,864 bytes"),
    "lists": ("jsonl", b'{"text": [', b"[],", "rows", "longer than 67,108,864 bytes"),
    "chats": ("jsonl", b"", CHAT, "records", "more than 50 times its size"),
    "an array of lists": ("json", b"[[", b"[],\n", "rows", "row 1 is not JSON, or too long"),
    "an array of a text": ("json", b'["', b"a" * 99, "rows", "longer than 67,108,864 bytes"),
    "an object": ("json", b'{"data": [', b"{},\n", "questions", "longer than 67,108,864 bytes"),
    "fields": ("csv", b"text,label\n", b",", "rows", "longer than 67,108,864 bytes"),
    "a field": ("csv", b'text,label\n"', b"a\n", "rows", "is no row of a table"),
    "fields of lines": ("csv", b'text,label\n"', b'a\n","', "rows", "is no row of a table"),
    "tabs": ("tsv", b"text\tlabel\n", b"\t", "rows", "longer than 67,108,864 bytes"),
    "a sentence": ("conll", b"", b"a O\n", "conll", "a blank line ends one"),
    "a universal sentence": ("conllu", b"", b"1\ta\n", "conll", "a blank line ends one"),
}


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    return CommandLine(tmp_path_factory.mktemp("bombs"), seconds=300)


def refused(line, code: int, message: str, *arguments: str) -> None:
    """Run a command, or a reader; check its exit code, its line and its memory."""
    place = line.directory / "peak"
    done = line(SCRIPT, str(place), *arguments)
    assert done.code == code and len(done.errors) == 1 and message in done.errors[0], done.err
    assert int(place.read_text()) <= MOST, f"{int(place.read_text()) / 1e6:.0f} MB: {done.err}"


@pytest.mark.parametrize("ending", selection(["zst", "gz"], 1))
@pytest.mark.parametrize("name", selection(list(PACKED), 3))
def test_what_is_packed_is_unpacked_in_bounded_memory(name, ending, tmp_path, line):
    kind, head, unit, reader, message = PACKED[name]
    total = GIGABYTES if ending == "zst" else 1 << 29
    path = packed(tmp_path / f"a.{kind}.{ending}", head, unit, total)
    assert path.stat().st_size < total / 400
    refused(line, 65, message, "read", reader, str(path))


WIDE = {  # characters that make two or four bytes of each other one, or of an escape's
    "four": ("a" * (63 << 20) + "\U0001f600", "as the widest of its"),
    "two": ("€" + "a" * (63 << 20), ""),
    "four of escapes": ("\\u0001" * (10 << 20) + "\U0001f600", "as the widest of its"),
    "an escape of four": ("a" * (63 << 20) + r"\ud83d\ude00", "its values may take"),
}


@pytest.mark.parametrize("name", selection(list(WIDE), 1))
@pytest.mark.parametrize("kind", selection(["jsonl", "json", "csv", "txt"], 1))
def test_one_wide_character_does_not_fill_the_memory(kind, name, tmp_path, line):
    text, message = WIDE[name]
    row = f'{{"text": "{text}"}}\n'
    whole = {"jsonl": row, "json": f"[{row}]", "csv": f"text\n{text}\n", "txt": text}[kind]
    path = tmp_path / f"a.{kind}.gz"
    path.write_bytes(gzip.compress(whole.encode(), 1))
    place = line.directory / "peak"
    done = line(SCRIPT, str(place), "read", "lines" if kind == "txt" else "rows", str(path))
    assert int(place.read_text()) <= MOST, f"{int(place.read_text()) / 1e6:.0f} MB: {done.err}"
    if kind == "csv":
        message = message.replace("its values may take", "is no row of a table") or "is no row"
    elif kind == "txt":
        message = message.replace("its values may take", "")
    elif kind == "json" and name == "two":
        message = "row 1 is not JSON, or too long"
    assert (done.code, message in done.err) == (65 if message else 0, True), done.err


@pytest.mark.parametrize("name", ["a window", "lists in a line", "objects in a config"])
def test_other_files_of_many_bytes(name, tmp_path, line):
    if name == "a window":  # of 2 GB, which a decoder allocates for any frame that asks for it
        text = b"a line\n" * 9
        head = b"\x28\xb5\x2f\xfd\x00" + bytes([(31 - 10) << 3])
        path = tmp_path / "a.txt.zst"
        path.write_bytes(head + (len(text) << 3 | 1).to_bytes(3, "little") + text)
        refused(line, 65, "a window of more than 134,217,728 bytes", "read", "lines", str(path))
    elif name == "lists in a line":
        path = tmp_path / "a.jsonl"
        path.write_text('{"text": [' + "[]," * (20 << 20) + "[]]}")
        refused(line, 65, "line 1 is not JSON: its values may take", "read", "rows", str(path))
    else:
        (tmp_path / "config.json").write_text("[" + "{}," * (15 << 20) + "{}]")
        path = str(tmp_path / "config.json")
        refused(line, 2, "its values may take", "read", "config", path)


def table(path, values, kind=None, **options):
    pq.write_table(pa.table({"text": pa.array(values, kind)}), path, **options)
    return path


def test_texts_that_lists_repeat_are_counted_before_they_are_made(tmp_path, line):
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), ["a" * (1 << 20)])
    path = tmp_path / "a.parquet"
    lists = pa.ListArray.from_arrays(pa.array([0, 3000], pa.int32()), texts)
    pq.write_table(pa.table({"text": lists}), path, store_schema=False)
    assert path.stat().st_size < 100_000
    refused(line, 65, "its lists may repeat a text of a dictionary", "read", "rows", str(path))
    # Words that a page of a dictionary has by the thousand are no such texts.
    rows = [[f"{n * n:x}" for n in range(i, i + 20)] * 5 for i in range(30_000)]
    path = table(tmp_path / "b.parquet", rows)
    assert [row.columns["text"] for row in tables.rows(str(path), 1 << 20)] == rows


@pytest.mark.parametrize("kind", ["compressed", "dictionary", "views"])
def test_a_datasets_directory_is_not_packed_within(kind, tmp_path, line):
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "set")
    values = pa.array(["a" * (300 << 20)])
    if kind == "dictionary":
        values = pa.DictionaryArray.from_arrays(pa.array([0] * 900, pa.int32()), ["a" * UNIT])
    elif kind == "views":
        values = pa.array(["a" * UNIT], pa.string_view())
    rows, (path,) = pa.table({"text": values}), (tmp_path / "set").glob("*.arrow")
    options = pa.ipc.IpcWriteOptions(compression="zstd" if kind == "compressed" else None)
    with (
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_stream(file, rows.schema, options=options) as out,
    ):
        out.write_table(rows)
    message = "is of type string_view" if kind == "views" else "is packed within"
    refused(line, 65, message, "read", "rows", str(tmp_path / "set"))


def lie(path, old: int, new: int) -> None:
    """Write another size into the header of a page, as long as the old one in Thrift's varints."""

    def varint(value):
        value <<= 1
        while value > 127:
            yield value & 127 | 128
            value >>= 7
        yield value

    data, was, now = path.read_bytes(), bytes(varint(old)), bytes(varint(new))
    assert len(was) == len(now) and data.count(b"\x15" + was) >= 1
    path.write_bytes(data.replace(b"\x15" + was, b"\x15" + now))


def test_pages_of_parquet_are_looked_at_before_they_are_unpacked(tmp_path, line):
    plain = dict(compression="zstd", use_dictionary=False, write_statistics=False)
    page = table(tmp_path / "page.parquet", ["a" * (300 << 20)], **plain)
    assert page.stat().st_size < 1 << 20
    refused(line, 65, "row group 1, column 'text': a page unpacks to", "read", "rows", str(page))
    # A dictionary's one long value in every row, which 64 rows at a time would hold as often.
    many = pa.DictionaryArray.from_arrays(pa.array([0] * 40, pa.int32()), ["a" * (20 << 20)])
    path = tmp_path / "many.parquet"
    pq.write_table(pa.table({"text": many}), path)
    place = line.directory / "peak"
    done = line(SCRIPT, str(place), "read", "rows", str(path))
    assert done.code == 0 and int(place.read_text()) < MOST, (done.err, place.read_text())
    lists = [[0] * (5 << 20)]
    path = table(tmp_path / "lists.parquet", lists, pa.list_(pa.int64()), compression="zstd")
    assert path.stat().st_size < 100_000
    refused(line, 65, "5,242,880 values in lists", "read", "rows", str(path))


def test_a_page_that_lies_about_its_size_is_refused(tmp_path):
    plain = dict(compression="zstd", use_dictionary=False, write_statistics=False)
    path = table(tmp_path / "a.parquet", ["a" * 300_000], **plain)
    size = next(parquet._pages(path.open("rb"), 4, 5, "x")).unpacked
    lie(path, size, 900_000)
    with pytest.raises(DataError, match="damaged or not Parquet"):
        list(parquet.batches(str(path), 0, lambda names: names, lambda count: None))
    data = bytearray(path.read_bytes())
    data[4:12] = b"\xff" * 8
    path.write_bytes(data)
    with pytest.raises(DataError, match="the header of a page is damaged"):
        list(parquet.batches(str(path), 0, lambda names: names, lambda count: None))


def test_large_files_are_read_in_a_stream(tmp_path, line):
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=5)) for _ in range(5000)]
    texts = [" ".join(draw.choices(words, k=20)) for _ in range(50_000)]
    place = line.directory / "peak"
    array = tmp_path / "a.json.gz"
    with gzip.open(array, "wt", compresslevel=1) as file:
        file.write("[\n" + ",\n".join(json.dumps({"text": text}) for text in texts * 4) + "]\n")
    groups = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": texts * 4}), groups, row_group_size=20_000)
    for reader, path in (("rows", array), ("rows", groups)):
        done = line(SCRIPT, str(place), "read", reader, str(path))
        assert done.code == 0 and int(place.read_text()) < 80 << 20, (done.err, place.read_text())


def tensors(directory, header: bytes) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def test_headers_of_tensors_are_of_bounded_size(tmp_path, line):
    tensors(tmp_path, b'{"a": [' + b"[]," * (20 << 20) + b"[]]}")
    refused(line, 65, "header is no JSON: its values may take", "read", "tensors", str(tmp_path))
    tensors(tmp_path, b'{"a": "' + "é".encode() * (40 << 20) + b'"}')
    refused(line, 65, "the header is no JSON: it is longer", "read", "tensors", str(tmp_path))


@pytest.mark.skipif(not ALL, reason="18 s, in make faults")
def test_the_verbs_refuse_bombs(tmp_path, line):
    """Each reads another way; the memory counts jax's own."""
    lines = str(packed(tmp_path / "long.txt.gz", b"", b"a" * 99, 1 << 28))
    rows = str(packed(tmp_path / "rows.jsonl.zst", ROW * 8, ROW))
    texts = str(packed(tmp_path / "texts.txt.gz", b"", b"a b\n", 1 << 28))
    model = tiny.QUICK | {"vocab_size": 281}
    made = tiny.recipe("causal", model=model, data={"path": lines})
    (tmp_path / "lm.json").write_text(json.dumps(made))
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text(json.dumps(made))
    task = {"name": "classification"}
    made = tiny.recipe("causal", model=model, data={"path": rows}, task=task,
                       objective=task | {"labels": ("x", "y")})  # fmt: skip
    (tmp_path / "task.json").write_text(json.dumps(made))
    run, long, ratio = (
        f"--workdir={tmp_path / 'run'}",
        "line 1 is longer than",
        "50 times its size",
    )
    refused(line, 65, long, "tokenize", f"--config={tmp_path / 'lm.json'}", run)
    refused(line, 65, ratio, "train", f"--config={tmp_path / 'task.json'}", f"{run}2")
    refused(line, 65, ratio, "generate", f"--workdir={tmp_path / 'none'}", f"--prompts={texts}")
    refused(line, 65, ratio, "embed", f"--input={rows}", f"--output={tmp_path / 'a.npy'}",
            f"--workdir={tmp_path / 'none'}")  # fmt: skip
