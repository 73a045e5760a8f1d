"""What is wrong with a data set is said with its place, or counted: for every family of tasks."""

import json
import warnings

import pytest
from fakes import FakeTokenizer

from flaxlm.data.sources import DataConfig
from flaxlm.errors import DataError
from flaxlm.objectives import OBJECTIVES
from flaxlm.tasks import TASKS

# {task: (labels, a good row, the column of its right answer)}
FAMILIES = {
    "classification": (("no", "yes"), {"text": "a b", "label": "yes"}, "label"),
    "multi_label": (("no", "yes"), {"text": "a b", "labels": ["yes"]}, "labels"),
    "regression": ((), {"text": "a b", "score": 1.5}, "score"),
    "similarity": ((), {"sentence1": "a b", "sentence2": "b", "score": 5.0}, "score"),
    "ner": (("O", "B-x", "I-x"), {"tokens": ["a", "b"], "tags": ["O", "B-x"]}, "tags"),
    "pos": (("NOUN", "VERB"), {"tokens": ["a", "b"], "tags": ["NOUN", "VERB"]}, "tags"),
    "question_answering": (
        (),
        {"question": "a?", "context": "a b", "answers": {"text": ["b"], "answer_start": [2]}},
        "answers",
    ),
    "text_to_text": ((), {"input": "a b", "target": "b"}, "target"),
    "summarization": ((), {"document": "a b", "summary": "b"}, "summary"),
    "generative_qa": ((), {"question": "a?", "context": "a b", "answers": ["b"]}, "answers"),
    "instruction": ((), {"prompt": "a b", "response": "b"}, "response"),
    "multiple_choice": ((), {"context": "a", "choices": ["b", "c"], "gold": 1}, "gold"),
}
LABELLED = [name for name, (labels, _, _) in FAMILIES.items() if labels]


def read(directory, name, rows, split="train", **options):
    """Return the examples of a file with these rows, split `train`, `valid` and `test` alike."""
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(
        path=str(path), split="file", valid_path=str(path), test_path=str(path), **options
    )
    return TASKS[name]().examples(data, split, FAMILIES[name][0])


def plan_of(name, examples, training):
    """Return the rows of examples, 64 tokens long."""
    labels, _, _ = FAMILIES[name]
    fields = {"labels": labels} if labels else {}
    if name == "question_answering":
        fields = {"question_length": 8, "stride": 32}
    objective = OBJECTIVES[TASKS[name].objective](**fields)
    return objective.plan(examples, 64, FakeTokenizer(), seed=0, shuffle=training)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_missing_column_is_named_with_the_line_and_what_there_is(tmp_path, name, split):
    _, row, _ = FAMILIES[name]
    for column in row:
        rest = {key: value for key, value in row.items() if key != column}
        with pytest.raises(DataError) as caught:
            read(tmp_path, name, [row, rest], split)
        said = str(caught.value)
        assert "rows.jsonl, line 2" in said and repr(column) in said
        assert all(other in said for other in rest)


@pytest.mark.parametrize("name", FAMILIES)
def test_half_a_surrogate_pair_in_any_text_is_named_with_its_line(tmp_path, name):
    labels, row, _ = FAMILIES[name]
    for key, value in row.items():
        text = json.dumps(value).replace('"', '"\\ud83d', 1)
        if "ud83d" in text:
            (tmp_path / "a.jsonl").write_text(
                f"{json.dumps(row)}\n{json.dumps(row)[:-1]}, {json.dumps(key)}: {text}}}\n"
            )
            data = DataConfig(path=str(tmp_path / "a.jsonl"), split="whole")
            with pytest.raises(DataError, match=r"line 2[:,]"):
                TASKS[name]().examples(data, "train", labels)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_empty_text_is_named_with_its_line(tmp_path, name):
    _, row, _ = FAMILIES[name]
    for column in [key for key, value in row.items() if isinstance(value, str)]:
        for empty in ("", " \t", None):
            with pytest.raises(DataError, match=rf"rows.jsonl, line 2: column '{column}'"):
                read(tmp_path, name, [row, row | {column: empty}])


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("classification", "maybe", r"label 'maybe', which is not in .*; valid: no, yes"),
        ("classification", "yse", r"did you mean 'yes'\?"),
        ("classification", 2, r"label '2', which is not in .*; valid: no, yes"),
        ("multi_label", ["yes", "maybe"], r"label 'maybe', which is not in .*; valid: no, yes"),
        ("multi_label", ["yes", "yes"], r"one twice"),
        ("regression", "high", r"'high', not a finite number"),
        ("regression", float("nan"), r"nan, not a finite number"),
        ("similarity", float("inf"), r"inf, not a finite number"),
        ("ner", ["O", "B-y"], r"word 2: tag 'B-y' of the word 'b'.*; valid: O, B-x, I-x"),
        ("ner", ["O", 3], r"word 2: tag 3 of the word 'b'.*valid: O, B-x, I-x, or 0 … 2"),
        ("ner", ["O"], r"2 words in column 'tokens' and 1 tags in column 'tags'"),
        ("pos", ["NOUN", "VERB", "VERB"], r"2 words in column 'tokens' and 3 tags"),
        (
            "question_answering",
            {"text": ["c"], "answer_start": [0]},
            r"'c' is nowhere in its context.* \(1 of 2\) with task.skip_unusable=True",
        ),
        ("multiple_choice", 2, r"'gold'"),
    ],
)
def test_a_wrong_answer_is_named_with_its_line_and_what_is_right(tmp_path, name, wrong, said):
    _, row, gold = FAMILIES[name]
    with pytest.raises(DataError, match=rf"rows.jsonl, line 2\b.*{said}"):
        read(tmp_path, name, [row, row | {gold: wrong}])


