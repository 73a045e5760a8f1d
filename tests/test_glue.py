"""GLUE's files as the site and the hub have them, and those that the site scores, byte by byte."""

import json

import numpy as np
import pytest

from flaxlm.commands.glue import find_files, find_folders, task_scores
from flaxlm.data.sources import DataConfig
from flaxlm.errors import ConfigError, DataError, MissingInput
from flaxlm.tasks import TASKS
from flaxlm.tasks.glue import GLUE, _differ
from flaxlm.tasks.task import Answer

PARSES = "\t".join(f"{c}{i}" for c in "ab" for i in (1, 2))
MNLI = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
    "sentence1_parse\tsentence2_parse\tsentence1\tsentence2"
)
# The site's files: (train or dev, test), and what they say.
SITE = {
    "cola": (
        'gj04\t1\t\tA "quoted word.\ngj04\t0\t*\tThey wanted, sentence.\n',
        "index\tsentence\n0\tBill left.\n7\tLeft bill.\n",
        [('A "quoted word.', 1), ("They wanted, sentence.", 0)],
        [("0", "Bill left."), ("7", "Left bill.")],
    ),
    "sst2": (
        "sentence\tlabel\nhide new \t0\nso ' good\t1\n",
        "index\tsentence\n0\tuneasy\n",
        [("hide new ", 0), ("so ' good", 1)],
        [("0", "uneasy")],
    ),
    "mrpc": (
        '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t7\t8\tHe said "no\ta, b\r\n',
        "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\tx\ty\n",
        [('He said "no', "a, b", 1)],
        [("0", "x", "y")],
    ),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n9\t1\t2\tWhy?\tWhy not?\t0\n",
        "id\tquestion1\tquestion2\n0\tHow?\tSo?\n",
        [("Why?", "Why not?", 0)],
        [("0", "How?", "So?")],
    ),
    "stsb": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
        '0\tm\tM\t2012\t0001\tn\tn\tA "plane.\tAn air plane.\t5.000\n',
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\n"
        "0\tm\tM\t2012\t0001\tn\tn\tp\tq\n",
        [('A "plane.', "An air plane.", 5.0)],
        [("0", "p", "q")],
    ),
    "mnli": (
        f"{MNLI}\tlabel1\tgold_label\n0\t1\t1n\tfiction\t{PARSES}\tIt rains.\tIt's wet.\t"
        "neutral\tcontradiction\n",
        f"{MNLI}\n0\t1\t1n\tfiction\t{PARSES}\tp\th\n",
        [("It rains.", "It's wet.", 2)],
        [("0", "p", "h")],
    ),
    "qnli": (
        "index\tquestion\tsentence\tlabel\n0\tWhat?\tThat.\tnot_entailment\n",
        "index\tquestion\tsentence\n0\tWho?\tShe.\n",
        [("What?", "That.", 1)],
        [("0", "Who?", "She.")],
    ),
    "rte": (
        "index\tsentence1\tsentence2\tlabel\n3\tAll.\tSome.\tentailment\n",
        "index\tsentence1\tsentence2\n0\tx\ty\n",
        [("All.", "Some.", 0)],
        [("0", "x", "y")],
    ),
    "wnli": (
        "index\tsentence1\tsentence2\tlabel\n0\tIt had a hole.\tThe carrot had.\t1\n",
        "index\tsentence1\tsentence2\n0\tx\ty\n",
        [("It had a hole.", "The carrot had.", 1)],
        [("0", "x", "y")],
    ),
}
SITE["mnli_mm"] = SITE["mnli"]
# The hub's columns, in the order of its numbered labels.
HUB = {
    "cola": ({"sentence": "a"}, 1),
    "sst2": ({"sentence": "a"}, 0),
    "mrpc": ({"sentence1": "a", "sentence2": "b"}, 1),
    "qqp": ({"question1": "a", "question2": "b"}, 0),
    "stsb": ({"sentence1": "a", "sentence2": "b"}, 3.75),
    "mnli": ({"premise": "a", "hypothesis": "b"}, 2),
    "mnli_mm": ({"premise": "a", "hypothesis": "b"}, 1),
    "qnli": ({"question": "a", "sentence": "b"}, 1),
    "rte": ({"sentence1": "a", "sentence2": "b"}, 0),
    "wnli": ({"sentence1": "a", "sentence2": "b"}, 1),
}


def labels_of(name):
    return GLUE[name].defaults.get("objective", {}).get("labels", ())


