"""`python -m flaxlm glue` on small files: trained, scored, killed, gone on with, handed in."""

import json
import random
import shutil

import pytest
import tiny_runs as tiny

from flaxlm import __main__ as command
from flaxlm import sharding
from flaxlm.commands import glue as benchmark
from flaxlm.errors import ConfigError, DataError, MissingInput, Unsafe
from flaxlm.training import config as run_config
from flaxlm.training.checkpoint import Checkpointer
from flaxlm.training.inputs import Inputs
from flaxlm.training.step import make_train_step

WORDS = "the sea was calm and grey that day we rowed to a far green island".split()
SHORT = (
    "--config.train.epochs=0",
    "--config.train.steps=4",
    "--config.train.batch_size=8",
    "--config.train.length=24",
    "--config.train.buckets=()",
    "--config.eval.every=2",
    "--config.eval.batch_size=8",
    "--config.checkpoint.every=2",
)


def sentences(seed, count):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=3)) for _ in range(count)]


pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """CoLA without a header, MNLI of which mm is a part, QNLI without a train file."""
    root = tmp_path_factory.mktemp("data")
    cola, mnli, qnli = (root / name for name in ("CoLA", "glue_mnli", "qnli"))
    for folder in (cola, mnli, qnli):
        folder.mkdir()
    for seed, (name, count) in enumerate((("train", 24), ("dev", 9))):
        rows = [f"gj04\t{i % 2}\t\t{text}\n" for i, text in enumerate(sentences(seed, count))]
        (cola / f"{name}.tsv").write_text("".join(rows))
    rows = [f"{10 + i}\t{text}\n" for i, text in enumerate(sentences(3, 5))]
    (cola / "test.tsv").write_text("index\tsentence\n" + "".join(rows))
    labels = ("neutral", "entailment", "contradiction")
    for seed, (name, count) in enumerate(
        (("train", 24), ("dev_matched", 7), ("dev_mismatched", 6), ("test_mismatched", 3))
    ):
        texts = sentences(10 + seed, 2 * count)
        rows = [
            {"premise": a, "hypothesis": b, "label": labels[i % 3]}
            for i, (a, b) in enumerate(zip(texts[::2], texts[1::2], strict=True))
        ]
        if name.startswith("test"):
            rows = [row | {"label": -1} for row in rows]
        (mnli / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (qnli / "dev.tsv").write_text("index\tquestion\tsentence\tlabel\n0\ta\tb\tentailment\n")
    return root


@pytest.fixture(scope="module")
def init(tmp_path_factory):
    """A run that has not begun: random weights, a tokenizer."""
    root = tmp_path_factory.mktemp("init")
    (root / "text.txt").write_text("\n\n".join(sentences(0, 40)))
    recipe = tiny.recipe(
        "recurrent",  # compiled in a third of a Transformer's time
        model={"vocab_size": 281, "num_layers": 1},
        data={"path": str(root / "text.txt"), "document": "paragraph", "valid_fraction": 0.0},
    )
    config = run_config.from_dict(recipe)
    with Inputs.open(config, root / "run") as inputs:
        program = make_train_step(config, sharding.make_mesh(config.sharding), 1)
        files = {"extra": inputs.identity(), "files": inputs.files()}
        with program.mesh(), Checkpointer(root / "run", **files) as saved:
            saved.save(0, program.init(0), wait=True)
    return root / "run"


def run(data, init, workdir, *more, rate=0.01):
    options = [f"--init={init}", f"--data={data}", f"--workdir={workdir}"]
    command.run(["glue", *options, f"--config.optimizer.learning_rate={rate}", *SHORT, *more])
    return json.loads((workdir / "glue.json").read_text())


def predictions(workdir):
    found = {}
    for path in sorted(workdir.rglob("predictions.jsonl")):
        found[str(path.relative_to(workdir))] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def whole(data, init, tmp_path_factory):
    """The benchmark in one go: (directory, `glue.json`, what was printed)."""
    workdir = tmp_path_factory.mktemp("whole") / "glue"
    result = run(data, init, workdir)
    return workdir, result


def test_every_task_is_scored_or_listed_with_the_reason(whole, data):
    workdir, result = whole
    assert list(result["tasks"]) == ["cola", "mnli", "mnli_mm"]
    assert "has no file train, and" in result["skipped"].pop("qnli")
    absent = ["sst2", "mrpc", "stsb", "qqp", "rte", "wnli"]
    assert sorted(result["skipped"]) == sorted(absent)
    assert all(why.startswith("there is no folder") for why in result["skipped"].values())
    scores = {name: entry["valid"] for name, entry in result["tasks"].items()}
    mnli = (scores["mnli"]["accuracy"] + scores["mnli_mm"]["accuracy"]) / 2
    assert result["average"] == pytest.approx((scores["cola"]["matthews"] + mnli) / 2)
    assert result["how_many"] == 2
    counts = {name: text.count(b"\n") for name, text in predictions(workdir).items()}
    assert counts == {
        "cola/evaluations/cola-test/predictions.jsonl": 5,
        "cola/evaluations/cola-valid/predictions.jsonl": 9,
        "mnli/evaluations/mnli-valid/predictions.jsonl": 7,
        "mnli/evaluations/mnli_mm-test/predictions.jsonl": 3,
        "mnli/evaluations/mnli_mm-valid/predictions.jsonl": 6,
    }


def test_answers_to_the_test_files_are_handed_in(whole):
    workdir, result = whole
    handed = {path.name: path.read_text() for path in (workdir / "submission").iterdir()}
    assert sorted(handed) == ["CoLA.tsv", "MNLI-mm.tsv"]
    lines = (workdir / "cola/evaluations/cola-test/predictions.jsonl").read_text().splitlines()
    answers = [json.loads(line) for line in lines]
    assert [answer["gold"] for answer in answers] == [None] * 5
    rows = [f"{10 + i}\t{answer['prediction']}\n" for i, answer in enumerate(answers)]
    assert handed["CoLA.tsv"] == "index\tprediction\n" + "".join(rows)
    names = {line.split("\t")[1] for line in handed["MNLI-mm.tsv"].splitlines()[1:]}
    assert names <= {"entailment", "neutral", "contradiction"}
    assert result["tasks"]["cola"]["test"].keys() == {"judged", "step"}  # there is nothing to score


class Killed(Exception):
    """Stands for a signal that nobody can catch."""


def test_killed_anywhere_and_started_again_ends_the_same(whole, data, init, tmp_path, monkeypatch):
    workdir = tmp_path / "glue"
    real = benchmark.train, benchmark.evaluate

    def killed(*arguments, **options):
        raise Killed

    # In the middle of the second run.
    def dies_in_mnli(config, place, *rest):
        if config.task_name == "mnli":
            monkeypatch.setattr("flaxlm.train.MetricWriter.push", killed)
        return real[0](config, place, *rest)

    monkeypatch.setattr(benchmark, "train", dies_in_mnli)
    with pytest.raises(Killed):
        run(data, init, workdir)
    monkeypatch.undo()
    first = json.loads((workdir / "glue.json").read_text())
    assert list(first["tasks"]) == ["cola"]

    # After training, before the last evaluation.
    trained = []

    def train_noted(config, place, *rest):
        trained.append(config.task_name)
        return real[0](config, place, *rest)

    monkeypatch.setattr(benchmark, "train", train_noted)
    monkeypatch.setattr(benchmark, "evaluate", killed)
    with pytest.raises(Killed):
        run(data, init, workdir)
    monkeypatch.setattr(benchmark, "evaluate", real[1])
    result = run(data, init, workdir)
    assert trained == ["mnli"]  # cola was finished, and then mnli was

    assert predictions(workdir) == predictions(whole[0])
    expected = whole[1]["tasks"]
    for name, entry in result["tasks"].items():
        assert entry["valid"] == expected[name]["valid"]
    assert result["tasks"]["cola"] == first["tasks"]["cola"]

    # Figures that no report has are made again.
    told = json.loads((workdir / "glue.json").read_text())
    told["tasks"]["cola"]["valid"]["accuracy"], _ = 0.987, told.pop("checksum")
    (workdir / "glue.json").write_text(json.dumps(told))
    result = run(data, init, workdir)
    assert trained == ["mnli", "cola"]
    assert result["tasks"]["cola"]["valid"] == expected["cola"]["valid"]

    # A test file that comes later is answered, and nothing is trained again.
    more = tmp_path / "more"
    shutil.copytree(data, more)
    (more / "glue_mnli" / "test_matched.jsonl").write_text('{"premise": "a", "hypothesis": "b"}\n')
    shutil.copytree(workdir, tmp_path / "again")
    config = tmp_path / "again" / "mnli" / "config.json"
    config.write_text(config.read_text().replace(str(data), str(more)))
    result = run(more, init, tmp_path / "again", "--tasks=mnli")
    assert trained == ["mnli", "cola", "mnli"]
    assert (tmp_path / "again" / "submission" / "MNLI-m.tsv").read_text().count("\n") == 2
    assert result["tasks"]["mnli"]["valid"] == expected["mnli"]["valid"]

    # Other rows are refused by the run.
    (more / "CoLA" / "dev.tsv").open("a").write("x\t1\t\tone more\n")
    config = tmp_path / "again" / "cola" / "config.json"
    config.write_text(config.read_text().replace(str(data), str(more)))
    with pytest.raises(Unsafe, match="was trained on other data"):
        run(more, init, tmp_path / "again", "--tasks=cola")

    # Other settings are another benchmark.
    with pytest.raises(Unsafe, match=r"optimizer.learning_rate: 0.01 -> 0.1"):
        run(data, init, workdir, rate=0.1)


def test_a_task_without_a_train_file_is_scored_with_a_run_that_stands_there(
    whole, data, init, tmp_path, capsys
):
    workdir = tmp_path / "glue"
    lone = tmp_path / "data" / "CoLA"
    lone.mkdir(parents=True)
    (lone / "dev.tsv").write_text((data / "CoLA" / "dev.tsv").read_text())
    with pytest.raises(MissingInput, match=r"cola: .*CoLA has no file train, and .*no run that"):
        run(lone.parent, init, workdir, "--tasks=cola")
    workdir.mkdir()
    (workdir / "cola").symlink_to(whole[0] / "cola")
    before = (whole[0] / "cola" / "config.json").read_bytes()
    result = run(lone.parent, init, workdir, "--tasks=cola")
    assert result["tasks"]["cola"]["valid"] == whole[1]["tasks"]["cola"]["valid"]
    assert (whole[0] / "cola" / "config.json").read_bytes() == before
    printed = capsys.readouterr().out
    score = result["tasks"]["cola"]["valid"]
    assert f"{100 * score['matthews']:.1f}" in printed and "1 of 9 tasks" in printed
    (workdir / "cola").rename(workdir / "rte")
    (lone.parent / "RTE").mkdir()
    (lone.parent / "RTE" / "dev.tsv").write_text("index\tsentence1\tsentence2\tlabel\n")
    with pytest.raises(MissingInput, match="rte is a run of another task"):
        run(lone.parent, init, workdir, "--tasks=rte")


def test_a_bad_row_of_the_last_task_is_found_before_the_first_is_trained(data, init, tmp_path):
    folder = tmp_path / "data"
    for name in ("CoLA", "RTE"):
        (folder / name).mkdir(parents=True)
    for name in ("train", "dev"):
        (folder / "CoLA" / f"{name}.tsv").write_text((data / "CoLA" / f"{name}.tsv").read_text())
        (folder / "RTE" / f"{name}.tsv").write_text("sentence1\tsentence2\tlabel\na\tb\tmaybe\n")
    with pytest.raises(DataError, match=r"RTE/train.tsv, line 2: .*'maybe'"):
        run(folder, init, tmp_path / "glue")
    assert not (tmp_path / "glue" / "cola").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--workdir=w --init=i", "--data=DIR is required"),
        ("--workdir=w --data=d", "--init=RUN or --init=hf:NAME_OR_DIR is required"),
        ("--workdir=w --data=d --init=i --config.data.path=x", "glue decides that for every task"),
        ("--workdir=w --data=d --init=i --config.task.name=cola", "glue decides that"),
        ("--workdir=w --data={data} --init={init} --config.seeds=2", "glue runs each task once"),
    ],
)
def test_what_is_missing_or_said_twice_is_refused(data, init, arguments, message):
    arguments = arguments.format(data=data, init=init).split()
    with pytest.raises(ConfigError, match=message):
        command.run(["glue", *arguments])
