"""The labels of a model mean what it calls them: whatever their order, case, or whose they are."""

import json
import pathlib
import re
import shutil
import types

import numpy as np
import pytest
import safetensors.numpy
from command_line import ROOT

from flaxlm.commands import evaluate
from flaxlm.commands.options import settle
from flaxlm.evaluation import report
from flaxlm.evaluation.evaluate import Evaluation
from flaxlm.tasks import TASKS
from flaxlm.tasks.labels import find_label, order_of_labels

NLI = ("entailment", "neutral", "contradiction")
STARS = tuple(f"LABEL_{i}" for i in range(3))
TAGS = ("O", "B-PER", "I-PER")


@pytest.mark.parametrize(
    ("task", "labels", "theirs", "order", "warning"),
    [
        ("mnli", NLI, ("contradiction", "neutral", "entailment"), [2, 1, 0], ""),
        ("mnli", NLI, ("NEUTRAL", "Entailment", " contradiction"), [1, 0, 2], ""),
        ("mnli", NLI, STARS, [0, 1, 2], "LABEL_0 as entailment"),
        ("mnli", NLI, ("1", "2", "3"), None, ""),
        ("mnli", NLI, ("0", "1", "2"), [0, 1, 2], "2 as contradiction"),
        ("mnli", NLI, ("entailment", "neutral", "neutral"), None, ""),
        ("mnli", NLI, ("entailment", "not_entailment"), None, ""),
        ("qnli", ("entailment", "not_entailment"), ("Not Entailment", "entailment"), [1, 0], ""),
        ("sst2", ("0", "1"), ("NEGATIVE", "POSITIVE"), [0, 1], ""),
        ("sst2", ("0", "1"), ("positive", "negative"), [1, 0], ""),
        ("sst2", ("1", "0"), ("positive", "negative"), [0, 1], ""),
        ("sst2", ("1", "0"), ("LABEL_0", "LABEL_1"), [1, 0], "LABEL_1 as positive"),
        ("sst2", ("0", "1"), ("bad", "good"), None, ""),
        ("mrpc", ("0", "1"), ("not-equivalent", "equivalent"), [0, 1], ""),
        ("wnli", ("0", "1"), ("entailment", "not_entailment"), [1, 0], ""),
        # Numbers that a person states are places; names alone never are.
        ("classification", ("1", "0"), ("NEGATIVE", "POSITIVE"), [1, 0], "NEGATIVE as 0"),
        ("classification", ("a", "b"), ("b", "c"), None, ""),
        ("ner", TAGS, ("I-PER", "b-per", "o"), [2, 1, 0], ""),
        # Alike but for case, so that case tells them apart.
        ("ner", ("a", "A"), ("A", "a"), [1, 0], ""),
        ("ner", ("x", "b"), ("A", "a"), None, ""),
    ],
)  # fmt: skip
def test_names_decide_and_numbers_are_places(task, labels, theirs, order, warning):
    places, said = order_of_labels(labels, theirs, TASKS[task].published)
    assert places == order
    assert warning in said and bool(said) == bool(warning)


def test_a_label_of_a_file_is_found_by_its_name_alone():
    assert find_label("B_per", TAGS) == "B-PER"
    assert find_label("b", ("a", "A", "b")) == "b"
    assert find_label("ä", ("a", "A")) is None
    assert find_label("A ", ("a", "A")) is None  # which of them?


