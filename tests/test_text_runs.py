"""Text tasks from the command line: trained, evaluated with beams, killed while they generate."""

import json
import os
import signal
import subprocess
import sys

import pytest
from command_line import ROOT, CommandLine

from flaxlm.metrics.measure import scores_of
from flaxlm.metrics.texts import text_measures

RECIPE = """
def get_config(arg=""):
    size = dict(width=16, num_layers=1, num_heads=2, init_std=0.3, positions="relative")
    # What compiles quickly.
    size |= dict(norm="rmsnorm", attention_bias=False, attention_out_bias=False, mlp_bias=False)
    size |= dict(scan_layers=False, remat="none")
    return dict(
        tokenizer=dict(kind="byte", sentinels=0),
        data=dict(path="{root}/train.jsonl", split="file", valid_path="{root}/valid.jsonl"),
        model=dict(name=arg, **size),
        objective=dict(name="text_to_text", target_length=12),
        optimizer=dict(name="sgd", learning_rate=0.1, schedule="constant", clip_norm=0.0),
        train=dict(steps=3, batch_size=4, length=64),
        eval=dict(batch_size=4),
    )
"""
WORDS = ["eins zwei", "drei", "vier fünf", "sechs", "sieben acht", "neun"]
TALK = [{"role": "user", "content": "count"}, {"role": "assistant", "content": "one two"}]


@pytest.fixture(scope="module")
def run(tmp_path_factory, compilation_cache):
    return CommandLine(tmp_path_factory.mktemp("line"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("texts")
    (root / "recipe.py").write_text(RECIPE.format(root=root))
    for split in ("train", "valid"):
        (root / f"{split}.de").write_text("\n".join(WORDS * 3))
        (root / f"{split}.en").write_text("\n".join(w.upper() for w in WORDS * 3))
        talks = [TALK * n for n in (1, 2)] * 4
        rows = [json.dumps({"messages": messages}) + "\n" for messages in talks]
        (root / f"{split}.jsonl").write_text("".join(rows))
    return root


def good(done):
    assert done.code == 0, done.err
    return done


def report(workdir):
    (directory,) = (workdir / "evaluations").iterdir()
    rows = (directory / "predictions.jsonl").read_text().splitlines()
    scores = json.loads((directory / "scores.json").read_text())
    return directory, [json.loads(row) for row in rows], scores


def test_an_encoder_decoder_translates(run, root, tmp_path):
    workdir = tmp_path / "run"
    options = [f"--config={root / 'recipe.py'}:encoder_decoder", "--config.task.name=translation"]
    options += ["--config.task.source=de", "--config.task.target=en"]
    options += [f"--config.data.{key}={root / split}.de"
                for key, split in (("path", "train"), ("valid_path", "valid"))]  # fmt: skip
    options += ["--config.eval.metric=chrf", "--config.eval.mode=max"]
    options += ["--config.objective.pack=True", "--config.objective.num_beams=3"]
    options += ["--config.objective.length_penalty=0.0"]
    done = good(run("train", *options, f"--workdir={workdir}"))
    assert "valid/chrf" in done.err  # generated in the loop, because it decides
    directory, rows, scores = report(workdir)
    assert directory.name == "translation-valid"
    assert [row["input"] for row in rows] == WORDS * 3
    assert [row["gold"] for row in rows] == [w.upper() for w in WORDS * 3]
    assert [row["id"].rpartition(":")[2] for row in rows] == [str(n + 1) for n in range(18)]
    said = [row["prediction"] for row in rows]
    golds = [row["gold"] for row in rows]
    expected = scores_of(text_measures(said, golds, ["bleu", "chrf"]))
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value)
        assert scores[f"{name}_low"] <= value <= scores[f"{name}_high"]
    assert scores["truncated"] == 0 and scores["loss_low"] < scores["loss"] < scores["loss_high"]
    good(run("generate", f"--workdir={workdir}", "--prompt=drei", "--num_beams=3",
             "--num_samples=2", "--length_penalty=0", "--max_new_tokens=12"))  # fmt: skip
    made = [json.loads(line) for line in (workdir / "generations.jsonl").open()]
    assert [g["prompt"] for g in made] == ["drei", "drei"]
    (asked,) = {(r["prediction"], r["score"]) for r in rows if r["input"] == "drei"}
    assert made[0]["text"].strip() == asked[0]
    assert made[0]["logprob"] == pytest.approx(asked[1], abs=1e-4)
    assert made[0]["logprob"] > made[1]["logprob"]
    refused = run("generate", f"--workdir={workdir}", "--prompt=x", "--num_beams=3", "--top_k=2")
    assert refused.code == 2 and "top_k=2 has no meaning with num_beams=3" in refused.err


KILLED = """
import os, runpy, signal, sys
from flaxlm.inference import decoding
batch, left = decoding._decode_batch, [2]
def decode(*arguments):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return batch(*arguments)
decoding._decode_batch = decode
sys.argv = ["flaxlm", *sys.argv[1:]]
runpy.run_module("flaxlm", run_name="__main__", alter_sys=True)
"""


def test_a_decoder_talks_and_an_evaluation_that_was_killed_ends_the_same(run, root, tmp_path):
    workdir = tmp_path / "run"
    options = [f"--config={root / 'recipe.py'}:decoder", "--config.task.name=chat"]
    options += ["--config.task.every_turn=True", "--config.train.length=43"]
    options += ["--config.train.buckets=(36,)"]
    done = good(run("train", *options, f"--workdir={workdir}"))
    assert "of 12 training examples: 4 truncated to fit their rows" in done.err
    directory, rows, scores = report(workdir)
    assert scores["truncated"] == 4 and len(rows) == 12
    first = {p.name: p.read_bytes() for p in directory.iterdir()}
    for path in directory.iterdir():
        path.unlink()
    command = [sys.executable, "-c", KILLED, "evaluate", f"--workdir={workdir}"]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    killed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL and not any(directory.iterdir()), killed.stderr
    good(run("evaluate", f"--workdir={workdir}"))
    assert {p.name: p.read_bytes() for p in directory.iterdir()} == first
