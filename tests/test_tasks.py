"""Examples come from the rows they should, no text is on two sides, and bad rows are named."""

import ast
import gzip
import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from flaxlm.data.sources import DataConfig, stdlib_root
from flaxlm.data.split import split_documents
from flaxlm.errors import ConfigError, DataError, MissingInput
from flaxlm.tasks import TASKS
from flaxlm.tasks.stdlib import documented, package, summary
from flaxlm.tasks.tagging import Tagging
from flaxlm.tasks.task import SPLITS, LabelTask, values_of

LABELS = ("neg", "pos")
BIO = ("O", "B-LOC", "I-LOC")
PACKAGES = ("asyncio", "email", "importlib", "multiprocessing", "tkinter", "unittest", "xml")
STDLIB = DataConfig(valid_fraction=0.05, test_fraction=0.25)
ROWS = [{"text": f'text {i}, said "so"\tand', "label": LABELS[i % 2]} for i in range(400)]
ROWS[3]["text"] = "two\nlines"


def write(path, rows, columns=("text", "label")):
    """Write rows as the ending asks, tables by pandas' rules written out by hand."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
    elif name.endswith(".csv"):
        quoted = [['"' + str(row[c]).replace('"', '""') + '"' for c in columns] for row in rows]
        text = "\ufeff" + "".join(",".join(line) + "\r\n" for line in [columns, *quoted])
    else:
        plain = [
            [str(row[c]).replace("\t", " ").replace("\n", " ") for c in columns] for row in rows
        ]
        text = "".join("\t".join(line) + "\n" for line in [columns, *plain])
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.csv.gz", "a.jsonl.gz"])
def test_rows_of_every_kind_of_file_become_the_same_examples(tmp_path, name):
    data = DataConfig(path=str(write(tmp_path / name, ROWS)), valid_fraction=0.2, split="tail")
    found = TASKS["classification"]().examples(data, "train", LABELS)
    assert len(found) == 320
    whole = ".tsv" not in name
    expected = ROWS[:320] if whole else [
        row | {"text": row["text"].replace("\t", " ").replace("\n", " ")} for row in ROWS[:320]
    ]  # fmt: skip
    assert [e["text"] for e in found] == [row["text"] for row in expected]
    assert [e["label"] for e in found] == [i % 2 for i in range(320)]
    first = 1 if ".jsonl" in name else 2
    assert found[0]["id"] == f"{name}:{first}"
    # A field with a newline takes two lines of a CSV, and ids go on counting lines.
    assert found[5]["id"] == f"{name}:{first + 5 + ('.csv' in name)}"


@pytest.mark.parametrize("split", ["hash", "tail"])
def test_one_file_is_parted_into_disjoint_splits_that_are_all_of_it(tmp_path, split):
    rows = [*ROWS, *ROWS[:50]]
    data = DataConfig(
        path=str(write(tmp_path / "a.jsonl", rows)),
        split=split,
        valid_fraction=0.2,
        test_fraction=0.3,
    )
    parts = {s: TASKS["classification"]().examples(data, s, LABELS) for s in SPLITS}
    ids = [e["id"] for part in parts.values() for e in part]
    assert len(ids) == len(set(ids)) == 450
    assert 0.12 < len(parts["valid"]) / 450 < 0.28 and 0.22 < len(parts["test"]) / 450 < 0.38
    if split == "hash":  # equal texts stay together
        texts = [{e["text"] for e in part} for part in parts.values()]
        assert len(set().union(*texts)) == sum(map(len, texts)) == 400


def test_splits_by_file_pairs_and_numbered_labels(tmp_path):
    rows = [{"a": f"{i}?", "b": f"{i}!", "y": i % 2 == 0} for i in range(6)]
    paths = [
        str(write(tmp_path / f"{s}.jsonl", rows[n : n + 2]))
        for s, n in zip("abc", (0, 2, 4), strict=True)
    ]
    data = DataConfig(path=paths[0], split="file", valid_path=paths[1], test_path=paths[2])
    task = TASKS["classification"](text_column="a", pair_column="b", label_column="y")
    for n, split in enumerate(SPLITS):
        found = task.examples(data, split, ("false", "true"))
        assert [(e["text"], e["text_pair"], e["label"]) for e in found] == [
            (f"{2 * n}?", f"{2 * n}!", 1),
            (f"{2 * n + 1}?", f"{2 * n + 1}!", 0),
        ]


def test_text_to_text_takes_its_columns_and_prefix(tmp_path):
    rows = [{"input": f"in {i}", "target": f"out {i}"} for i in range(9)]
    path = write(tmp_path / "a.csv", rows, ("input", "target"))
    data = DataConfig(path=str(path), split="tail", valid_fraction=0.34)
    found = TASKS["text_to_text"](prefix="do: ").examples(data, "valid")
    assert [(e["text"], e["target"]) for e in found] == [
        (f"do: in {i}", f"out {i}") for i in range(5, 9)
    ]


GOOD = '{"text": "a", "label": "pos"}\n'
BAD = {
    "column": (GOOD + '{"txt": "b", "label": "pos"}', r"line 2.*no column 'text'.*'txt'.*label"),
    "label": (GOOD + '{"text": "b", "label": "poz"}', r"'poz'.*mean 'pos'.*valid: neg, pos"),
    "no label": ('{"text": "b"}', r"line 1: there is no column 'label'.*columns: text"),
    "empty": (GOOD * 2 + '{"text": " \\n", "label": "pos"}', r"line 3: column 'text' is empty"),
    "empty label": ('{"text": "b", "label": ""}', r"line 1: column 'label' is empty"),
    "null": ('{"text": null, "label": "pos"}', r"line 1: column 'text' holds null, not a text"),
    "json": (GOOD + "{oops}", r"line 2 is not JSON"),
    "list": ("[1, 2]", r"row 1 is not a JSON object but int"),
    "utf-8": (GOOD.encode() + b'{"text": "\xff"}', r"byte 40 \(line 2\) is not UTF-8"),
    "no rows": ("\n\n", r"the train split is empty.*0 rows"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_refused_with_file_line_and_column(tmp_path, case):
    text, message = BAD[case]
    path = tmp_path / "bad.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    data = DataConfig(path=str(path), split="tail", valid_fraction=0.0)
    with pytest.raises(DataError, match=message) as caught:
        TASKS["classification"]().examples(data, "train", LABELS)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "text,label\na,pos,more\n", r"line 2 has 3 fields.*2 columns: text, label"),
        ("a.csv", 'text,label\n"a,pos\n', r"line 2 cannot be read as a table"),
        ("a.csv", "text,text\na,pos\n", r"line 1: the header must name each column once"),
        (
            "a.tsv",
            "text,label\na,pos\n",
            r"line 2: there is no column 'text'.*columns: text,label",
        ),
        ("a.txt", "a pos\n", r"a.txt: what kind of table.*\.jsonl, .*\.csv, \.tsv"),
        ("a.jsonl.gz", GOOD, r"a.jsonl.gz is damaged or not gzip"),
    ],
)
def test_a_bad_table_is_refused_with_file_and_line(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    data = DataConfig(path=str(path), split="tail", valid_fraction=0.0)
    with pytest.raises(DataError, match=message):
        TASKS["classification"]().examples(data, "train", LABELS)


def test_what_the_config_gets_wrong_is_refused(tmp_path):
    task = TASKS["classification"]()
    data = DataConfig(path=str(write(tmp_path / "a.jsonl", ROWS)), valid_fraction=0.0)
    with pytest.raises(DataError, match=r"no valid split, data.valid_fraction is 0"):
        task.examples(data, "valid", LABELS)
    with pytest.raises(ConfigError, match="split='dev'"):
        task.examples(data, "dev", LABELS)
    for labels in ((), ("one",), ("pos", "pos")):
        with pytest.raises(ConfigError, match="at least two labels"):
            task.examples(data, "train", labels)
    with pytest.raises(MissingInput, match="absent"):
        task.examples(DataConfig(path=str(tmp_path / "absent.csv")), "train", LABELS)
    with pytest.raises(ConfigError, match="corpus is the training text"):
        TASKS["text"]().examples(data, "train")


SOURCE = '''"""Module text."""
import functools

class Shape:
    "A shape."

    @functools.cache
    def area(self, scale=1):
        """Return the area.  It is in

        square metres. Not here.
        """
        # in “metres”
        return self.side ** 2 * scale

    def empty(self):
        """Do nothing at all."""

    async def one(self): "Say one thing. And more"; return 1

def plain(x):
    return x
'''


def test_code_is_the_function_without_its_docstring():
    found = documented(SOURCE, "pkg/mod.py")
    assert [(d.line, d.docstring.split()[0]) for d in found] == [
        (1, "Module"), (4, "A"), (8, "Return"), (16, "Do"), (19, "Say")
    ]  # fmt: skip
    assert found[2].code == (
        "@functools.cache\ndef area(self, scale=1):\n    # in “metres”\n"
        "    return self.side ** 2 * scale"
    )
    assert [d.code for d in (found[0], found[1], found[3])] == [""] * 3
    assert found[4].code == "async def one(self): return 1"
    assert [summary(d.docstring) for d in found[2:]] == [
        "Return the area.", "Do nothing at all.", "Say one thing."
    ]  # fmt: skip
    assert package("pkg/mod.py") == "pkg" and package("mod.py") == "mod"
    assert documented("def broken(:", "x.py") == []


@pytest.fixture(scope="module")
def stdlib():
    """Return {task: {split: examples}} and the corpus's {split: {file: text}}."""
    tasks = {
        name: {split: TASKS[name]().examples(STDLIB, split, PACKAGES) for split in SPLITS}
        for name in ("stdlib_package", "stdlib_summary")
    }
    files = {split: {} for split in SPLITS}
    for split, document in split_documents(STDLIB):
        files[split][document.id.removeprefix(f"{stdlib_root()}/")] = document.text
    trained = {" ".join(docstring.split()) for docstring in docstrings(files["train"])}
    return tasks, files, trained


