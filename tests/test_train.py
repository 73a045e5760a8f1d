"""The loop end to end on a small text: resume, stop, diverge, early stopping, init, evaluation."""

import json
import math
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tiny_runs as tiny
from numerics import EPS

from flaxlm import tree
from flaxlm.commands import evaluate, inspect
from flaxlm.errors import ConfigError, Diverged, Preempted, StorageError, Unsafe
from flaxlm.training import config as run_config
from flaxlm.training.checkpoint import Checkpointer

ROOT = pathlib.Path(__file__).parents[1]
WORDS = "the sea was calm and grey that day we rowed to a far green island under rain".split()
DIGESTS = ("step", "digest/params", "digest/opt_state", "digest/next_batch")


pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def train(one_device):
    with tiny.shared_programs() as train:
        yield train


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    draw = random.Random(0)
    lines = []
    for _ in range(400):
        sentence = " ".join(draw.choices(WORDS, k=8)).capitalize()
        lines.append(f"{sentence}. It {draw.choice(WORDS)} {draw.choice(WORDS)} again.\n\n")
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("".join(lines))
    return path


def config_of(corpus, family="causal", **sections):
    """Return a run's config; the causal one is spread over all eight devices."""
    small = {"num_layers": 1} if family == "recurrent" else tiny.QUICK
    recipe = tiny.recipe(
        family,
        model=small | {"vocab_size": 281} | sections.pop("model", {}),
        data=dict(path=str(corpus), document="paragraph", valid_fraction=0.1,
                  sentences=family == "masked") | sections.pop("data", {}),
        sharding=dict(data=8 if family == "causal" else 1),
        checkpoint=dict(every=2, keep=3) | sections.pop("checkpoint", {}),
        **sections,
    )  # fmt: skip
    return run_config.from_dict(recipe)


def digests(config, workdir):
    result = inspect.inspect(config, workdir, "latest")
    return {name: result[name] for name in DIGESTS}


def steps_of(workdir, key="loss"):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if key in row]


@pytest.fixture(scope="module")
def finished(train, corpus, tmp_path_factory):
    """One run of each family, six steps without interruption."""
    runs = {}
    for family in tiny.FAMILIES:
        drop = {"embed_dropout": 0.1}
        config = config_of(corpus, family, train=dict(steps=6), model=drop, eval=dict(every=3))
        workdir = tmp_path_factory.mktemp(family) / "run"
        runs[family] = config, workdir, train(config, workdir)
    return runs


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_training_learns_and_reports(family, finished):
    _, workdir, result = finished[family]
    assert result["step"] == 6
    assert result.items() <= json.loads((workdir / "result.json").read_text()).items()
    assert 0 < result["valid/loss"] < math.log(281) + 1.5
    assert steps_of(workdir) == [1, 2, 3, 4, 5, 6]
    assert steps_of(workdir, "valid/loss") == [3, 6]
    assert (workdir / "tensorboard").is_dir()
    assert {"command", "commit", "versions", "fingerprint"} <= json.loads(
        (workdir / "run.json").read_text()
    ).keys()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_resumed_equals_uninterrupted(train, family, corpus, finished, tmp_path):
    config, whole, _ = finished[family]
    short = config_of(corpus, family, train=dict(steps=4),
                      model={"embed_dropout": 0.1}, eval=dict(every=3))  # fmt: skip
    train(short, tmp_path / "run")
    train(config, tmp_path / "run")
    assert digests(config, tmp_path / "run") == digests(config, whole)
    assert steps_of(tmp_path / "run") == [1, 2, 3, 4, 5, 6]


def test_resuming_after_the_end_changes_nothing(train, finished):
    config, workdir, result = finished["causal"]
    before = digests(config, workdir)
    assert train(config, workdir)["step"] == 6
    assert digests(config, workdir) == before
    assert json.loads((workdir / "result.json").read_text())["valid/loss"] == result["valid/loss"]


def test_a_sigterm_saves_and_asks_for_a_restart(train, corpus, finished, tmp_path):
    config = config_of(corpus, "recurrent", train=dict(steps=10**6), checkpoint=dict(every=0))
    timer = threading.Timer(1.0, lambda: signal.raise_signal(signal.SIGTERM))

    def stop_soon():
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            time.sleep(0.05)
        timer.start()

    threading.Thread(target=stop_soon).start()
    with pytest.raises(Preempted, match="asked to stop, and saved"):
        train(config, tmp_path / "run")
    step = digests(config, tmp_path / "run")["step"]
    assert step >= 1
    longer = config_of(corpus, "recurrent", train=dict(steps=step + 2), checkpoint=dict(every=0))
    assert train(longer, tmp_path / "run")["step"] == step + 2


