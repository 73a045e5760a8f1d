"""Reading, cleaning and splitting text; every refusal names the file and the place."""

import gzip
import json
import os
import re
import subprocess
import sys

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxlm.data.encode import split_sentences
from flaxlm.data.sources import (
    DataConfig,
    Document,
    Source,
    _texts,
    documents,
    sources,
    stdlib_files,
    stdlib_root,
)
from flaxlm.data.split import Cleaner, split_by_hash, split_documents
from flaxlm.errors import ConfigError, DataError, FlaxlmError, MissingInput

TEXTS = ["First\nline é.\n", "中文 text", "  spaces \r\n kept\t", "x" * 3000, "\u2028 odd \u0085"]


def texts_of(path, **fields):
    return [d.text for d in documents(DataConfig(path=str(path), **fields))]


def by_split(config, cleaner=None):
    found = {}
    for split, document in split_documents(config, cleaner):
        found.setdefault(split, []).append(document.text)
    return found


def write(path, data):
    data = data if isinstance(data, bytes) else data.encode()
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":  # two frames, as `zstd` writes when files are joined
        compress = zstandard.ZstdCompressor().compress
        data = compress(data[: len(data) // 2]) + compress(data[len(data) // 2 :])
    path.write_bytes(data)
    return path


@pytest.fixture
def records():
    return "".join(json.dumps({"id": i, "body": t}) + "\n" for i, t in enumerate(TEXTS))


@pytest.mark.parametrize("end", ["", ".gz", ".zst"])
def test_every_container_gives_the_same_documents(tmp_path, records, end):
    assert texts_of(write(tmp_path / f"a.jsonl{end}", records), field="body") == TEXTS
    whole = "".join(TEXTS)
    path = write(tmp_path / f"b.txt{end}", whole)
    assert texts_of(path) == [whole]
    assert texts_of(path, document="line") == [line.rstrip("\r") for line in whole.split("\n")]


def test_tables_give_the_same_documents(tmp_path):
    import datasets
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"id": list(range(len(TEXTS))), "body": TEXTS})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert texts_of(tmp_path / "a.parquet", field="body") == TEXTS
    data = datasets.Dataset.from_dict({"id": list(range(len(TEXTS))), "body": TEXTS})
    data.select([3, 1, 2, 0, 4]).save_to_disk(tmp_path / "saved")
    assert texts_of(tmp_path / "saved", field="body") == [TEXTS[i] for i in (3, 1, 2, 0, 4)]
    datasets.DatasetDict(train=data).save_to_disk(tmp_path / "dict")
    with pytest.raises(ConfigError, match="dict/train"):
        texts_of(tmp_path / "dict")
    assert texts_of(tmp_path / "dict" / "train", field="body") == TEXTS


def test_paragraphs_and_lines(tmp_path):
    path = write(tmp_path / "a.txt", "\ufeffone\ntwo\n\n \n\nthree\n\n\nfour")
    assert texts_of(path, document="paragraph") == ["one\ntwo", "three", "four"]
    found = list(documents(DataConfig(path=str(path), document="paragraph")))
    assert [d.id for d in found] == [f"{path}:{n}" for n in (1, 6, 9)]
    assert by_split(DataConfig(path=str(path), document="line", valid_fraction=0)) == {
        "train": ["one", "two", "three", "four"]
    }


