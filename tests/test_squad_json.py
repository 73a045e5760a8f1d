"""Questions come out of every kind of file with their answers in place, and bad ones are named."""

import json
import warnings

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from compressed import write

from flaxlm.data.sources import DataConfig
from flaxlm.errors import ConfigError, DataError
from flaxlm.tasks import TASKS
from flaxlm.tasks.answer_spans import locate
from flaxlm.tasks.squad_json import read_questions

MOST = 1 << 20
CONTEXTS = ["Ann met Bob in Rome. Bob left.", "《战国》由光荣开发。🙂光荣很大。"]
ROWS = [
    # id, context, question, (answer, where it begins) …
    ("q1", 0, "Who left?", [("Bob", 21), ("Bob left", 21)]),
    ("q2", 0, "Where?", [("Rome", 15)]),
    ("q3", 1, "谁开发？", [("光荣", 11)]),
]


def squad(rows=ROWS, articles=2, **more):
    """Return SQuAD's JSON, an article a context."""
    data = []
    for number in range(articles):
        questions = [
            {
                "id": name,
                "question": question,
                "answers": [{"text": t, "answer_start": s} for t, s in answers],
            }
            | more
            for name, context, question, answers in rows
            if context == number
        ]
        paragraph = {"context": CONTEXTS[number], "qas": questions}
        data.append({"title": f"t{number}", "paragraphs": [paragraph]})
    return {"version": "1.1", "data": data}


def table(rows=ROWS):
    return [
        {
            "id": name,
            "title": f"t{context}",
            "context": CONTEXTS[context],
            "question": question,
            "answers": {"text": [t for t, _ in answers], "answer_start": [s for _, s in answers]},
        }
        for name, context, question, answers in rows
    ]


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def examples(path, split="train", task="squad", **fields):
    config = DataConfig(path=str(path), split="whole")
    return TASKS[task](**fields).examples(config, split)


@pytest.mark.parametrize(
    "name",
    ["a.json", "a.json.gz", "a.json.zst", "bom.json", "lines.json", "one.json", "a.jsonl",
     "pairs.jsonl", "a.parquet", "saved"],
)  # fmt: skip
def test_every_kind_of_file_gives_the_same_questions(tmp_path, name):
    path = tmp_path / name
    pairs = [
        row | {"answers": squad()["data"][row["id"] == "q3"]["paragraphs"][0]["qas"][n]["answers"]}
        for row, n in zip(table(), (0, 1, 0), strict=True)
    ]
    if name == "a.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table()), path)
    elif name == "saved":
        datasets.Dataset.from_list(table()).save_to_disk(path)
    else:
        mark = "\ufeff" if name == "bom.json" else ""
        text = {
            "lines.json": lines(table()),
            "one.json": lines(table()[:1]),
            "a.jsonl": lines(table()),
            "pairs.jsonl": lines(pairs),
        }.get(name, mark + json.dumps(squad(), indent=1))
        write(path, text)
    found = examples(path)
    rows = ROWS[:1] if name == "one.json" else ROWS
    assert [(e["id"], e["text_pair"], e["text"]) for e in found] == [
        (name, CONTEXTS[context], question) for name, context, question, _ in rows
    ]
    for example, (_, _, _, answers) in zip(found, rows, strict=True):
        assert example["answers"] == tuple(text for text, _ in answers)
        begin, end = example["span"]
        assert (begin, example["text_pair"][begin:end]) == (answers[0][1], answers[0][0])


def test_columns_can_have_other_names_and_ids_be_missing(tmp_path):
    rows = [
        {"q": row["question"], "passage": row["context"], "spans": row["answers"], "n": number}
        for number, row in enumerate(table())
    ]
    path = write(tmp_path / "a.jsonl", lines(rows))
    names = {"question_column": "q", "context_column": "passage", "answers_column": "spans"}
    found = examples(path, **names)
    assert [e["id"] for e in found] == [f"a.jsonl:{line}" for line in (1, 2, 3)]
    assert [e["id"] for e in examples(path, id_column="n", **names)] == ["0", "1", "2"]
    with pytest.raises(DataError, match=r"line 1: there is no column 'uid'.*columns: q, passage"):
        examples(path, id_column="uid", **names)


