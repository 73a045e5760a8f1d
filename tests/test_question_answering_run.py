"""Question answering through the command line: from SQuAD's JSON to answers, out and back."""

import json
import re

import numpy as np
import pytest
import torch
import transformers
from command_line import trained

NAMES, PLACES, FILL = ("ann", "bob", "李", "王"), ("rome", "oslo", "京"), ("a", "dog", "ran", "。")
ASKED = {"who": NAMES, "where": PLACES}


def write_questions(path, seed, count, hidden=False):
    """Write a toy set: the one name or place in a text, which may have none, is asked for."""
    rng = np.random.default_rng(seed)
    data = []
    for number in range(count):
        words, questions = list(rng.choice(FILL, rng.integers(6, 30))), []
        said = {q: str(rng.choice(kind)) for q, kind in ASKED.items() if rng.random() < 0.75}
        for word in said.values():
            words.insert(rng.integers(len(words) + 1), word)
        context = " ".join(words)
        for question in ASKED:
            entry = {"id": f"{path.stem}-{number}-{question}", "question": f"{question}?"}
            answers = [
                {"text": word, "answer_start": len(" ".join([*words[: words.index(word)], ""]))}
                for word in filter(None, [said.get(question)])
            ]
            if not hidden:
                entry |= {"answers": answers, "is_impossible": not answers}
            questions.append(entry)
        data.append({"paragraphs": [{"context": context, "qas": questions}]})
    path.write_text(json.dumps({"version": "toy", "data": data}))
    return str(path)


@pytest.fixture(scope="module")
def reader(tmp_path_factory, compilation_cache):
    """Return (command line, workdir): a tiny BERT trained to answer the toy questions."""
    root = tmp_path_factory.mktemp("reader")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, "?", *ASKED, *NAMES, *PLACES, *FILL]
    config = transformers.BertConfig(
        vocab_size=len(pieces), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=24, initializer_range=0.1,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertForMaskedLM(config).save_pretrained(root / "bert")
    (root / "bert" / "vocab.txt").write_text("\n".join(pieces))
    recipe = dict(
        init=f"hf:{root / 'bert'}",
        task=dict(name="squad2", max_answer_tokens=2, n_best=3),
        objective=dict(stride=8, question_length=2),
        data=dict(
            split="file",
            path=write_questions(root / "train.json", 0, 300),
            valid_path=write_questions(root / "valid.json", 1, 40),
            test_path=write_questions(root / "test.json", 2, 5, hidden=True),
        ),
        optimizer=dict(learning_rate=3e-3, schedule="linear"),
        train=dict(steps=240, batch_size=16, length=24, log_every=40),
    )
    return trained(root, recipe)


def report(workdir, split):
    directory = workdir / "evaluations" / f"squad2-{split}"
    lines = (directory / "predictions.jsonl").read_text().splitlines()
    files = {path.name: json.loads(path.read_text()) for path in directory.glob("*.json")}
    return [json.loads(line) for line in lines], files


def test_a_tiny_encoder_learns_to_answer_and_leaves_a_report(reader):
    _, workdir = reader
    result = json.loads((workdir / "result.json").read_text())
    assert result["best"] == pytest.approx(result["valid/f1"])
    assert result["valid/f1_low"] <= result["valid/f1"] <= result["valid/best_f1"]
    # Who always says the same has 0 of one of the two.
    assert min(result["valid/f1_has_answer"], result["valid/f1_no_answer"]) > 0.5
    rows, files = report(workdir, "valid")
    assert len(rows) == 80 and set(rows[0]["input"]) == {"question", "context"}
    assert files["submission.json"] == {row["id"]: row["prediction"] for row in rows}
    odds = files["null_odds.json"]
    assert all((row["prediction"] == "") == (odds[row["id"]] > 0) for row in rows)
    exact = np.mean([row["prediction"] in (row["gold"] or [""]) for row in rows])
    assert result["valid/exact_match"] == exact
    # Longer contexts, of several windows, are answered as well as the others.
    long = [row for row in rows if len(row["input"]["context"].split()) > 24]
    assert len(long) > 15 and np.mean([row["mistake"] for row in long]) < 0.5
    assert "examples are not answered rightly" in (
        workdir / "evaluations" / "squad2-valid" / "errors.txt"
    ).read_text()  # fmt: skip


def test_a_test_split_without_answers_is_answered_and_a_threshold_withholds(reader):
    line, workdir = reader
    options = ["--split=test", "--config.task.null_threshold=-1e9"]
    done = line("evaluate", f"--workdir={workdir}", *options)
    assert done.code == 0, done.err
    rows, files = report(workdir, "test")
    assert [(row["gold"], row["prediction"]) for row in rows] == [(None, "")] * 10
    assert len(files["n_best.json"]["test-0-who"]) == 3


def test_readers_go_to_transformers_and_back(reader, tmp_path):
    line, workdir = reader
    out = tmp_path / "out"
    done = line("convert", f"--from={workdir}", f"--to=hf:{out}")
    assert done.code == 0 and "BertForQuestionAnswering" in done.out, done.err
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    rows, files = report(workdir, "valid")
    short = [row for row in rows if len(row["input"]["context"].split()) < 24 - 5]
    assert len(short) > 20  # those of one window
    for row in short:
        question, context = row["input"]["question"], row["input"]["context"]
        read = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
        places = read.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            found = model(**read)
        begin, end = found.start_logits[0].double(), found.end_logits[0].double()
        inside = [n for n, owner in enumerate(read.sequence_ids(0)) if owner == 1]
        pairs = [(i, j) for i in inside for j in inside if 0 <= j - i < 2]
        best = max(pairs, key=lambda pair: float(begin[pair[0]] + end[pair[1]]))
        odds = float(begin[0] + end[0] - begin[best[0]] - end[best[1]])
        assert files["null_odds.json"][row["id"]] == pytest.approx(odds, abs=2e-5)
        text = context[places[best[0]][0] : places[best[1]][1]]
        assert row["prediction"] == ("" if odds > 0 else text)
    options = [f"--config.data.path={workdir.parent / 'valid.json'}", "--config.data.split=whole"]
    options += ["--config.task.unanswerable=True", "--config.task.max_answer_tokens=2"]
    options += ["--config.objective.stride=8", "--config.objective.question_length=2"]
    done = line("evaluate", f"--workdir=hf:{out}", "--config.train.length=24", *options)
    assert done.code == 0, done.err
    (again,) = (workdir.parent / "runs").glob("hf-*/evaluations/question_answering")
    assert json.loads((again / "submission.json").read_text()) == files["submission.json"]


@pytest.mark.parametrize(
    "option,message",
    [
        ("task.name=squad", r"train.json, article 2, .*has no answer, like .*task squad2"),
        ("train.length=12", "objective.stride=8 leaves gaps"),
        ("task.style=cmcr", "did you mean 'cmrc'"),
        ("objective.negatives=1.5", "objective.negatives=1.5"),
        ("eval.metric=exact", "exact_match"),
        ("model.name=encoder_decoder", "it works on: encoder, decoder"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(option, message, reader, tmp_path):
    line, workdir = reader
    recipe = f"--config={workdir.parent / 'recipe.json'}"
    done = line("train", recipe, f"--workdir={tmp_path / 'run'}", f"--config.{option}")
    assert done.code in (2, 65) and len(done.errors) == 1, done.err
    assert re.search(message, done.errors[0]) and "Traceback" not in done.err