def files_of(folder, train, test, ending=".tsv"):
    for split, text in (("train", train), ("test", test)):
        (folder / f"{split}{ending}").write_text(text, encoding="utf-8", newline="")
    train, test = (str(folder / f"{split}{ending}") for split in ("train", "test"))
    return DataConfig(path=train, split="file", valid_path=train, test_path=test)


def told(example, *keys):
    keys = (*keys, "text", "text_pair", "label", "score")
    return tuple(example[key] for key in keys if example.get(key) is not None)


@pytest.mark.parametrize("name", GLUE)
def test_the_files_of_the_site(tmp_path, name):
    train, test, rows, unlabelled = SITE[name]
    data, task = files_of(tmp_path, train, test), TASKS[name]()
    for split in ("train", "valid"):
        assert [told(e) for e in task.examples(data, split, labels_of(name))] == rows
    found = task.examples(data, "test", labels_of(name))
    assert [told(e, "index") for e in found] == unlabelled
    assert task.golds(found) == [None] * len(found)


@pytest.mark.parametrize("name", GLUE)
def test_the_rows_of_the_hub(tmp_path, name):
    columns, label = HUB[name]
    lines = [json.dumps(columns | {"label": value, "idx": 5}) + "\n" for value in (label, -1)]
    data, task = files_of(tmp_path, *lines, ending=".jsonl"), TASKS[name]()
    (found,) = task.examples(data, "train", labels_of(name))
    assert told(found, "index") == ("5", *"ab"[: len(columns)], label)
    (found,) = task.examples(data, "test", labels_of(name))
    assert told(found, "index") == ("5", *"ab"[: len(columns)])
    assert task.golds([found]) == [None]


@pytest.mark.parametrize("name", GLUE)
@pytest.mark.parametrize("known", [-1, -1.0, "-1", None])
def test_a_file_without_answers_is_read_whole_as_the_test_file_is(tmp_path, name, known):
    """By the hub's word for none by any split's name, without the column by that of the test."""
    columns, label = HUB[name]
    rows = [columns | ({} if known is None else {"label": known}) for _ in range(2)]
    path, task = tmp_path / "a.jsonl", TASKS[name]()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(path=str(path), split="whole")
    assert task.golds(task.examples(data, "test", labels_of(name))) == [None, None]
    if known is not None:
        assert task.golds(task.examples(data, "valid", labels_of(name))) == [None, None]
    with open(path, "a") as file:  # all have one, or none has
        file.write(json.dumps(columns | {"label": label}))
    said = r"--split=test answers" if known is None else r"line 1: .*'?label'? (holds|is|has) .*-1"
    with pytest.raises(DataError, match=said):
        task.examples(data, "valid", labels_of(name))


@pytest.mark.parametrize("name", [n for n in GLUE if len(TASKS[n].gold) > 1])
def test_two_columns_of_right_answers_that_differ_are_refused(tmp_path, name):
    columns, label = HUB[name]
    first, other = TASKS[name].gold[0], {"label": label}
    path, task = tmp_path / "a.jsonl", TASKS[name]()
    data = DataConfig(path=str(path), split="whole")
    path.write_text(json.dumps(columns | other | {first: label}))
    assert task.golds(task.examples(data, "valid", labels_of(name))) != [None]
    for same in (f"{label}.0", f" {label} ", "a name", None, -1, "-", "hidden"):
        assert not _differ([label, same]) and not _differ([same, label])
    assert _differ(["Neutral", "entailment"]) and not _differ(["Neutral", "neutral"])
    path.write_text(json.dumps(columns | other | {first: label + 1}))
    with pytest.raises(DataError, match=rf"line 1: its columns {first} and label .* drop one"):
        task.examples(data, "valid", labels_of(name))


def test_every_task_brings_its_labels_and_its_metric_along():
    assert set(SITE) == set(HUB) == set(GLUE) <= set(TASKS)
    binary = ("0", "1")
    assert {name: labels_of(name) for name in GLUE} == {
        **dict.fromkeys(("cola", "sst2", "mrpc", "qqp", "wnli"), binary),
        **dict.fromkeys(("mnli", "mnli_mm"), ("entailment", "neutral", "contradiction")),
        **dict.fromkeys(("qnli", "rte"), ("entailment", "not_entailment")),
        "stsb": (),
    }
    assert {name: GLUE[name].defaults["eval"]["metric"] for name in GLUE} == {
        **dict.fromkeys(GLUE, "accuracy"),
        **{"cola": "matthews", "mrpc": "f1", "qqp": "f1", "stsb": "spearman"},
    }
    for name, task in GLUE.items():
        golds = [0.0, 1.0] if name == "stsb" else [0, 1]
        assert set(task.reported) <= task().metrics(task().perfect(golds), golds).keys()


