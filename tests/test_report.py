"""What an evaluation leaves behind says what was answered, and what was answered worst."""

import csv
import json

import numpy as np
import pytest
from matplotlib.image import imread
from sklearn.metrics import confusion_matrix

from flaxlm.data.sources import DataConfig
from flaxlm.errors import StorageError
from flaxlm.evaluation import compare, report
from flaxlm.evaluation.evaluate import Evaluation
from flaxlm.tasks import TASKS
from flaxlm.tasks.task import Answer

LABELS = ("no", "yes", 'a, or "b"')


def evaluation(n=200, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(classes), n)
    golds = [int(rng.choice(classes, p=row)) for row in shares]
    examples = [{"id": f"f:{i}", "text": f"text {i}", "text_pair": "第二"} for i in range(n)]
    answers = [Answer(int(row.argmax()), float(row.max()), row) for row in shares]
    return Evaluation({"accuracy": 0.5}, examples, golds, answers)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("report") / "here"
    found = evaluation()
    report.write(directory, found, TASKS["classification"](), LABELS, step=7)
    return directory, found


def test_each_example_stands_once_with_its_gold_and_its_answer(written):
    directory, found = written
    rows = [json.loads(line) for line in (directory / "predictions.jsonl").open(encoding="utf-8")]
    assert [row["id"] for row in rows] == [example["id"] for example in found.examples]
    for row, example, gold, answer in zip(
        rows, found.examples, found.golds, found.answers, strict=True
    ):
        assert row["input"] == {"text": example["text"], "text_pair": "第二"}
        assert (row["gold"], row["prediction"]) == (LABELS[gold], LABELS[answer.value])
        assert row["score"] == pytest.approx(answer.score, abs=1e-6)
        assert (row["mistake"] == 0) == (gold == answer.value)
    assert json.loads((directory / "scores.json").read_text())["step"] == 7
    assert json.loads((directory / "scores.json").read_text())["accuracy"] == 0.5


def test_the_confusion_matrix_is_that_of_scikit_learn(written):
    directory, found = written
    with (directory / "confusion.csv").open(newline="") as file:
        head, *lines = csv.reader(file)
    assert tuple(head[1:]) == LABELS == tuple(line[0] for line in lines)
    expected = confusion_matrix(found.golds, [answer.value for answer in found.answers])
    assert np.array_equal([[int(cell) for cell in line[1:]] for line in lines], expected)


def test_pictures_are_drawn(written):
    for name in ("confusion.png", "reliability.png"):
        picture = imread(written[0] / name)
        assert picture.shape[0] > 300 and picture[..., :3].std() > 0.05


def test_the_worst_errors_come_first_and_no_right_answer_is_among_them(written):
    directory, found = written
    text = (directory / "errors.txt").read_text()
    wrong = {e["id"]: a.score for e, g, a in zip(
        found.examples, found.golds, found.answers, strict=True) if a.value != g}  # fmt: skip
    assert text.startswith(f"{len(wrong)} of 200 examples")
    shown = [line for line in text.splitlines() if line.startswith("f:")]
    assert shown == sorted(wrong, key=lambda i: -wrong[i])[: report.WORST]
    assert max(map(len, text.splitlines())) <= report.COLUMN


def test_a_split_without_right_answers_is_answered_and_not_scored(tmp_path):
    found = evaluation(5)
    report.write(tmp_path, found, TASKS["classification"](), LABELS)
    assert len(list(tmp_path.iterdir())) > 4  # of other answers, and gone with them
    found = Evaluation({}, found.examples, [None] * 5, found.answers)
    report.write(tmp_path, found, TASKS["classification"](), LABELS)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").open()]
    assert [row["gold"] for row in rows] == [row["mistake"] for row in rows] == [None] * 5
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("SHA256SUMS", "predictions.jsonl", "scores.json")
    ]


def test_labels_that_the_font_lacks_are_drawn_as_numbers():
    assert report.drawable(("好", "差")) == ["0", "1"]
    assert report.drawable(("gut", "né")) == ["gut", "né"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        report.write(tmp_path / "file" / "x", evaluation(3), TASKS["classification"](), LABELS)


def test_a_row_keeps_its_own_id_and_its_place(tmp_path):
    rows = [{"id": name, "text": "t", "label": "a"} for name in ("x", "x", 7)] + [
        {"text": "t", "label": "b"}
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = TASKS["classification"]()
    examples = task.examples(DataConfig(path=str(path), split="whole"), "valid", ("a", "b"))
    golds = task.golds(examples)
    report.write(
        tmp_path / "out",
        Evaluation({"f1": 1.0}, examples, golds, task.perfect(golds)),
        task,
        ("a", "b"),
    )
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    named = [(row["id"], row["row"]) for row in map(json.loads, lines)]
    places = [f"rows.jsonl:{n}" for n in range(1, 5)]
    assert named == list(zip(["x", "x", 7, places[3]], places, strict=True))
    assert list(compare.mistakes(tmp_path / "out")) == places  # each, though two ids are one