def test_unanswerable_questions_have_empty_spans_and_plausible_answers_are_none(tmp_path):
    contents = squad(is_impossible=False)
    question = {"id": "q4", "question": "Why?", "answers": [], "is_impossible": True}
    question["plausible_answers"] = [{"text": "Ann", "answer_start": 0}]
    contents["data"][0]["paragraphs"][0]["qas"].append(question)
    bare = {"id": "q5", "question": "How?", "is_impossible": True}
    contents["data"][1]["paragraphs"][0]["qas"].append(bare)
    path = write(tmp_path / "a.json", json.dumps(contents))
    found = {e["id"]: e for e in examples(path, task="squad2")}
    assert [found[name]["span"] for name in ("q4", "q5")] == [(), ()]
    assert [found[name]["answers"] for name in ("q4", "q5")] == [(), ()]
    assert found["q1"]["span"] == (21, 24)
    with pytest.raises(DataError, match=r"question 3 \(q4\) has no answer, like 2 of 5.*squad2"):
        examples(path)


def test_a_test_split_that_keeps_its_answers_back_can_be_answered(tmp_path):
    blind = [{k: v for k, v in row.items() if k != "answers"} for row in table()]
    empty = [row | {"answers": {"text": [], "answer_start": []}} for row in table()]
    for number, (rows, task) in enumerate(((blind, "squad"), (blind, "squad2"), (empty, "squad"))):
        path = write(tmp_path / f"{number}.jsonl", lines(rows))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = examples(path, "test", task)
        assert TASKS[task]().golds(found) == [None] * 3 and len(found) == 3
        with pytest.raises(DataError, match=r"no column 'answers'|has no answer"):
            examples(path, "valid", task)
    assert {e["answers"] for e in examples(path, "test", "squad2")} == {()}  # all unanswerable


# --- answers that are not where they should be


@pytest.mark.parametrize(
    "text,start,expected",
    [
        ("Bob", 8, (8, 11, False)),
        ("Bob", 9, (8, 11, True)),
        ("Bob", 20, (21, 24, True)),
        ("Bob", -1, (8, 11, True)),
        (" in  ", 11, (12, 14, False)),
        ("bob", 8, None),
        ("Rome.  Bob", 15, None),
    ],
)
def test_an_answer_is_taken_from_the_nearest_place_where_it_stands(text, start, expected):
    assert locate(CONTEXTS[0], text, start) == expected


def changed(answers):
    return squad([("q1", 0, "Who left?", answers), *ROWS[1:]])


def test_moved_answers_are_counted(tmp_path):
    path = write(tmp_path / "a.json", json.dumps(changed([("Bob", 20), ("Ann", 0)])))
    with pytest.warns(UserWarning, match="train split: 1 of 4 answers are not where.*nearest"):
        assert examples(path)[0]["span"] == (21, 24)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        examples(write(tmp_path / "b.json", json.dumps(squad())))


def test_answers_that_stand_nowhere_stop_training_or_are_left_out_of_it(tmp_path):
    path = write(tmp_path / "a.json", json.dumps(changed([("Bill", 21)])))
    message = r"a.json, article 1, paragraph 1, question 1 \(q1\): the answer 'Bill' is nowhere"
    with pytest.raises(DataError, match=message + r".*\(1 of 3\) with task.skip_unusable=True"):
        examples(path)
    with pytest.warns(UserWarning, match="1 of 3 questions have no answer that.*are left out"):
        assert [e["id"] for e in examples(path, skip_unusable=True)] == ["q2", "q3"]
    with pytest.warns(UserWarning, match="valid split: 1 of 3 .*answered and scored all the same"):
        found = examples(path, "valid")
    assert (found[0]["span"], found[0]["answers"]) == (None, ("Bill",)) and len(found) == 3
    # One of its answers is enough.
    path = write(tmp_path / "b.json", json.dumps(changed([("Bill", 21), ("Ann", 0)])))
    assert examples(path)[0]["span"] == (0, 3)
    with pytest.raises(DataError, match="the train split is empty: 1 of 1"):
        rows = table([("q1", 0, "Who?", [("Bill", 0)])])
        examples(write(tmp_path / "c.jsonl", lines(rows)), skip_unusable=True)