def test_globs_folders_and_lists(tmp_path):
    for name in ("b/x.txt", "a.txt", "b/y.jsonl", "b/z.bin", "c.txt.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, '{"text": "j"}' if name.endswith("jsonl") else name)
    folder = str(tmp_path)
    assert texts_of(tmp_path) == ["a.txt", "b/x.txt", "j", "c.txt.gz"]
    assert texts_of(tmp_path, exclude=("b/*",)) == ["a.txt", "c.txt.gz"]
    assert texts_of(f"{folder}/**/*.txt") == ["a.txt", "b/x.txt"]
    both = DataConfig(path=(f"{folder}/b/x.txt", f"{folder}/a.txt"))
    assert [d.text for d in documents(both)] == ["b/x.txt", "a.txt"]
    weighted = DataConfig(path=both.path, weights=(1, 2))
    assert [c.path for c in weighted.corpora()] == list(both.path)


def test_stdlib_is_source_without_tests():
    names = [p.relative_to(stdlib_root()).as_posix() for p in stdlib_files()]
    assert names == sorted(names) and len(names) > 300
    assert {"json/decoder.py", "textwrap.py"} <= set(names)
    assert not [n for n in names if re.search(r"(^|/)(tests?|site-packages)/|_sysconfigdata", n)]
    assert [p.name for p in stdlib_files(("json/*",), ("*/tool.py",))] == [
        *("__init__.py", "decoder.py", "encoder.py", "scanner.py")
    ]
    config = DataConfig(include=("json/*",))
    assert [d.text for d in documents(config)] == [
        p.read_bytes().decode() for p in stdlib_files(("json/*",))
    ]


# Splits


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(
    st.lists(st.text("abc é", min_size=1, max_size=9), min_size=1, max_size=6),
    st.sampled_from([(0.1, 0.0), (0.25, 0.5), (0.3, 0.0), (0.0, 0.5)]),
)
def test_tail_split_is_a_slice_of_the_characters(lines, shares):
    from flaxlm.data.split import _cut

    valid, test = shares
    config = DataConfig(split="tail", valid_fraction=valid, test_fraction=test)
    whole = "".join(lines)
    held = [Document(str(i), text) for i, text in enumerate(lines)]
    parts = {"train": "", "valid": "", "test": ""}
    for split, document in _cut(iter(held), len(whole), config):
        parts[split] += document.text
        assert document.text
    a, b = int(len(whole) * (1 - (valid + test))), int(len(whole) * (1 - test))
    assert list(parts.values()) == [whole[:a], whole[a:b], whole[b:]]


def test_tail_split_of_shakespeare(shared):
    path = shared("data/tinyshakespeare/input.txt")
    text = path.read_text()
    config = DataConfig(path=str(path), split="tail", valid_fraction=0.1)
    border = int(0.9 * len(text))
    assert by_split(config) == {"train": [text[:border]], "valid": [text[border:]]}


def test_hash_split_follows_the_text_alone(tmp_path):
    texts = [f"document {i}" for i in range(4000)]
    a = write(tmp_path / "a.txt", "\n".join(texts))
    b = write(tmp_path / "b.txt", "\n".join(texts[::-1] + texts))
    fields = {"document": "line", "valid_fraction": 0.1, "test_fraction": 0.2}
    config = DataConfig(path=str(a), **fields)
    one, two = by_split(config), by_split(DataConfig(path=str(b), **fields))
    for split, share in (("train", 0.7), ("valid", 0.1), ("test", 0.2)):
        assert set(one[split]) == set(two[split])
        assert abs(len(one[split]) / 4000 - share) < 0.03
        assert all(split_by_hash(text, config) == split for text in one[split])


def test_file_split_and_duplicates_leave_train(tmp_path):
    train, valid = write(tmp_path / "t.txt", "a\nb\nc\na"), write(tmp_path / "v.txt", "b\nd\nd")
    config = DataConfig(path=str(train), split="file", valid_path=str(valid), document="line")
    assert by_split(config) == {"train": ["a", "b", "c", "a"], "valid": ["b", "d", "d"]}
    cleaner = Cleaner(config := DataConfig(**(vars(config) | {"dedup": True})))
    assert by_split(config, cleaner) == {"train": ["a", "c"], "valid": ["b", "d"]}
    assert cleaner.dropped["duplicate"] == 3


# Cleaning


def test_each_cleaning_option():
    def cleaned(text, **fields):
        return Cleaner(DataConfig(**fields))(text)

    raw = "e\u0301\x00a\x1b\x85b\tc\r\n"
    assert cleaned(raw) == raw
    assert cleaned(raw, nfc=True) == "é\x00a\x1b\x85b\tc\r\n"
    assert cleaned(raw, strip_control=True) == "e\u0301ab\tc\r\n"
    assert cleaned("abc", min_chars=3) == "abc" and cleaned("ab", min_chars=3) is None
    assert cleaned(" \n") is None
    cleaner = Cleaner(DataConfig(dedup=True))
    assert [cleaner(t) for t in ("a", "b", "a", "A")] == ["a", "b", None, "A"]
    assert cleaner.dropped == {"duplicate": 1}


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(st.text(alphabet='aB .?!\n\r\t"”。 M', max_size=40))
def test_sentences_join_to_the_document(text):
    found = split_sentences(text)
    assert "".join(found) == text and all(found)
    assert not found or text.isspace() or all(s.strip() for s in found)


def test_sentences_are_sentences():
    text = (
        'He said "Mr. Smith came." She left! why not? No.\n\nNew\nline 3.5 e.g. two. 你好。再见！好'
    )
    assert [s.strip() for s in split_sentences(text)] == [
        'He said "Mr. Smith came."',
        "She left! why not?",
        "No.",
        "New\nline 3.5 e.g. two.",
        *("你好。", "再见！", "好"),
    ]


# Bad input: one line, the exit code, the file and the place

LONG = b'{"text": "' + b"a" * 100_000_000 + b'"}\n'
BAD = {
    "invalid UTF-8": ("a.txt", b"ok\n\xc3\xa9 \xff\n", {}, DataError, r"a\.txt, byte 6 \(line 2\)"),
    "UTF-8 in gz": ("a.txt.gz", b"ok\n\xff\n", {}, DataError, r"byte 3 \(line 2\) is not UTF-8"),
    "UTF-8 in jsonl": ("a.jsonl", b'{"text": "\xff"}', {}, DataError, r"jsonl, byte 10 \(line 1"),
    "NUL": ("a.txt", b"ab\nc\0d", {}, DataError, r"a\.txt, byte 4 \(line 2\) is NUL"),
    "NUL in jsonl": ("a.jsonl", b'{"text": "a\\u0000"}', {}, DataError, r"line 1: character 1"),
    "surrogate": ("a.jsonl", b'{"text": "a\\ud800"}', {}, DataError, r"line 1: .*character 1 is"),
    "no field": ("a.jsonl", b'{"text": "a"}\n{"body": 1, "n": 2}', {}, DataError,
                 r"line 2: there is no column 'text'; columns: body, n; set data.field to one"),
    "not text": ("a.jsonl", b'{"text": 5}', {}, DataError, r"line 1: .*'text' holds 5, not a text"),
    "null": ("a.jsonl", b'{"text": null}', {}, DataError, r"line 1: .*holds null"),
    "not an object": ("a.jsonl", b"[1]", {}, DataError, r"row 1 is not a JSON object but int"),
    "not JSON": ("a.jsonl", b'{"text": "a"}\n\n{"text": \n', {}, DataError, r"line 3 is not JSON"),
    "deep JSON": ("a.jsonl", b"[" * 100_000, {}, DataError, r"line 1 is not JSON: it is nested"),
    "long line": ("a.jsonl", LONG, {}, DataError, r"line 1 is longer than 67,108,864 bytes"),
    "long text": ("a.txt", LONG, {}, DataError, r"line 1 is longer than .*max_line_bytes"),
    "not gzip": ("a.txt.gz", None, {}, DataError, r"a\.txt\.gz is damaged or not gzip"),
    "not zstd": ("a.txt.zst", None, {}, DataError, r"a\.txt\.zst is damaged or not zstandard"),
    "not parquet": ("a.parquet", b"text", {}, DataError, r"a\.parquet is damaged or not Parquet"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(tmp_path, case):
    name, data, fields, error, match = BAD[case]
    path = tmp_path / name
    path.write_bytes(b"no archive at all") if data is None else write(path, data)
    with pytest.raises(error, match=match) as raised:
        list(documents(DataConfig(path=str(path), **fields)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("end", [".gz", ".zst"])
def test_cut_off_archive_is_named(tmp_path, end):
    path = tmp_path / f"a.txt{end}"
    data = os.urandom(50_000).hex().encode()
    path.write_bytes(gzip.compress(data) if end == ".gz" else zstandard.compress(data))
    path.write_bytes(path.read_bytes()[:-20_000])
    with pytest.raises(DataError, match=r"cut off|damaged"):
        texts_of(path)


def test_missing_input_is_named(tmp_path):
    for path in ("absent.txt", "absent/*.txt", "absent"):
        with pytest.raises(MissingInput, match=re.escape(f"{tmp_path}/{path} does not exist")):
            sources(DataConfig(path=f"{tmp_path}/{path}"))
    with pytest.raises(MissingInput, match="no file with a known ending"):
        sources(DataConfig(path=str(tmp_path)))
    with pytest.raises(MissingInput, match="leave no file of stdlib"):
        sources(DataConfig(include=("nothing/*",)))
    with pytest.raises(MissingInput, match=r"gone\.txt does not exist"):
        list(_texts(Source(str(tmp_path / "gone.txt"), "text", "file"), DataConfig(), None))
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"a": ["x"], "b": ["y"]}), tmp_path / "a.parquet")
    with pytest.raises(
        DataError, match=r"row 1: there is no column 'text'; columns: a, b; set data.field"
    ):
        texts_of(tmp_path / "a.parquet")


def test_nul_is_dropped_where_asked(tmp_path):
    path = write(tmp_path / "a.txt", b"a\0b")
    assert by_split(DataConfig(path=str(path), strip_control=True, valid_fraction=0)) == {
        "train": ["ab"]
    }


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"format": "jsnl"}, "did you mean 'jsonl'"),
        ({"document": "page"}, "paragraph"),
        ({"split": "random"}, "tail"),
        ({"path": ""}, "path is empty"),
        ({"weights": (1, 2)}, "one positive number for each of several paths"),
        ({"valid_fraction": 0.6, "test_fraction": 0.4}, "leave something"),
        ({"split": "file"}, "needs data.valid_path"),
        ({"valid_path": "x"}, "need data.split='file'"),
        ({"workers": -1}, "workers"),
        ({"max_line_bytes": 0}, "max_line_bytes"),
    ],
)
def test_config_is_checked(fields, match):
    with pytest.raises(ConfigError, match=match):
        DataConfig(**fields)


def test_memory_stays_small(tmp_path):
    """200 MB of lines are read in well under their size."""
    path = tmp_path / "a.txt.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(b"some words in a line\n" * 10_000_000))
    code = (
        "import resource; from flaxlm.data.sources import *;"
        f"c = DataConfig(path={str(path)!r}, document='line');"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "import itertools; n = sum(1 for _ in itertools.islice(documents(c), 300_000));"
        "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    env = os.environ | {"PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    count, kilobytes = map(int, done.stdout.split())
    assert count == 300_000 and kilobytes < 64_000, done.stderr


def test_errors_carry_exit_codes():
    assert (ConfigError.exit_code, DataError.exit_code, MissingInput.exit_code) == (2, 65, 66)
    assert issubclass(DataError, FlaxlmError)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    for path in (str(tmp_path / "a.txt"), f"{tmp_path}/*.txt", str(tmp_path / "a.txt") + "*"):
        with pytest.raises(DataError, match=r"a\.txt is a pipe or a device"):
            sources(DataConfig(path=path))