@pytest.fixture(scope="module")
def model(shared, tmp_path_factory):
    """Return a function that names the classes of a model which always answers its class 0."""
    root = tmp_path_factory.mktemp("models")

    def renamed(*names: str) -> str:
        place = root / "-".join(names).replace(" ", "")
        if not place.exists():
            shutil.copytree(shared("cases/models/bertnli"), place)
            described = json.loads((place / "config.json").read_text())
            described["id2label"] = dict(enumerate(names))
            described["label2id"] = {name: index for index, name in enumerate(names)}
            (place / "config.json").write_text(json.dumps(described))
        return f"hf:{place}"

    return renamed


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Return a file of pairs, all of them contradictions."""
    path = tmp_path_factory.mktemp("rows") / "nli.jsonl"
    row = {"premise": "a dull afternoon", "hypothesis": "it rained", "label": "contradiction"}
    path.write_text(f"{json.dumps(row)}\n" * 8)
    return path


OWN = ("--config.task.name=classification", "--config.task.text_column=premise",
       "--config.task.pair_column=hypothesis")  # fmt: skip

UNDROPPED = [
    f"--config.model.{place}_dropout=0" for place in ("embed", "attention", "residual")
]  # what compiles quickly


@pytest.mark.parametrize(
    ("names", "options", "accuracy", "said"),
    [
        (("Contradiction", "ENTAILMENT", "neutral"), ("--config.task.name=mnli_mm",), 1.0, ""),
        (("Contradiction", "ENTAILMENT", "neutral"), OWN, 1.0, ""),
        (STARS, ("--config.task.name=mnli",), 0.0, "LABEL_0 as entailment"),
        (
            STARS,
            (*OWN, "--config.objective.labels=('contradiction','neutral','entailment')"),
            1.0,
            "LABEL_0 as contradiction",
        ),
    ],
)
def test_a_foreign_classifier_is_scored_by_what_it_says(
    names, options, accuracy, said, run, model, rows
):
    done = run("evaluate", f"--workdir={model(*names)}", *options, f"--config.data.path={rows}",
               "--config.eval.batch_size=8", "--config.train.length=16")  # fmt: skip
    assert done.code == 0, done.err
    assert re.search(rf"accuracy +{accuracy:.4f} ", done.out), done.out
    assert re.search(r"/examples +8 of 8", done.out)  # all of the file
    assert said in done.err and ("taken by their places" in done.err) == bool(said)


def test_a_file_of_glue_without_answers_is_answered(model, tmp_path, monkeypatch, capsys):
    row = {"premise": "a dull afternoon", "hypothesis": "it rained", "label": "-1"}
    path = tmp_path / "test.tsv"
    path.write_text("".join("\t".join(line) + "\n" for line in (row, *[row.values()] * 3)))
    options = evaluate.Options(workdir=model(*NLI))
    typed = {"task.name": "mnli", "data.path": str(path)}
    _, config = settle("evaluate", options, None, typed)
    examples = config.task.examples(config.data, options.split, config.objective.labels)
    answers = config.task.postprocess({"scores": np.eye(3)}, examples)
    judged = Evaluation({}, examples, config.task.golds(examples), answers)
    monkeypatch.setattr(report, "evaluate_split", lambda *arguments, **options: judged)
    inputs = types.SimpleNamespace(
        config=config,
        workdir=tmp_path,
        amount=lambda split: {"examples": len(examples), "examples_read": 3},
        data=lambda splits: {},
    )
    program = types.SimpleNamespace(config=config)
    scores = report.examine(program, {}, inputs, options.split, 0)
    assert scores == {"mnli/examples": 0, "mnli/examples_read": 3}
    said = re.search(
        r"no right answers, so no scores: the answers are in (\S+)", capsys.readouterr().err
    )
    rows = [json.loads(line) for line in pathlib.Path(said[1]).read_text().splitlines()]
    assert [row["prediction"] for row in rows] == list(NLI) and {row["gold"] for row in rows} == {
        None
    }
    assert (pathlib.Path(said[1]).parent / "MNLI-m.tsv").exists()


@pytest.mark.parametrize(
    ("names", "task"), [(("a", "b", "c"), "mnli"), (("negative", "neutral", "positive"), "sst2")]
)
def test_labels_of_something_else_are_refused_with_both_lists(names, task, run, model, rows):
    done = run("evaluate", f"--workdir={model(*names)}", f"--config.task.name={task}",
               f"--config.data.path={rows}", "--config.data.split=whole")  # fmt: skip
    assert done.code == 2 and len(done.errors) == 1
    ours = TASKS[task].published.values() or NLI
    assert all(f"'{name}'" in done.err for name in (*names, *ours))
    assert "allow_missing" not in done.err  # which `evaluate` does not take


def test_fine_tuning_takes_the_head_in_the_order_of_its_own_labels(run, model, rows, tmp_path):
    """First from the model, in another order; then from that run, in a third one."""

    def fine_tuned(init: str, workdir, labels: tuple, *options: str):
        return run(
            "train", f"--config={ROOT}/configs/finetune.py", f"--config.init={init}",
            f"--workdir={workdir}",
            f"--config.data.path={rows}", f"--config.data.valid_path={rows}", *OWN,
            f"--config.objective.labels={labels}", "--config.train.epochs=0",
            "--config.train.steps=1", "--config.train.batch_size=8", "--config.train.length=16",
            "--config.optimizer.learning_rate=1e-9", *UNDROPPED, *options,
        )  # fmt: skip

    def accuracy(workdir):
        return json.loads((next(workdir.glob("evaluations/*")) / "scores.json").read_text())[
            "accuracy"
        ]

    foreign, one = model("contradiction", "neutral", "entailment"), tmp_path / "one"
    first = fine_tuned(foreign, one, NLI)
    assert first.code == 0, first.err
    assert accuracy(one) == 1.0
    second = fine_tuned(one, tmp_path / "two", NLI[2:] + NLI[:2])
    assert second.code == 0, second.err
    assert accuracy(tmp_path / "two") == 1.0
    # A run is asked with its labels in any order, too.
    done = run("evaluate", f"--workdir={one}", f"--config.objective.labels={NLI[1:] + NLI[:1]}")
    assert done.code == 0 and re.search(r"accuracy +1.0000 ", done.out), done.err
    # The export says what the outputs are, in their order.
    assert run("convert", f"--from={tmp_path / 'two'}", f"--to=hf:{tmp_path / 'out'}").code == 0
    described = json.loads((tmp_path / "out" / "config.json").read_text())
    assert tuple(described["id2label"].values()) == NLI[2:] + NLI[:2]
    # Other labels, or another number of them: the head has to start fresh, by the flag named.
    for init, labels in ((foreign, ("contradiction", "x", "y")), (one, ("contradiction", "x"))):
        refused = fine_tuned(init, tmp_path / "fresh", labels)
        assert refused.code == 2 and "'neutral'" in refused.err and "'x'" in refused.err
        flag = re.search(r"--allow_missing='([^']+)'", refused.err)
    done = fine_tuned(one, tmp_path / "fresh", labels, f"--allow_missing={flag[1]}")
    assert done.code == 0, done.err
    assert re.search(r"fresh: .*heads/classification/kernel", done.err), done.err


def test_a_head_that_answers_with_a_number_is_read_as_one(run, shared, tmp_path):
    """The hub has one label for it, LABEL_0, where a regression here has none."""
    place = tmp_path / "number"
    shutil.copytree(shared("cases/models/bertnli"), place)
    described = json.loads((place / "config.json").read_text())
    described |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    (place / "config.json").write_text(json.dumps(described))
    weights = safetensors.numpy.load_file(place / "model.safetensors")
    weights |= {f"classifier.{n}": weights[f"classifier.{n}"][:1] for n in ("weight", "bias")}
    safetensors.numpy.save_file(weights, place / "model.safetensors")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": "it rained", "score": n}) + "\n" for n in range(4)))
    task = ("--config.task.name=regression", f"--config.data.path={rows}")
    done = run("evaluate", f"--workdir=hf:{place}", *task)
    assert done.code == 0 and "4 of 4" in done.out, done.err
    # One model is asked, and it has no checkpoints.
    for more, said in (
        (f"--config.init=hf:{place}", "both name the model"),
        ("--checkpoint=7", "has no checkpoints"),
    ):
        refused = run("evaluate", f"--workdir=hf:{place}", *task, more)
        assert refused.code == 2 and said in refused.err
    # Where classes are asked for, a number is none.
    refused = run(
        "evaluate", f"--workdir=hf:{place}", *OWN, f"--config.objective.labels={NLI}",
        f"--config.data.path={rows}",
    )  # fmt: skip
    assert refused.code == 2 and "LABEL_0" in refused.err, refused.err