@pytest.mark.parametrize(("task", "wrong"), [("stsb", 5.1), ("stsb", -0.1)])
def test_a_number_out_of_its_range_is_named(tmp_path, task, wrong):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"sentence1": "a", "sentence2": "b", "score": wrong}))
    with pytest.raises(DataError, match=rf"line 1: .*{wrong}, which is not in 0.0 … 5.0"):
        TASKS[task]().examples(DataConfig(path=str(path), split="whole"), "train")


@pytest.mark.parametrize("name", [n for n in FAMILIES if n not in ("pos", "multiple_choice")])
def test_a_row_of_a_megabyte_is_cut_and_counted_or_stands_in_windows(tmp_path, name):
    _, row, gold = FAMILIES[name]
    long, size = "a b " * (1 << 18), 1 << 20
    if "tokens" in row:
        rows = [row | {"tokens": long.split(), "tags": row["tags"] * (size // 4)}]
    else:
        column = next(key for key in row if key not in (gold, "question"))
        rows = [row | {column: long}]
    examples = read(tmp_path, name, [row, *rows])
    assert len(examples) == 2
    report = plan_of(name, examples, training=True).report
    if TASKS[name].objective == "question_answering":
        assert report["windows"] > 1000
    elif "tokens" in row:
        assert report["windows"] > 1000 and not report["truncated"]
    else:
        assert report["truncated"] == 1
    with pytest.raises(DataError, match=r"line 2 is longer than 1,000 bytes.*data.max_line_bytes"):
        read(tmp_path, name, [row, *rows], max_line_bytes=1000)


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_with_one_id_are_all_kept_or_refused(tmp_path, name):
    _, row, _ = FAMILIES[name]
    rows = [row | {"id": "twice"}] * 2
    if name in ("question_answering", "generative_qa"):  # whose answers are asked for by id
        with pytest.raises(DataError, match=r"'twice' stands twice: .*, line 1, and .*, line 2"):
            read(tmp_path, name, rows)
    else:
        examples = read(tmp_path, name, rows)
        assert len({example["id"] for example in examples}) == 2


@pytest.mark.parametrize("name", LABELLED)
def test_a_split_that_lacks_labels_is_spoken_of(tmp_path, name):
    labels, row, gold = FAMILIES[name]
    one = row | {gold: [labels[0]] * 2 if "tokens" in row else labels[0]}
    examples = read(tmp_path, name, [one, one])
    absent = ", ".join(labels[1:])
    with pytest.warns(UserWarning, match=f"nothing in the training split is labelled {absent}$"):
        plan_of(name, examples, training=True)
    if name == "classification":
        with pytest.warns(
            UserWarning, match="every example of the evaluation split has the label no"
        ):
            plan_of(name, examples, training=False)
    # One label alone can be scored, and is right or wrong.
    task = TASKS[name]()
    golds = task.golds(examples)
    scores = task.metrics(task.perfect(golds), golds)
    assert max(scores.get(n, 0.0) for n in ("accuracy", "f1_micro")) in (0.0, 1.0)
    assert all(value == value for value in scores.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_test_split_without_answers_is_read_whole_and_others_are_not(tmp_path, name):
    _, row, gold = FAMILIES[name]
    rest = {key: value for key, value in row.items() if key != gold}
    examples = read(tmp_path, name, [rest] * 3, "test")
    assert TASKS[name]().golds(examples) == [None] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if TASKS[name].objective:
            assert plan_of(name, examples, training=False).num_rows >= 3
    # Some answers are neither all nor none.
    with pytest.raises(DataError, match=rf"line 2: .*'{gold}'"):
        read(tmp_path, name, [row, rest, row], "test")