@pytest.mark.parametrize("name", ["stdlib_package", "stdlib_summary"])
def test_no_test_example_stands_in_what_was_trained_on(stdlib, name):
    tasks, files, trained = stdlib
    assert len(trained) > 2000
    for split in SPLITS:
        for example in tasks[name][split]:
            assert example["id"].rsplit(":", 1)[0] in files[split]
    texts = [{e["text"] for e in tasks[name][split]} for split in SPLITS]
    assert len(set().union(*texts)) == sum(map(len, texts))
    for split in ("valid", "test"):
        held = [e.get("target", e["text"]) for e in tasks[name][split]]
        assert not trained & {" ".join(text.split()) for text in held}
    targets = [{e["target"] for e in tasks["stdlib_summary"][split]} for split in SPLITS]
    assert not targets[0] & targets[2]


def docstrings(files: dict[str, str]):
    for text in files.values():
        try:
            tree = ast.parse(text)
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                value = getattr(body[0].value, "value", None)
                if isinstance(value, str) and not isinstance(node, ast.If | ast.Try):
                    yield value


def test_packages_are_what_the_file_says_and_no_file_rules(stdlib):
    tasks, _, _ = stdlib
    examples = tasks["stdlib_package"]
    assert len(examples["train"]) > 1000 and len(examples["test"]) > 200
    for split in SPLITS:
        per_file = {}
        for e in examples[split]:
            file = e["id"].rsplit(":", 1)[0]
            assert file.split("/")[0].removesuffix(".py") == PACKAGES[e["label"]]
            per_file[file] = per_file.get(file, 0) + 1
            assert len(e["text"].split()) >= 3 and "lib/python" not in e["text"]
        assert max(per_file.values()) <= 100
    assert len({e["label"] for e in examples["train"]}) == len(PACKAGES)


