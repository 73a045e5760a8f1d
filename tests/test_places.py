"""Numbers in rows: a label's name or, with a warning, its place; 1.0 is 1 wherever 1 can stand."""

import json
import warnings

import pytest

from flaxlm.data.sources import DataConfig
from flaxlm.data.tables import integer
from flaxlm.errors import DataError
from flaxlm.tasks import TASKS

LABELS = ("O", "B-x", "I-x")
FORMS = ("ner", "conll", "classification", "csv", "multi_label", "separated")


def of_file(path, text: str) -> DataConfig:
    path.write_text(text)
    return DataConfig(path=str(path), split="whole")


def ids_of(tmp_path, form: str, *values, labels=LABELS) -> list[int]:
    """Return the ids of rows whose labels are `values`, in one of `FORMS`."""
    if form in ("conll", "csv"):
        lines = [f"w\t{value}\nw\t{value}\n" if form == "conll" else f"w,{value}"
                 for value in values]  # fmt: skip
        text = "\n".join(lines if form == "conll" else ["text,label", *lines])
        data, name = of_file(tmp_path / f"a.{form}", text), "ner"
    else:
        column = {"ner": "tags", "classification": "label"}.get(form, "labels")
        shapes = {"ner": lambda v: [v, v], "multi_label": lambda v: [v], "separated": str}
        rows = [{"tokens": ["w", "w"], "text": "w", column: shapes.get(form, lambda v: v)(value)}
                for value in values]  # fmt: skip
        data, name = of_file(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))), form
    name = {"csv": "classification", "separated": "multi_label"}.get(form, name)
    examples = TASKS[name]().examples(data, "test", labels)
    if name == "ner":
        assert all(a == b for a, b in (example["tags"] for example in examples))
        return [example["tags"][0] for example in examples]
    if name == "multi_label":
        assert all(sum(example["labels"]) == 1 for example in examples)
        return [example["labels"].index(True) for example in examples]
    return [example["label"] for example in examples]


@pytest.mark.parametrize("form", FORMS)
def test_a_number_is_a_place_where_labels_have_names_and_that_is_warned_of(tmp_path, form):
    said = r"line [12]: (tags|labels) are numbers, .*objective.labels: 0 as O, 1 as B-x, 2 as I-x$"
    with pytest.warns(UserWarning, match=said) as caught:
        assert ids_of(tmp_path, form, 2, 0, 1, 2) == [2, 0, 1, 2]
    assert len(caught) == 1  # however many rows there are