def test_bad_rows_are_refused_or_counted(tmp_path):
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    good = "1\t1\t2\ta\tb\t1\n"
    bad = header + good + "2\t3\t4\tbroken\n" + "3\t5\t6\tc\t \t0\n" + good
    data = files_of(tmp_path, bad, header)
    with pytest.raises(DataError, match=r"train.tsv, line 3 has 4 fields.*6 columns"):
        TASKS["qqp"]().examples(data, "train", ("0", "1"))
    with pytest.warns(UserWarning, match=r"left 2 rows of the train split out.*line 3 has 4"):
        found = TASKS["qqp"](skip_bad_rows=True).examples(data, "train", ("0", "1"))
    assert [e["text"] for e in found] == ["a", "a"]


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("rte", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailed\n", "label 'entailed'.*in"),
        ("wnli", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t2\n", "line 2: .*the label '2'"),
        ("rte", "index\tsentence1\tlabel\n0\ta\tentailment\n", r"no column 'sentence2'.*index"),
        ("rte", "index\tsentence1\tsentence2\n0\ta\tb\n", r"line 2: there is no column 'label'"),
        ("cola", "gj\t1\t\n", r"line 1 has 3 fields.*4 columns: source, label, mark, sentence"),
        ("stsb", "sentence1\tsentence2\tscore\na\tb\t5.1\n", r"line 2: .*5.1.*not in 0.0 … 5.0"),
        ("sst2", "sentence\tlabel\n \t1\n", r"line 2: column 'sentence' is empty"),
    ],
)
def test_bad_files_are_refused_with_line_and_column(tmp_path, name, rows, message):
    with pytest.raises(DataError, match=message):
        TASKS[name]().examples(files_of(tmp_path, rows, ""), "train", labels_of(name))


# --- submissions


def test_submissions_are_as_the_site_has_them():
    examples = [{"id": "f:2", "index": "0"}, {"id": "f:3", "index": "7"}]
    answers = [Answer(1), Answer(0)]
    expected = {
        **dict.fromkeys(("cola", "sst2", "mrpc", "qqp", "wnli"), ("1", "0")),
        **dict.fromkeys(("mnli", "mnli_mm"), ("neutral", "entailment")),
        **dict.fromkeys(("qnli", "rte"), ("not_entailment", "entailment")),
    }
    names = {}
    for name, (first, second) in expected.items():
        ((file, text),) = TASKS[name]().files(answers, examples, labels_of(name)).items()
        assert text.encode() == f"index\tprediction\n0\t{first}\n7\t{second}\n".encode()
        names[name] = file
    numbers = [Answer(v) for v in (5.25, -0.3, 3.14159)]
    ((file, text),) = TASKS["stsb"]().files(numbers, [{"id": "x"}] * 3).items()
    assert text == "index\tprediction\n0\t5.000\n1\t0.000\n2\t3.142\n"
    assert sorted([*names.values(), file]) == [
        "CoLA.tsv", "MNLI-m.tsv", "MNLI-mm.tsv", "MRPC.tsv", "QNLI.tsv", "QQP.tsv", "RTE.tsv",
        "SST-2.tsv", "STS-B.tsv", "WNLI.tsv",
    ]  # fmt: skip


def test_the_average_is_of_tasks_and_mnli_is_one():
    scores = {
        "cola": {"matthews": 0.5, "accuracy": 0.9},
        "mrpc": {"f1": 0.9, "accuracy": 0.8},
        "mnli": {"accuracy": 0.7},
        "mnli_mm": {"accuracy": 0.5},
        "stsb": {"pearson": 0.2, "spearman": 0.4, "mse": 9.0},
    }
    assert task_scores(scores) == pytest.approx(
        {"cola": 0.5, "mrpc": 0.85, "mnli": 0.6, "stsb": 0.3}
    )


# --- folders


def test_folders_are_found_by_any_of_their_names(tmp_path):
    for name in ("CoLA", "sst2", "glue_mrpc", "STS-B", "glue-mnli", "RTE.txt", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "WNLI").write_text("no folder")
    found = {key: path.name for key, path in find_folders(tmp_path).items()}
    assert found == {
        "cola": "CoLA", "sst2": "sst2", "mrpc": "glue_mrpc", "stsb": "STS-B", "mnli": "glue-mnli"
    }  # fmt: skip
    (tmp_path / "SST-2").mkdir()
    with pytest.raises(ConfigError, match=r"SST-2 and .*sst2 are of the same task"):
        find_folders(tmp_path)