def test_changed_config_is_refused_and_listed(train, corpus, finished):
    _, workdir, _ = finished["causal"]
    changed = config_of(corpus, train=dict(steps=6), optimizer=dict(b1=0.8))
    with pytest.raises(Unsafe, match=r"optimizer.b1: 0.9 -> 0.8"):
        train(changed, workdir)


def test_divergence_stops_with_step_and_last_good_checkpoint(train, corpus, tmp_path):
    config = config_of(
        corpus,
        train=dict(steps=30, skip_nonfinite=2),
        optimizer=dict(name="sgd", learning_rate=1e30, clip_norm=0.0),
    )
    with pytest.raises(Diverged, match=r"not finite at step \d+.*after 2 skipped"):
        train(config, tmp_path / "run")


def test_early_stopping_ends_the_run_and_stays_ended(train, corpus, tmp_path, capfd):
    config = config_of(
        corpus,
        "recurrent",
        train=dict(steps=40),
        optimizer=dict(learning_rate=1e-9),
        eval=dict(every=2, patience=2, metric="accuracy", mode="max"),
    )
    result = train(config, tmp_path / "run")
    assert result["step"] < 40
    assert train(config, tmp_path / "run")["step"] == result["step"]
    # Nothing was learnt, so the first of the evaluations is the best, and what readers take.
    capfd.readouterr()
    assert evaluate.evaluate(config, tmp_path / "run", "valid", "")["step"] == 2
    assert f"{tmp_path / 'run'} step 2 (the best, valid/accuracy" in capfd.readouterr().err
    assert evaluate.evaluate(config, tmp_path / "run", "valid", "latest")["step"] == result["step"]