@pytest.mark.parametrize("form", FORMS)
def test_a_name_that_is_a_number_is_no_place(tmp_path, form):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Of `pos`, whose tags may be anything, `ner` has the reader.
        if form not in ("ner", "conll"):
            assert ids_of(tmp_path, form, 2, 0, labels=("2", "1", "0")) == [0, 2]
            with pytest.raises(DataError, match=r"label '0', which is not in objective.labels"):
                ids_of(tmp_path, form, 0, labels=("1", "2"))
        assert ids_of(tmp_path, form, "I-x", "o") == [2, 0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore:.*are numbers")
def test_a_number_that_is_no_place_or_stands_beside_names_is_refused(tmp_path, form):
    with pytest.raises(DataError, match=r"not in objective.labels.*valid: O, B-x, I-x, or 0 … 2"):
        ids_of(tmp_path, form, 0, 3)
    with pytest.raises(DataError, match=r"not in objective.labels.*valid: O, B-x, I-x"):
        ids_of(tmp_path, form, -1)
    for values, kind in (((0, "O"), "numbers"), (("O", 0), "names")):
        with pytest.raises(DataError, match=rf"rows before it have {kind}; write names"):
            ids_of(tmp_path, form, *values)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore:.*are numbers")
def test_a_label_is_the_same_number_with_and_without_a_fraction_of_nothing(tmp_path, form):
    assert ids_of(tmp_path, form, 1.0, 2, 0.0) == [1, 2, 0]
    with pytest.raises(DataError):
        ids_of(tmp_path, form, 1.5)
    if form not in ("ner", "conll"):
        assert ids_of(tmp_path, form, 1.0, 0, labels=("0", "1")) == [1, 0]
        assert ids_of(tmp_path, form, "1.0", 1, labels=("1", "1.0")) == [1, 0]


@pytest.mark.parametrize("form", [form for form in FORMS if form not in ("ner", "conll")])
@pytest.mark.parametrize(
    ("labels", "values", "ids"),
    [
        (("1.0", "2.0", "3.0"), (2, 1.0, "3.0"), [1, 0, 2]),
        (("1.0", "0.0"), (0.0, 1.0), [1, 0]),
        (("+1", "-1"), (1, -1), [0, 1]),
        (("-1", "+1"), (1, -1), [1, 0]),
        (("-1.0", "1.0"), (-1.0, 1), [0, 1]),
        (("0.5", "1e0"), ("0.5", 1), [0, 1]),
        (("01", "02"), (1, "02"), [0, 1]),
        (("1", "a"), ("a", 1), [1, 0]),
    ],
)
def test_labels_that_are_numbers_are_compared_by_value(tmp_path, form, labels, values, ids):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ids_of(tmp_path, form, *values, labels=labels) == ids
        with pytest.raises(DataError, match=r"not in objective\.labels"):
            ids_of(tmp_path, form, 7, labels=labels)
        with pytest.raises(DataError, match=r"not in objective\.labels"):  # which of them?
            ids_of(tmp_path, form, "1.00", labels=("1", "1.0"))


@pytest.mark.parametrize("number", ["0", "0.0"])
def test_a_sets_own_numbers_are_its_own_however_they_are_written(tmp_path, number):
    data = of_file(tmp_path / "m.csv", f"premise,hypothesis,label\na,b,{number}")
    labels = ("contradiction", "neutral", "entailment")
    (example,) = TASKS["mnli"]().examples(data, "test", labels)
    assert labels[example["label"]] == "entailment"


def test_what_is_a_whole_number():
    assert [integer(value) for value in (3, 3.0, -1.0, 0)] == [3, 3, -1, 0]
    others = (True, 1.5, float("nan"), float("inf"), "3", None, [3])
    assert [integer(value) for value in others] == [None] * len(others)


@pytest.mark.parametrize("gold", [1, 1.0, "1", "1.0", "b"])
@pytest.mark.parametrize("name", ["multiple_choice", "schema"])
def test_the_right_choice_may_be_1_0(tmp_path, name, gold):
    texts = {"choices": ["x", "y"], "contexts": ["x", "y"]}
    row = {"context": "c", "continuation": "d", "gold": gold} | texts
    data = of_file(tmp_path / "a.jsonl", json.dumps(row))
    (example,) = TASKS[name]().examples(data, "test")
    assert example["gold"] == 1


@pytest.mark.parametrize("gold", [1.5, "1.5", 2.0, "2.0", True])
def test_a_choice_is_a_whole_number_among_them(tmp_path, gold):
    row = {"context": "c", "choices": ["x", "y"], "gold": gold}
    data = of_file(tmp_path / "a.jsonl", json.dumps(row))
    with pytest.raises(DataError, match="column 'gold' holds"):
        TASKS["multiple_choice"]().examples(data, "test")


def test_the_other_numbers_of_rows_may_be_1_0_as_well(tmp_path):
    answers = {"text": ["b"], "answer_start": [2.0]}
    row = {"id": 7.0, "question": "q", "context": "a b", "answers": answers}
    data = of_file(tmp_path / "q.jsonl", json.dumps(row))
    (example,) = TASKS["question_answering"]().examples(data, "test")
    assert (example["id"], example["span"], example["own_id"]) == ("7", (2, 3), 7)
    answers["answer_start"] = [2.5]
    data = of_file(tmp_path / "q.jsonl", json.dumps(row))
    with pytest.raises(DataError, match="answer_start"):
        TASKS["question_answering"]().examples(data, "test")
    row = {"premise": "a", "hypothesis": "b", "label": 1.0, "idx": 5.0}
    data = of_file(tmp_path / "m.jsonl", json.dumps(row))
    (example,) = TASKS["mnli"]().examples(data, "test", ("entailment", "neutral", "contradiction"))
    assert (example["label"], example["index"]) == (1, "5")