@pytest.mark.parametrize(
    ("names", "part", "expected"),
    [
        (
            "dev.tsv dev_ids.tsv msr_paraphrase_train.txt test.tsv train.tsv",
            "",
            "train.tsv dev.tsv test.tsv",
        ),
        ("train.csv dev.csv test_labeled.csv", "", "train.csv dev.csv test_labeled.csv"),
        ("dev_matched.tsv dev_mismatched.tsv train.tsv test_matched.tsv diagnostic.tsv",
         "_matched", "train.tsv dev_matched.tsv test_matched.tsv"),
        ("dev_matched.tsv dev_mismatched.tsv train.tsv test_mismatched.tsv",
         "_mismatched", "train.tsv dev_mismatched.tsv test_mismatched.tsv"),
        ("train-00000-of-00002.parquet train-00001-of-00002.parquet "
         "validation-00000-of-00001.parquet", "",
         "train-*-of-00002.parquet validation-00000-of-00001.parquet"),
        ("train.csv.gz valid.csv", "", "train.csv.gz valid.csv"),
        ("dev.tsv", "", "dev.tsv"),
    ],
)  # fmt: skip
def test_files_are_found_by_their_split(tmp_path, names, part, expected):
    for name in names.split():
        (tmp_path / name).touch()
    found = find_files(tmp_path, part)
    assert [path.removeprefix(f"{tmp_path}/") for path in found.values()] == expected.split()


TWICE = ["dev.jsonl dev.tsv", "dev.tsv valid.tsv", "test_a.tsv test_b.tsv"]


@pytest.mark.parametrize("names", TWICE)
def test_two_files_of_one_split_are_refused(tmp_path, names):
    for name in names.split():
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=f"Keep one of: {', '.join(names.split())}"):
        find_files(tmp_path)


# --- the real files

REAL = {
    "cola": (8551, 1043, 1063),
    "sst2": (67349, 872, 1821),
    "mrpc": (3668, 408, 1725),
    "rte": (2490, 277, 3000),
    "stsb": (5749, 1500, 1379),
    "wnli": (635, 71),
    "qnli": (5463,),
}


@pytest.mark.parametrize("name", REAL)
def test_the_real_files_have_as_many_rows_as_were_published(shared, name):
    folders = find_folders(shared("data"))
    found = find_files(folders[GLUE[name].folder.lower().replace("-", "")])
    data = DataConfig(
        path=found.get("train", found["valid"]),
        split="file",
        valid_path=found["valid"],
        test_path=found.get("test", ""),
    )
    splits = {split: TASKS[name]().examples(data, split, labels_of(name)) for split in found}
    assert tuple(map(len, splits.values())) == REAL[name]
    for split, examples in splits.items():
        golds = TASKS[name]().golds(examples)
        if split == "test" and name in ("cola", "rte"):
            assert set(golds) == {None}
        else:
            assert len(set(golds)) >= 2 and None not in golds
    known = {"cola": ("train", 6023), "sst2": ("test", 909), "mrpc": ("valid", 279)}
    known |= {"rte": ("valid", 131), "wnli": ("valid", 31), "qnli": ("valid", 2761)}
    if name in known:
        split, positive = known[name]
        assert sum(example["label"] for example in splits[split]) == positive
    else:
        means = [np.mean([e["score"] for e in part]).round(3) for part in splits.values()]
        assert means == [2.701, 2.364, 2.608]


def test_nothing_at_all_is_said_so(tmp_path):
    from flaxlm.commands.glue import glue

    with pytest.raises(MissingInput, match=r"--data=.*absent is not a folder"):
        glue(None, tmp_path / "absent", tmp_path / "w")
    with pytest.raises(ConfigError, match=r"--tasks='cloa'.*mean 'cola'"):
        glue(None, tmp_path, tmp_path / "w", ["cloa"])
    with pytest.raises(MissingInput, match=r"cola: there is no folder CoLA in .*; sst2: there"):
        glue(None, tmp_path, tmp_path / "w")
    (tmp_path / "RTE").mkdir()
    with pytest.raises(MissingInput, match=r"^rte: .*RTE has no file dev$"):
        glue(None, tmp_path, tmp_path / "w", ["rte"])
