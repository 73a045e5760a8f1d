"""Every kind of table gives the same rows; values are what they plainly are, faults are named."""

import datetime
import decimal
import gzip
import json
import subprocess
import uuid
import warnings

import pyarrow
import pyarrow.parquet
import pytest

from flaxlm.data import tables
from flaxlm.data.sources import DataConfig, documents
from flaxlm.errors import ConfigError, DataError
from flaxlm.tasks import TASKS

MOST = 1 << 20
LABELS = ("0", "1")
ROWS = [{"text": "a, \u2028 b", "label": "1"}, {"text": "中文\x0c", "label": "0"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
TSV = "text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in ROWS)
KINDS = {
    "a.jsonl": LINES,
    "a.json": LINES,
    "windows.jsonl": "\ufeff" + LINES.replace("\n", "\r\n"),
    "joined.jsonl": LINES.replace("\n", "\n\n\ufeff"),
    "array.json": json.dumps(ROWS),
    "pretty.json": "\n" + json.dumps(ROWS, indent=2),
    "array.jsonl.gz": "\ufeff" + json.dumps(ROWS, indent=1),
    "a.csv": "text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in ROWS),
    "a.tsv": TSV,
    "windows.tsv": "\ufeff" + TSV.replace("\n", "\r\n"),
    "a.tsv.gz": TSV,
}


def write(path, contents):
    data = contents if isinstance(contents, bytes) else contents.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def parquet(path, columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return str(path)


def read(path, form="auto", **options):
    data = DataConfig(path=str(path), format=form, split="tail", valid_fraction=0.0)
    return TASKS["classification"](**options).examples(data, "train", LABELS)


@pytest.mark.parametrize("name", [*KINDS, "a.parquet", "datasets"])
def test_every_kind_of_table_gives_the_same_rows(tmp_path, name):
    path = tmp_path / name
    if name in KINDS:
        write(path, KINDS[name])
    elif name == "datasets":
        import datasets

        datasets.Dataset.from_list(ROWS).with_format("numpy").save_to_disk(path)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    found = list(tables.rows(str(path), MOST))
    assert [row.columns for row in found] == ROWS
    assert [e["text"] for e in read(path)] == [row["text"] for row in ROWS]
    assert [d.text for d in documents(DataConfig(path=str(path)))] == [r["text"] for r in ROWS]
    by_row = name in ("array.json", "pretty.json", "array.jsonl.gz", "a.parquet", "datasets")
    if by_row:
        assert [row.place for row in found] == [f"{path}, row 1", f"{path}, row 2"]
        assert [e["id"] for e in read(path)] == [f"{name}:1", f"{name}:2"]
    else:
        assert all(row.place == f"{path}, line {row.line}" for row in found)


VALUES = {
    "bytes": ([b"caf\xc3\xa9", b"\xff\xfe", b"a\0"], ["café", b"\xff\xfe", b"a\0"]),
    "date": ([datetime.date(2020, 1, 31)], ["2020-01-31"]),
    "time": ([datetime.time(1, 2, 3)], ["01:02:03"]),
    "timestamp": ([datetime.datetime(2020, 1, 31, 1, 2)], ["2020-01-31T01:02:00"]),
    "duration": ([datetime.timedelta(hours=1)], ["1:00:00"]),
    "decimal": ([decimal.Decimal("1.00"), decimal.Decimal("0.25")], [1, 0.25]),
    "integer": ([3, None], [3, None]),
    "uuid": (pyarrow.array([uuid.UUID(int=1).bytes], pyarrow.uuid()), [str(uuid.UUID(int=1))]),
    "nested": (
        [{"when": datetime.date(2020, 1, 1), "texts": [b"a", None]}],
        [{"when": "2020-01-01", "texts": ["a", None]}],
    ),
    "category": (pyarrow.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
    "late": (
        pyarrow.array([0, 10**10], pyarrow.timestamp("s")),
        ["1970-01-01T00:00:00", "2286-11-20T17:46:40"],
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_is_taken_for_what_it_plainly_is(tmp_path, name):
    values, expected = VALUES[name]
    path = parquet(tmp_path / "a.parquet", {"v": values})
    found = [row.columns["v"] for row in tables.rows(path, MOST)]
    assert found == expected and [type(v) for v in found] == [type(v) for v in expected]


def test_whole_numbers_are_labels_whatever_pandas_made_of_them(tmp_path):
    frame = {"text": ["a", "b"], "label": pyarrow.array([1.0, 0.0])}
    assert [e["label"] for e in read(parquet(tmp_path / "a.parquet", frame))] == [1, 0]
    frame["label"] = pyarrow.array([decimal.Decimal("1"), decimal.Decimal("0")])
    assert [e["label"] for e in read(parquet(tmp_path / "b.parquet", frame))] == [1, 0]


NO_TEXT = {
    "bytes": ([b"good", b"\x89PNG\xff"], "column 'text' holds 5 bytes, not a text"),
    "null": (["good", None], "column 'text' holds null, not a text"),
    "number": ([1.5, 2.5], "column 'text' holds 1.5, not a text"),
    "list": ([[b"\xff"], []], r'column \'text\' holds \["1 bytes"\], not a text'),
    "far": (
        pyarrow.array([0, 10**12], pyarrow.timestamp("s")),
        r"column 'text' holds a value of type timestamp\[ms\] that cannot be read, not a text",
    ),
}


@pytest.mark.parametrize("name", NO_TEXT)
def test_what_is_no_text_is_refused_with_row_column_and_kind(tmp_path, name):
    values, message = NO_TEXT[name]
    number = 1 if name in ("number", "list") else 2
    path = parquet(tmp_path / "a.parquet", {"text": values, "label": ["1", "0"]})
    for reading in (read, lambda path: list(documents(DataConfig(path=path)))):
        with pytest.raises(DataError, match=rf"a\.parquet, row {number}: {message}"):
            reading(path)
    # In a column that nobody reads it does no harm.
    path = parquet(tmp_path / "b.parquet", {"text": ["a", "b"], "label": ["1", "0"], "v": values})
    assert len(read(path)) == 2


GOOD = '{"text": "a", "label": "1"}'
BAD = {
    "comma": (f"{GOOD},\n{GOOD}\n", r"line 1 is not JSON: a comma stands behind its end"),
    "two": (f"{GOOD} {GOOD}\n", r"line 1 is not JSON: '.*' stands behind its end"),
    "closing": (f'{GOOD}\n{{"text": "a", }}', r"line 2 is not JSON: a comma stands before .* \}"),
    "array comma": (f"[\n{GOOD},\n\n{GOOD},\n]", r"line 5 .*a comma stands before the closing \]"),
    "array cut": (f"[\n{GOOD},\n", r"line \d is not JSON: it ends within an object"),
    "array of lists": (f"[{GOOD}, [1]]", r"row 2 is not a JSON object but list; each has to look"),
    "lists": ("[1]\n[2]\n", r"line 2 is not JSON: '\[2\]' stands behind its end"),
    "a list": (f"{GOOD}\n[{GOOD}]\n", r"line 2 is not a JSON object but list"),
    "number": (f"{GOOD}\n5\n", r"line 2 is not a JSON object but int"),
    "pretty": (json.dumps(ROWS[0], indent=1), r"line 1 .*has to be brought onto one \(jq -c"),
    "quotes": ("{'text': 'a'}", r"line 1 is not JSON: Expecting property name.*character 2"),
    "deep": (f'{GOOD}\n{{"text": {"[" * 100_000}', r"line 2 is not JSON: it is nested too deeply"),
    "line feed": ('[{"text": "a\nb"}]', r"line 1 is not JSON: Invalid control character"),
    "halves": ('[{"text": "a", "label": 1\n2}]', r"line 2 is not JSON: Expecting ','"),
    "deep array": ("[" * 100_000, r"line 1 is not JSON: it is nested too deeply"),
    "digits": (f'{GOOD}\n{{"text": {"1" * 5000}}}', r"line 2 is not JSON: Exceeds the limit"),
    "old Mac": (f"{GOOD}\r{GOOD}\r", r"its lines end in a carriage return.*tr '\\r' '\\n'"),
    "surrogate": ('{"text": "a\\ud83d", "label": "1"}', r"line 1: .*'text': character 1 is an unp"),
    "key": ('{"te\\ud83dxt": "a"}', r"line 1: there is no column 'text'.*: te\\ud83dxt"),
    "deep value": (f'{{"text": {"[" * 900}{"]" * 900}}}', r"line 1 .*nested too deeply"),
    "UTF-16": (f"{GOOD}\n".encode("utf-16"), r"begins with the mark of UTF-16.*iconv -f UTF-16 "),
    "UTF-16, no mark": (f"{GOOD}\n".encode("utf-16-le"), r"looks like UTF-16LE"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_fault_of_json_is_named_with_line_or_row(tmp_path, name):
    text, message = BAD[name]
    path = write(tmp_path / "a.json", text)
    for reading in (read, lambda path: list(documents(DataConfig(path=path)))):
        with pytest.raises(DataError, match=message) as caught:
            reading(path)
        assert path in str(caught.value)
        str(caught.value).encode()  # it can be printed


def test_a_key_of_the_config_is_named_where_a_column_is_absent(tmp_path):
    path = write(tmp_path / "a.jsonl", GOOD)
    with pytest.raises(
        DataError, match=r"mean 'text'.*; columns: text, label; set task.text_column to one of them"
    ):
        read(path, text_column="txt")
    with pytest.raises(DataError, match=r"; columns: text, label; set data.field to one of them"):
        list(documents(DataConfig(path=path, field="txt")))


# Delimited tables


def test_a_carriage_return_within_a_field_is_a_character(tmp_path, shared):
    found = read(shared("cases/16-carriage-return-in-a-tsv-field/cr.tsv"), text_column="sentence")
    assert found[-1]["text"] == "a line with a carriage\rreturn inside"
    mac = shared("cases/16-carriage-return-in-a-tsv-field/mac.tsv")
    with pytest.raises(DataError, match=r"mac\.tsv: its lines end in a carriage return"):
        read(mac, text_column="sentence")
    quoted = write(tmp_path / "a.csv", 'text,label\n"a\rb",1\n')
    assert read(quoted)[0]["text"] == "a\rb"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text,label\na\rb,1\n", "line 2 cannot be read .*: a carriage return stands in a field"),
        ("text,label\ra,1\r", "its lines end in a carriage return"),
        ('text,label\na,1\n"a,1\n', "line 3 cannot be read .*: a quotation mark opens a field"),
    ],
)
def test_a_fault_of_csv_is_named_for_the_owner_of_the_file(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "a.csv", text))


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
def test_a_table_without_a_header_has_its_columns_named(tmp_path, name):
    mark = "\t" if name == "a.tsv" else ","
    path = write(tmp_path / name, f"a b{mark}1\nc{mark}0\n")
    found = read(path, columns=("text", "label"))
    assert [(e["text"], e["label"], e["id"]) for e in found] == [
        ("a b", 1, f"{name}:1"),
        ("c", 0, f"{name}:2"),
    ]
    with pytest.raises(DataError, match=r"line 1 has 2 fields, but task.columns names 3 columns"):
        read(path, columns=("id", "text", "label"))
    path = write(tmp_path / name, f"text{mark}label\na{mark}1\n")
    with pytest.raises(DataError, match=r"line 1 names the columns itself; leave task.columns out"):
        read(path, columns=("text", "label"))
    with pytest.raises(DataError, match=r"task.columns names the columns of CSV and TSV"):
        read(write(tmp_path / "a.jsonl", GOOD), columns=("text", "label"))


# What a file is


@pytest.mark.parametrize("form", ["jsonl", "csv", "tsv"])
def test_the_config_says_what_a_text_file_is(tmp_path, form):
    path = write(tmp_path / "a.txt", KINDS[f"a.{form}"])
    with pytest.raises(DataError, match=r"what kind of table is this\? Set data.format to one of"):
        read(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [e["text"] for e in read(path, form)] == [row["text"] for row in ROWS]
    wrong = write(tmp_path / "a.parquet", KINDS[f"a.{form}"])
    with pytest.warns(UserWarning, match=rf"a\.parquet is read as {form}, as data.format says"):
        assert len(read(wrong, form)) == 2


def test_formats_that_a_reader_has_not_are_refused(tmp_path):
    path = write(tmp_path / "a.txt", "a b\n")
    with pytest.raises(ConfigError, match=r"data.format='conll' .*auto, jsonl, csv, tsv, parquet"):
        read(path, "conll")
    with pytest.raises(ConfigError, match=r"data.format='conll' .*text, jsonl"):
        list(documents(DataConfig(path=path, format="conll")))


# The files of real users


def test_values_of_parquet_that_json_has_not(shared):
    folder = "cases/10-parquet-values-that-json-has-not"
    assert read(shared(f"{folder}/binary.parquet"))[0]["text"] == "the soup was warm and kind"
    assert [e["label"] for e in read(shared(f"{folder}/decimal.parquet"))][:2] == [1, 0]
    with pytest.raises(DataError, match=r"date.parquet, row 1: .*'2020-01-01', which is not in"):
        read(shared(f"{folder}/date.parquet"))


def test_arrays_of_users(shared):
    folder = shared("cases/11-json-array-file")
    assert len(read(folder / "array.json")) == 8
    data = DataConfig(path=str(folder / "alpaca.json"), split="whole")
    task = TASKS["instruction"](prompt_column="instruction", response_column="output")
    found = task.examples(data, "test")
    assert (found[0]["text"], found[0]["target"]) == ("Name a colour", "green")
    with pytest.raises(DataError, match=r"trailing\.jsonl, line 1 .*a comma stands behind its end"):
        read(folder / "trailing.jsonl")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("12-lone-surrogate-without-place/surr.jsonl", r"line 9: .*character 13 is an unpaired"),
        (
            "12-lone-surrogate-without-place/embed_odd.jsonl",
            r"line 2: .*character 4 is an unpaired",
        ),
        ("13-deeply-nested-row/deep.jsonl", r"line 9 is not JSON: it is nested too deeply"),
        ("15-utf16-file/utf16.tsv", r"utf16.tsv begins with the mark of UTF-16.*iconv -f UTF-16"),
    ],
)
def test_faults_of_users_are_named(shared, name, message):
    with pytest.raises(DataError, match=message):
        for row in tables.rows(str(shared(f"cases/{name}")), MOST):
            row.string("text")


@pytest.mark.parametrize("strip", [False, True])
def test_utf_16_is_named_whatever_is_stripped(shared, strip):
    path = str(shared("cases/15-utf16-file/utf16.txt"))
    with pytest.raises(DataError, match="begins with the mark of UTF-16") as caught:
        list(documents(DataConfig(path=path, strip_control=strip)))
    command = str(caught.value).split("convert it: ")[1].removesuffix(" > NEW_FILE")
    assert subprocess.run(command, shell=True, capture_output=True).stdout.decode()