def test_empty_questions_are_refused_or_left_out(tmp_path):
    rows = [ROWS[0], ("q2", 0, " ", [("Rome", 15)]), ROWS[2]]
    path = write(tmp_path / "a.json", json.dumps(squad(rows)))
    with pytest.raises(DataError, match=r"question 2 \(q2\): column 'question' is empty"):
        examples(path)
    with pytest.warns(UserWarning, match="1 of 3 questions are empty: they are left out"):
        assert [e["id"] for e in examples(path, skip_unusable=True)] == ["q1", "q3"]
    with pytest.warns(UserWarning, match="1 of 3 questions are empty: they are answered"):
        assert len(examples(path, "valid", skip_unusable=True)) == 3


# --- one context, one side


@pytest.mark.parametrize("split", ["hash", "tail"])
def test_no_context_is_trained_on_and_evaluated(tmp_path, split):
    rows = [
        {
            "id": str(n),
            "context": f"The context {n // 5} is here.",
            "question": f"{n}?",
            "answers": {"text": ["here"], "answer_start": [len(f"The context {n // 5} is ")]},
        }
        for n in range(300)
    ]
    path = write(tmp_path / "a.jsonl", lines(rows))
    config = DataConfig(path=path, split=split, valid_fraction=0.21, test_fraction=0.23)
    parts = {s: TASKS["squad"]().examples(config, s) for s in ("train", "valid", "test")}
    assert sum(map(len, parts.values())) == 300 and min(map(len, parts.values())) >= 20
    sides = [{e["text_pair"] for e in part} for part in parts.values()]
    assert sum(map(len, sides)) == len(set().union(*sides)) == 60


# --- what cannot be read


def broken(**more):
    """Return SQuAD's JSON with the first question changed; None takes a key away."""
    contents = squad()
    question = contents["data"][0]["paragraphs"][0]["qas"][0]
    question |= {key: value for key, value in more.items() if value is not None}
    for key, value in more.items():
        if value is None:
            del question[key]
    return json.dumps(contents)


