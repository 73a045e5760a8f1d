"""Taggers through the command line: from files to predictions, and to Hugging Face and back."""

import json

import hf_cases
import numpy as np
import pytest
import seqeval.metrics
import torch
import transformers
from command_line import trained
from seqeval.scheme import IOB2

FIRST, LAST = ("ann", "bob", "xy"), ("lee", "poe", "abc")  # some have several pieces


def write_sentences(path, seed, count):
    """Write a toy corpus: a person stands behind `mr`, a place behind `in`, by the same names."""
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(count):
        cue, kind = (("mr", "PER"), ("in", "LOC"))[rng.integers(2)]
        lines += [f"{letter}\tO" for letter in rng.choice([*"stuvw"], rng.integers(0, 9))]
        lines += [f"{cue}\tO", f"{rng.choice(FIRST)}\tB-{kind}"]
        lines += [f"{name}\tI-{kind}" for name in rng.choice(LAST, rng.integers(2))]
        lines += [".\tO", ""]
    path.write_text("\n".join(lines))
    return str(path)


TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


@pytest.fixture(scope="module")
def tagger(tmp_path_factory, compilation_cache):
    """Return (command line, workdir): a tiny BERT trained to tag the toy corpus."""
    root = tmp_path_factory.mktemp("tagger")
    letters = "abcdefghijklmnopqrstuvwxyz."
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, "mr", "in", *FIRST[:2], *LAST[:2], *letters, *(f"##{c}" for c in letters)]
    model = hf_cases.torch_model(
        hf_cases.CASES["bert"], "mlm", vocab_size=len(pieces), num_hidden_layers=1
    )
    model.save_pretrained(root / "bert")
    (root / "bert" / "vocab.txt").write_text("\n".join(pieces))
    recipe = dict(
        init=f"hf:{root / 'bert'}",
        init_weights=False,
        model=dict(init_std=0.1),
        task=dict(name="ner"),
        objective=dict(name="token_classification", labels=TAGS, stride=5),
        data=dict(
            split="file",
            path=write_sentences(root / "train.conll", 0, 800),
            valid_path=write_sentences(root / "valid.conll", 1, 30),
            test_path=str(root / "test.conll"),
        ),
        optimizer=dict(learning_rate=1e-2, schedule="linear"),
        train=dict(steps=120, batch_size=16, length=14, log_every=40),
    )
    (root / "test.conll").write_text("mr\nann\n.\n\n" + "s\n" * 20 + "in\nbob\npoe\n")
    return trained(root, recipe)


def report(workdir, split):
    lines = (workdir / "evaluations" / f"ner-{split}" / "predictions.jsonl").read_text()
    return [json.loads(line) for line in lines.splitlines()]


def test_a_tiny_encoder_learns_to_tag_and_leaves_a_report(tagger):
    _, workdir = tagger
    result = json.loads((workdir / "result.json").read_text())
    # Who knows names and not what they are of has half of the entities.
    assert result["valid/f1_micro"] > 0.75 and result["best"] > 0.75
    assert result["valid/f1_micro_low"] <= result["valid/f1_micro"] <= result["valid/f1_micro_high"]
    rows = report(workdir, "valid")
    assert len(rows) == 30 and rows[0]["input"].split() == [word for word, _ in rows[0]["gold"]]
    gold, said = (
        [[tag for _, tag in row[side]] for row in rows] for side in ("gold", "prediction")
    )
    strict = seqeval.metrics.f1_score(gold, said, mode="strict", scheme=IOB2)
    assert result["valid/f1_micro"] == pytest.approx(strict)
    names = {path.name for path in (workdir / "evaluations" / "ner-valid").iterdir()}
    assert {"errors.txt", "confusion.png", "confusion.csv", "reliability.png"} <= names
    counts = (workdir / "evaluations" / "ner-valid" / "confusion.csv").read_text().splitlines()
    total = sum(int(n) for line in counts[1:] for n in line.split(",")[1:])
    assert total == sum(map(len, gold))


def test_the_last_evaluation_of_a_run_is_what_evaluate_says(tagger):
    line, workdir = tagger
    directory = workdir / "evaluations" / "ner-valid"
    first = {path.name: path.read_bytes() for path in directory.iterdir()}
    done = line("evaluate", f"--workdir={workdir}", "--split=valid")
    assert done.code == 0, done.err
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == first


def test_a_test_split_without_tags_is_answered_word_by_word(tagger):
    line, workdir = tagger
    done = line("evaluate", f"--workdir={workdir}", "--split=test")
    assert done.code == 0, done.err
    rows = report(workdir, "test")
    assert [[word for word, _ in row["prediction"]] for row in rows] == [
        ["mr", "ann", "."],
        ["s"] * 20 + ["in", "bob", "poe"],
    ]
    assert [row["gold"] for row in rows] == [None, None]
    assert rows[0]["prediction"][1] == ["ann", "B-PER"]
    assert rows[1]["prediction"][20:] == [["in", "O"], ["bob", "B-LOC"], ["poe", "I-LOC"]]


def test_taggers_go_to_transformers_and_back(tagger, tmp_path):
    line, workdir = tagger
    out = tmp_path / "out"
    done = line("convert", f"--from={workdir}", f"--to=hf:{out}")
    assert done.code == 0 and "BertForTokenClassification" in done.out, done.err
    model = transformers.AutoModelForTokenClassification.from_pretrained(out)
    assert model.config.id2label == dict(enumerate(TAGS))
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    rows = [r for r in report(workdir, "valid") if len(r["input"].replace(" ", "")) < 14 - 2]
    assert len(rows) > 3  # those that stand in one row
    for row in rows:
        words = [word for word, _ in row["prediction"]]
        read = tokenizer(words, is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            best = model(**read).logits[0].argmax(-1).tolist()
        owners = read.word_ids(0)
        tags = [model.config.id2label[best[owners.index(w)]] for w in range(len(words))]
        assert tags == [tag for _, tag in row["prediction"]]
    valid = workdir.parent / "valid.conll"
    options = [f"--config.data.path={valid}", "--config.data.split=whole"]
    options += ["--config.train.length=14", "--config.objective.stride=5"]
    done = line("evaluate", f"--workdir=hf:{out}", *options)
    assert done.code == 0, done.err
    (back,) = (workdir.parent / "runs").glob("hf-*")
    config = json.loads((back / "config.json").read_text())
    assert (config["task"]["name"], config["task"]["scheme"]) == ("ner", "bio")
    assert tuple(config["objective"]["labels"]) == TAGS
    again = (back / "evaluations" / "ner" / "predictions.jsonl").read_text().splitlines()
    valid = report(workdir, "valid")
    assert [json.loads(row)["prediction"] for row in again] == [row["prediction"] for row in valid]