def test_unknown_eval_metric_names_the_valid_ones(train, corpus, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'accuracy'"):  # before there is a mode
        config_of(corpus, train=dict(steps=2), eval=dict(metric="acuracy"))
    config = config_of(corpus, train=dict(steps=2), eval=dict(metric="acuracy", mode="max"))
    with pytest.raises(ConfigError, match="did you mean 'accuracy'"):
        train(config, tmp_path / "run")


def test_evaluation_counts_every_token_once_whatever_the_batch(finished):
    config, workdir, result = finished["causal"]
    inputs_tokens = result["valid/tokens"]
    for batch_size in (8, 24, 64):
        changed = run_config.from_dict(config.raw | {"eval": {"batch_size": batch_size}})
        scores = evaluate.evaluate(changed, workdir, "valid", "latest")
        assert scores["valid/tokens"] == inputs_tokens
        assert scores["valid/loss"] == pytest.approx(result["valid/loss"], rel=1e-6)
    # Each document is BOS, its bytes, EOS; all of them but BOS are scored.
    (manifest,) = (workdir / "cache").glob("*/manifest.json")
    counts = json.loads(manifest.read_text())["splits"]["valid"]["counts"]
    assert inputs_tokens == counts["bytes"] + counts["documents"]
    bits = result["valid/loss"] * inputs_tokens / math.log(2) / counts["bytes"]
    assert result["valid/bits_per_byte"] == pytest.approx(bits, rel=1e-6)


def params_of(workdir):
    return tree.flatten(Checkpointer(workdir, read_only=True).restore_params()[0])


@pytest.mark.parametrize("family", ["causal", "masked", "spans"])
def test_fine_tuning_starts_from_another_run(train, family, finished, tmp_path, capfd):
    """One step that moves nothing: what the run began with is what it holds."""
    source = finished[family][1]
    rows = [{"text": f"{word} {i}", "label": "ab"[i % 2]} for i, word in enumerate(WORDS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = dict(
        init=str(source),
        task=dict(name="classification"),
        objective=dict(name="classification", labels=("a", "b")),
        data=dict(path=str(tmp_path / "rows.jsonl"), split="file",
                  valid_path=str(tmp_path / "rows.jsonl")),
        optimizer=dict(learning_rate=1e-12, schedule="constant"),
        train=dict(steps=1, batch_size=16, length=16),
        checkpoint=dict(every=0),
    )  # fmt: skip
    # The same command without the weights: same architecture, same tokenizer, fresh parameters.
    for name, given in (("tuned", {}), ("scratch", {"init_weights": False})):
        result = train(run_config.from_dict(recipe | given), tmp_path / name)
        assert result["step"] == 1 and 0 <= result["valid/accuracy"] <= 1
        said = capfd.readouterr().err
        assert (f"init from {source} step 6" if name == "tuned" else "from scratch") in said
    held, tuned, scratch = map(params_of, (source, tmp_path / "tuned", tmp_path / "scratch"))
    body = held.keys() & tuned.keys()
    assert len(body) > 10 and tuned.keys() == scratch.keys()
    assert all(path.startswith("heads/") for path in held.keys() ^ tuned.keys())
    for path in body:
        np.testing.assert_allclose(tuned[path], held[path], rtol=EPS, atol=1e-11, err_msg=path)
    assert any(np.abs(scratch[path] - held[path]).max() > 1e-3 for path in body)


@pytest.mark.parametrize("family", ["causal", "spans"])
def test_text_to_text_is_scored_by_what_is_written(train, family, finished, tmp_path):
    rows = [{"input": w, "target": "yes" if i % 2 else "no"} for i, w in enumerate(WORDS[:8])]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = dict(
        init=str(finished[family][1]),
        task=dict(name="text_to_text"),
        objective=dict(name="text_to_text", target_length=6),
        data=dict(path=str(path), split="file", valid_path=str(path)),
        optimizer=dict(learning_rate=1e-2, schedule="constant"),
        train=dict(steps={"causal": 250, "spans": 60}[family], batch_size=8, length=16),
        checkpoint=dict(every=0),
    )
    config = run_config.from_dict(recipe)
    loss = train(config, tmp_path / "run")["valid/loss"]
    result = evaluate.evaluate(config, tmp_path / "run", "valid", "latest")
    assert result["valid/loss"] == pytest.approx(loss, abs=1e-4)
    assert result["valid/loss_low"] < result["valid/loss"] < result["valid/loss_high"]
    path = tmp_path / "run" / "evaluations" / "text_to_text-valid" / "predictions.jsonl"
    answers = [json.loads(line) for line in path.read_text().splitlines()]
    right = np.mean([answer["prediction"].split() == answer["gold"].split() for answer in answers])
    assert len(answers) == 8 and result["valid/exact_match"] == right
    if family == "causal":  # learnt by heart (loss below 1e-3), every answer is right by the letter
        assert right == 1.0 and result["valid/rouge_l"] == pytest.approx(1.0)


def test_only_heads_may_start_fresh(train, corpus, finished, tmp_path):
    deeper = tiny.FAMILIES["causal"]["model"] | {"vocab_size": 281, "positions": "learned"}
    data = dict(path=str(corpus), document="paragraph", valid_fraction=0.1)
    recipe = tiny.recipe("causal", data=data, init=str(finished["masked"][1]), model=deeper)
    with pytest.raises(ConfigError, match=r"has no decoder/.*--allow_missing"):
        train(run_config.from_dict(recipe), tmp_path / "run")


def test_damaged_checkpoint_falls_back_with_a_warning(train, corpus, finished, tmp_path, caplog):
    config, whole, _ = finished["causal"]
    train(config, tmp_path / "run")
    newest = sorted((tmp_path / "run" / "checkpoints").glob("step_*"))[-1]
    files = [p for p in (newest / "state").rglob("*") if p.is_file() and p.stat().st_size > 5000]
    largest = max(files, key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    train(config, tmp_path / "run")
    assert "damaged" in caplog.text
    assert "using" in caplog.text
    assert digests(config, tmp_path / "run") == digests(config, whole)


def test_workdir_that_cannot_be_written_is_refused_at_once(train, corpus, tmp_path):
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(StorageError, match="cannot write"):
        train(config_of(corpus), tmp_path / "file" / "run")


def test_command_line_reports_one_error_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "flaxlm", "train", "--config=configs/lstm.py",
         f"--workdir={tmp_path / 'run'}", "--config.train.lenth=3"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: config key train.lenth is not known (did you mean")
    assert done.stderr.count("\n") == 1