BAD = {
    "not json": ("{oops}", "is not JSON"),
    "cut off": (json.dumps(squad())[:-9], "is not JSON"),
    "deep": ("[" * 100_000, "nested too deeply|is not JSON"),
    "list": ("[1, 2]", r"neither SQuAD's JSON, which is .*data.*, nor JSON lines"),
    "data": ('{"data": 3}', "neither SQuAD's JSON"),
    "article": ('{"data": [3]}', "article 1 has no list 'paragraphs'; it has: int"),
    "paragraphs": ('{"data": [{"title": "a"}]}', "1 has no list 'paragraphs'; it has: title"),
    "qas": ('{"data": [{"paragraphs": [{"context": "a"}]}]}', "paragraph 1 has no list 'qas'"),
    "question": ('{"data": [{"paragraphs": [{"qas": ["a"]}]}]}', "1, question 1 is not an"),
    "none": ('{"data": []}', "the train split is empty"),
    "utf-8": (b'{"data": "\xff"}', "byte 10 .* is not UTF-8"),
    "no context": ('{"data": [{"paragraphs": [{"qas": [{"id": "x", "question": "a"}]}]}]}',
                   r"question 1 \(x\): there is no column 'context'.*columns: id, question"),
    "no question": (broken(question=None), r"\(q1\): there is no column 'question'"),
    "no answers": (broken(answers=None), r"\(q1\): there is no column 'answers'"),
    "no id": (broken(id=None, answers=[]), "question 1 has no answer, like 1 of 3"),
    "null id": (broken(id={}), "column 'id' holds {}, not a text"),
    "twice": (broken(id="q3"), r"question id 'q3' stands twice: .*article 1, paragraph 1, "
              r"question 1 \(q3\), and .*article 2, paragraph 1, question 1 \(q3\)"),
    "text": (broken(answers="Bob"), r"column 'answers' must be .*\"answer_start\".*it is \"Bob\""),
    "empty": (broken(answers=[{"text": " ", "answer_start": 1}]), "of texts that are not empty"),
    "start": (broken(answers=[{"text": "Bob", "answer_start": "21"}]), "column 'answers' must be"),
    "true": (broken(answers=[{"text": "Bob", "answer_start": True}]), "column 'answers' must be"),
    "half": (broken(answers=[{"text": "Bob"}]), "column 'answers' must be"),
    "count": (broken(answers={"text": ["Bob"], "answer_start": []}), "column 'answers' must be"),
    "impossible": (broken(is_impossible=True), r"\(q1\) has an answer, and is_impossible is true"),
    "possible": (broken(is_impossible=False, answers=[]), "no answer, and is_impossible is false"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_with_its_place(tmp_path, case):
    text, message = BAD[case]
    path = write(tmp_path / "bad.json", text)
    with pytest.raises(DataError, match=message) as caught:
        examples(path)
    assert path in str(caught.value) and "\n" not in str(caught.value)


def test_ids_may_not_stand_in_two_files_either(tmp_path):
    first = write(tmp_path / "a.json", json.dumps(squad()))
    second = write(tmp_path / "b.jsonl", lines(table()[:1]))
    with pytest.raises(DataError, match=r"'q1' stands twice: .*a.json, article 1.*b.jsonl, line 1"):
        TASKS["squad"]().examples(DataConfig(path=(first, second), split="whole"), "valid")


def test_a_file_larger_than_asked_for_is_refused(tmp_path):
    path = write(tmp_path / "a.json", json.dumps(squad()))
    with pytest.raises(DataError, match=r"longer than 100 bytes; raise data.max_line_bytes"):
        list(read_questions(path, 100))
    context = "word " * 300_000  # a row of more than 1 MB is a row like any other
    rows = [{"context": context, "question": "?", "answers": [{"text": "w", "answer_start": 0}]}]
    (record,) = read_questions(write(tmp_path / "b.jsonl", lines(rows)), 2 * MOST)
    assert record.columns["context"] == context


def test_settings_are_checked():
    for fields, message in (
        ({"style": "squard"}, "did you mean 'squad'"),
        ({"n_best": 0}, "n_best=0"),
        ({"max_answer_tokens": 0}, "max_answer_tokens=0"),
    ):
        with pytest.raises(ConfigError, match=message):
            TASKS["squad"](**fields)


# --- real data


@pytest.mark.parametrize(
    "name,task,count,answers,moved",
    [
        ("squad/dev-v1.1", "squad", 10570, 34726, ""),
        ("squad/dev-v2.0", "squad2", 11873, 20302, ""),
        ("cmrc2018/dev", "cmrc2018", 3219, 9657, "7 of 9,657 answers"),
    ],
)
def test_published_sets_have_their_counts(shared, name, task, count, answers, moved):
    path = shared(f"data/{name}.json.gz")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = examples(path, "valid", task)
    assert (len(found), sum(len(e["answers"]) for e in found)) == (count, answers)
    assert [moved in str(w.message) for w in said] == [True] * bool(moved)
    for example in found:
        begin, end = example["span"] or (0, 0)
        assert example["text_pair"][begin:end] in [a.strip() for a in example["answers"] or ("",)]
