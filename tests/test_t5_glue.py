"""GLUE in T5's words: every label and number goes into text and back."""

import json

import pytest

from flaxlm.data.sources import DataConfig
from flaxlm.errors import ConfigError
from flaxlm.tasks import TASKS
from flaxlm.tasks.glue import GLUE

QUESTIONS = {
    "cola": "cola sentence: A",
    "sst2": "sst2 sentence: A",
    "mrpc": "mrpc sentence1: A sentence2: B",
    "stsb": "stsb sentence1: A sentence2: B",
    "qqp": "qqp question1: A question2: B",
    "mnli": "mnli hypothesis: B premise: A",
    "qnli": "qnli question: A sentence: B",
    "rte": "rte sentence1: A sentence2: B",
    "wnli": "wnli sentence1: A sentence2: B",
}
# The meaning of the site's labels, by hand.
MEANING = {
    "cola": {"0": "unacceptable", "1": "acceptable"},
    "sst2": {"0": "negative", "1": "positive"},
    "mrpc": {"0": "not_equivalent", "1": "equivalent"},
    "qqp": {"0": "not_duplicate", "1": "duplicate"},
    "mnli": {name: name for name in ("entailment", "neutral", "contradiction")},
    "qnli": {name: name for name in ("entailment", "not_entailment")},
    "rte": {name: name for name in ("entailment", "not_entailment")},
    "wnli": {"0": "not_entailment", "1": "entailment"},
}


def glue_file(tmp_path, name, golds):
    """Write a table with the columns of a set, one row a gold."""
    kind = GLUE[name]
    texts = dict(zip([names[0] for names in kind.texts], "AB", strict=False))
    rows = [json.dumps(texts | {kind.gold[0]: gold}) + "\n" for gold in golds]
    (tmp_path / "a.jsonl").write_text("".join(rows))
    return DataConfig(path=str(tmp_path / "a.jsonl"), split="whole")


@pytest.mark.parametrize("name", MEANING)
def test_labels_go_into_words_and_back(tmp_path, name):
    task = TASKS["t5_glue"](set=name)
    data = glue_file(tmp_path, name, MEANING[name])
    found = task.examples(data, "train")
    assert [e["text"] for e in found] == [QUESTIONS[name]] * len(found)
    assert [e["target"] for e in found] == list(MEANING[name].values())
    golds = task.golds(found)
    answers = task.postprocess({"text": [f" {e['target']}\n" for e in found]}, found)
    assert [a.value for a in answers] == golds == list(range(len(golds)))
    reported = set(GLUE[name].reported)
    scores = task.metrics(answers, golds)
    assert scores == dict.fromkeys(reported, 1.0) | {"unparsed": 0.0}
    assert [task.show(gold) for gold in golds] == list(MEANING[name].values())
    # What is no label is wrong, whatever the right one is.
    said = task.postprocess({"text": ["Acceptable", ""] * 2}, [found[0]] * 4)
    wrong = task.metrics(said, [0, 1] * 2)
    assert wrong["unparsed"] == 1.0 and max(wrong[name] for name in reported) <= 0.0
    assert {task.mistake(answer, 0) for answer in said} == {1.0}
    assert task.show(said[0].value) == "Acceptable"
    assert task.intervals(said, [0, 1] * 2)["unparsed"] == (1.0, 1.0)
    (contents,) = task.files(answers, found).values()
    written = [line.split("\t")[1] for line in contents.splitlines()[1:]]
    assert written == list(MEANING[name])


def test_numbers_go_into_words_and_back(tmp_path):
    task = TASKS["t5_glue"](set="stsb")
    golds = [0.0, 0.29, 0.31, 1.5, 2.57, 3.25, 4.9, 5.0]
    found = task.examples(glue_file(tmp_path, "stsb", golds), "train")
    assert {e["text"] for e in found} == {QUESTIONS["stsb"]} and task.golds(found) == golds
    said = ["0.0", "0.2", "0.4", "1.6", "2.6", "3.2", "4.8", "5.0"]
    assert [e["target"] for e in found] == said
    answers = task.postprocess({"text": said}, found)
    assert all(abs(a.value - gold) <= 0.1 + 1e-9 for a, gold in zip(answers, golds, strict=True))
    assert task.metrics(answers, golds)["spearman"] == 1.0
    bad = task.postprocess({"text": ["much", "nan", "", *said[3:]]}, found)
    assert [a.value for a in bad[:4]] == ["much", "nan", "", 1.6]
    assert task.metrics(bad, golds)["unparsed"] == 3 / 8
    assert task.mistake(bad[0], 0.5) == 4.5 and task.mistake(bad[0], 4.0) == 4.0
    assert set(MEANING) | {"stsb"} == set(QUESTIONS) == set(GLUE) - {"mnli_mm"}
    with pytest.raises(ConfigError, match=r"task.set='mnly'.*mean 'mnli'"):
        TASKS["t5_glue"](set="mnly")