def test_summaries_are_short_and_not_in_their_code(stdlib):
    tasks, _, _ = stdlib
    examples = tasks["stdlib_summary"]["train"]
    assert len(examples) > 2000
    for e in examples:
        assert "\n" not in e["target"] and 3 <= len(e["target"].split()) <= 40
        assert e["text"].lstrip("@").strip() and "def " in e["text"]
        ast.parse(e["text"])
    named = [e for e in examples if e["target"] in e["text"]]
    assert len(named) < len(examples) / 100


def test_stdlib_examples_are_the_same_in_another_process(stdlib):
    tasks, _, _ = stdlib
    code = (
        "from flaxlm.tasks import TASKS; from flaxlm.data.sources import DataConfig; import sys;"
        "d = DataConfig(valid_fraction=0.05, test_fraction=0.25);"
        f"e = TASKS['stdlib_package']().examples(d, 'test', {PACKAGES!r});"
        "import hashlib; print(hashlib.sha256(repr(e).encode()).hexdigest());"
        "assert 'jax' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = repr(tasks["stdlib_package"]["test"]).encode()
    assert run.stdout.strip() == hashlib.sha256(expected).hexdigest()


def test_stdlib_tasks_refuse_what_would_leak_or_cannot_be():
    task = TASKS["stdlib_package"]()
    with pytest.raises(ConfigError, match="whole files"):
        task.examples(DataConfig(split="tail"), "train", PACKAGES)
    with pytest.raises(ConfigError, match=r"data.path='stdlib'"):
        task.examples(DataConfig(path="x.txt"), "train", PACKAGES)
    with pytest.raises(DataError, match=r"'asincio' is no documented.*'asyncio'"):
        task.examples(STDLIB, "train", ("asincio", "email"))
    with pytest.raises(DataError, match=r"test split of the task is empty.*test_fraction=0.0"):
        task.examples(DataConfig(), "test", PACKAGES)


def with_golds(task):
    """Return twelve examples with golds, and what a model puts out that is right and sure."""
    examples = [{"id": "", "text": "t"} for _ in range(12)]
    if isinstance(task, LabelTask):
        golds = [{"label": i % 3} for i in range(12)]
        # Of log-probabilities: nothing of the others is left.
        outputs = {"scores": np.log(np.eye(3) + 1e-300)[[gold["label"] for gold in golds]]}
    elif task.objective in ("regression", "in_batch"):
        golds = [{"score": i % 5 / 2} for i in range(12)]
        outputs = {"values": np.array([gold["score"] for gold in golds], np.float32)}
    elif task.objective == "multi_label":
        golds = [{"labels": (i % 2 > 0, i % 3 > 0, i % 5 > 0)} for i in range(12)]
        outputs = {"probabilities": np.array([gold["labels"] for gold in golds], np.float32)}
    elif isinstance(task, Tagging):
        tags = [0, 1, 2, 0]
        golds = [{"words": ["To", " New", " York", "!"], "tags": tags, "tag_set": BIO}] * 12
        outputs = {
            "scores": np.log([np.eye(3)[tags] + 1e-9] * 12),
            "words": np.array([[1, 2, 3, 4]] * 12),
            "owner": np.arange(12),
        }
    else:
        golds = [{"target": f"word number {i} of the twelve"} for i in range(12)]
        outputs = {"text": [f" {gold['target']}\n" for gold in golds]}
    return [example | gold for example, gold in zip(examples, golds, strict=True)], outputs


BEST = {"mse": 0.0, "mae": 0.0, "ece": 0.0, "brier": 0.0, "bleu": 100.0, "chrf": 100.0}
# Spans, ranked texts and T5's words are in test_question_answering, test_zero_shot, test_t5_glue.
ELSEWHERE = ("question_answering", "squad", "squad2", "cmrc2018", "t5_glue")


@pytest.mark.parametrize(
    "name", [n for n, t in TASKS.items() if n not in ELSEWHERE and not t.ranks]
)
def test_every_task_answers_scores_and_bounds_its_own_golds_perfectly(name):
    task = TASKS[name]()
    if not task.objective:
        assert (task.golds([]), task.metrics([], []), task.intervals([], [])) == ([], {}, {})
        return
    examples, outputs = with_golds(task)
    answers, golds = task.postprocess(outputs, examples), task.golds(examples)
    assert values_of(answers) == values_of(task.perfect(golds)) == golds
    scores = task.metrics(answers, golds)
    assert scores == pytest.approx({key: BEST.get(key, 1.0) for key in scores}) and scores
    assert scores == task.metrics(task.perfect(golds), golds)
    for key, bounds in task.intervals(answers, golds).items():
        assert bounds == pytest.approx((scores[key], scores[key])), key
    if name != "similarity":  # no cosine is 2.0
        assert {task.mistake(*pair) for pair in zip(answers, golds, strict=True)} == {0.0}
    with pytest.raises(DataError):
        task.postprocess({key: value[:5] for key, value in outputs.items()}, examples)
    metric = task.defaults.get("eval", {}).get("metric", "loss")
    assert metric == "loss" or metric in scores or metric in two_labels(task)


def two_labels(task):
    """Return the metrics that only a task of two labels has."""
    return task.metrics(task.perfect([0, 1]), [0, 1]) if isinstance(task, LabelTask) else {}


def test_an_example_is_called_the_same_wherever_its_folder_stands(tmp_path):
    for root in ("here", "there"):
        for part in ("a", "b"):
            (tmp_path / root / part).mkdir(parents=True)
            write(tmp_path / root / part / "rows.jsonl", ROWS[:2])
        data = DataConfig(path=str(tmp_path / root / "*" / "rows.jsonl"), split="whole")
        found = TASKS["classification"]().examples(data, "train", LABELS)
        ids = [f"{part}/rows.jsonl:{line}" for part in ("a", "b") for line in (1, 2)]
        assert [example["id"] for example in found] == ids
