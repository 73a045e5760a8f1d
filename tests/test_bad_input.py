"""Bad input ends with the design's exit code and one `error:` line, before a step is made.

Each case is a command as it is typed. In arguments {T} is a folder of files, {C} the flag of a
good recipe, {R} the flag of a finished run, {W} the flag of a fresh run directory.
"""

import fcntl
import json
import random
import re
import shutil
import subprocess
import sys

import pytest
import tiny_runs as tiny
from command_line import ROOT, CommandLine

from flaxlm.data.tokenizer import ByteTokenizer

ROWS = '{"text": "x y", "label": "a"}\n{"text": "x z", "label": "c"}\n'
# What lies in the folder beside the recipe, the corpus and the run.
FILES = {
    "syntax.py": b"def get_config(:\n",
    "none.py": b"x = 1\n",
    "null.py": b"def get_config():\n    return None\n",
    "raises.py": b"def get_config():\n    raise ValueError('one\\ntwo')\n",
    "exits.py": b"import sys\nsys.exit(0)\n",
    "cut.json": b'{"train": ',
    "list.json": b"[]",
    "section.json": b'{"train": 3}',
    "unknown.json": b'{"trian": {}}',
    "key.json": b'{"train": {"lenth": 3}}',
    "seed.json": b'{"seed": "a"}',
    "path.json": b'{"data": {"path": 3}}',
    "nan.json": b'{"optimizer": {"learning_rate": NaN}}',
    "float.json": b'{"train": {"steps": 1.5}}',
    "words.json": b'{"optimizer": {"no_decay": "bias"}}',
    "empty.txt": b"",
    "blank.txt": b"\n\n \n",
    "latin.txt": b"good line\n\nbad \xff here\n",
    "nul.txt": b"good line\n\nbad \0 here\n",
    "one.txt": b"one paragraph",
    "field.jsonl": b'{"body": "x"}\n',
    "number.jsonl": b'{"text": 3}\n',
    "cut.jsonl": b'{"text": \n',
    "bad.txt.gz": b"no archive",
    "bad.txt.zst": b"no archive",
    "bad.parquet": b"no table",
    "rows.jsonl": ROWS.encode(),
    "file": b"not a directory",
}

USAGE = {
    "no verb": ("", 2, "no verb"),
    "unknown verb": ("trian {C} {W}", 2, "did you mean 'train'.*tokenize, train, evaluate"),
    "unknown flag": ("train {C} {W} --wrkdir=3", 2, "wrkdir.*--workdir"),
    "flag of another type": ("generate {R} --prompt=a --top_k=x", 2, "top_k=x"),
    "stray argument": ("train {C} {W} foo", 2, "'foo' is not a flag"),
    "no workdir": ("train {C}", 2, "--workdir=DIR is required"),
    "no config": ("train {W}", 2, "--config=FILE is required"),
    "config in two": ("train {W} --config {T}/recipe.json", 2, "--config=value"),
    "lonely coordinator": ("train {C} {W} --coordinator=localhost:1", 2, "--num_processes"),
    "config missing": ("train {W} --config={T}/no.py", 66, "there is no file .*no.py"),
    "syntax error": ("train {W} --config={T}/syntax.py", 2, "syntax.py: SyntaxError"),
    "no get_config": ("train {W} --config={T}/none.py", 2, "no attribute 'get_config'"),
    "config is None": ("train {W} --config={T}/null.py", 2, "dict of sections, not NoneType"),
    "get_config raises": ("train {W} --config={T}/raises.py", 2, "ValueError: one two"),
    "recipe exits": ("train {W} --config={T}/exits.py", 2, "SystemExit"),
    "not a recipe": ("train {W} --config={T}/text.txt", 2, "neither a Python file"),
    "cut JSON": ("train {W} --config={T}/cut.json", 2, "cut.json is damaged"),
    "JSON list": ("train {W} --config={T}/list.json", 2, "dict of sections, not list"),
    "section no dict": ("train {W} --config={T}/section.json", 2, "train=3 must be a dict"),
}
CONFIG = {
    "unknown section": ("--config={T}/unknown.json", "'trian'.*did you mean 'train'"),
    "unknown key": ("--config={T}/key.json", "train.lenth.*did you mean 'length'"),
    "seed": ("--config={T}/seed.json", "seed='a' must be of type int"),
    "path": ("--config={T}/path.json", "data.path=3 must be of type str"),
    "nan": ("--config={T}/nan.json", "learning_rate=nan must be of type finite float"),
    "float steps": ("--config={T}/float.json", "train.steps=1.5 must be of type int"),
    "no tuple": ("--config={T}/words.json", r"no_decay='bias' must be of type tuple"),
    "override unknown": ("{C} --config.train.lenth=3", "did you mean 'train.length'"),
    "override unused": ("{C} --config.objective.nsp=True", "objective.nsp is not known"),
    "override of a section": ("{C} --config.train=3", "key train is not known"),
    "word for int": ("{C} --config.train.steps=abc", "train.steps=abc"),
    "float for int": ("{C} --config.train.steps=1.5", "train.steps=1.5"),
    "word for float": ("{C} --config.optimizer.learning_rate=fast", "learning_rate=fast"),
    "word for bool": ("{C} --config.init_weights=maybe", "init_weights=maybe"),
    "word in a tuple": ("{C} --config.data.weights=('a',)", "data.weights"),
    "preset": ("{C} --config.model.preset=gpt22", "did you mean 'gpt2'"),
    "range": ("{C} --config.train.batch_size=0", "train.batch_size=0 must be at least 1"),
    "no such mesh": ("{C} --config.sharding.data=3", "does not divide the 2 devices"),
    "batch over mesh": ("{C} --config.train.batch_size=3", "batch_size=3.*multiple of 2"),
    "objective without task": ("{C} --config.objective.name=text_to_text", "needs a task"),
    "task without labels": (
        "{C} --config.task.name=classification --config.data.path={T}/rows.jsonl",
        r"""objective.labels is empty.*\('a', *'c'\)""",
    ),
    "task of another objective": (
        "{C} --config.task.name=classification --config.objective.name=causal_lm",
        "is trained with",
    ),
    "wrong family": ("{C} --config.objective.name=masked_lm", "cannot train model 'decoder'"),
    "tokenizer over model": ("{C} --config.model.vocab_size=50", "281 ids .*vocab_size=50"),
    "unknown metric": ("{C} --config.eval.split=valid --config.eval.metric=acuracy", "accuracy"),
    "freeze": ("{C} --config.optimizer.freeze=('layer/mlp',)", "'layer/mlp'.*decoder/layers/mlp"),
    "lora": ("{C} --config.lora.rank=2 --config.lora.targets=('qeury',)", "'qeury'.*query/kernel"),
    "buckets": ("{C} --config.train.buckets=(8,)", "for tasks with examples"),
    "no best kept": ("{C} --config.eval.patience=1 --config.checkpoint.keep_best=0", "set it to 1"),
    "no such split": ("{C} --config.eval.split=test", "test_fraction is 0"),
}
DATA = {
    "missing.txt": (66, "missing.txt does not exist"),
    "empty.txt": (65, "empty.txt is empty"),
    "blank.txt": (65, "blank.txt is empty"),
    "one.txt": (65, "valid split of .*one.txt is empty"),
    "latin.txt": (65, r"latin.txt, byte 15 \(line 3\) is not UTF-8"),
    "nul.txt": (65, r"nul.txt, byte 15 \(line 3\) is NUL.*strip_control"),
    "field.jsonl": (
        65,
        "field.jsonl, line 1: there is no column 'text'; columns: body; set data.field",
    ),
    "number.jsonl": (65, "number.jsonl, line 1: column 'text' holds 3, not a text"),
    "cut.jsonl": (65, "cut.jsonl, line 1 is not JSON: it ends within an object"),
    "long.txt": (65, "long.txt, line 1 is longer than 67,108,864 bytes"),
    "bad.txt.gz": (65, "bad.txt.gz is damaged or not gzip"),
    "bad.txt.zst": (65, "bad.txt.zst is damaged or not zstandard"),
    "bad.parquet": (65, "bad.parquet is damaged or not Parquet"),
    "folder": (66, "holds no file with a known ending"),
}
RUNS = {
    "evaluate no run": ("evaluate --workdir={T}/folder", 66, "is not a run directory"),
    "generate no run": ("generate --prompt=a --workdir={T}/folder", 66, "not a run directory"),
    "inspect no run": ("inspect --workdir={T}/folder", 66, "is not a run directory"),
    "nothing trained": ("evaluate {C} {W}", 66, "holds no checkpoint; train there first"),
    "unknown checkpoint": ("inspect {R} --checkpoint=7", 2, "choose latest, best or 2"),
    "no best": ("evaluate {R} --checkpoint=best", 66, "with an evaluation score"),
    # A run's tuples come from JSON as lists, for which ml_collections has no parser.
    "tuple of a run": ("evaluate {R} --split=x --config.data.exclude=('x',)", 2, "--split"),
    "unknown split": ("evaluate {R} --split=vald", 2, "did you mean 'valid'"),
    "split of nothing": ("evaluate {R} --split=test", 2, "one of: train, valid; .*data.path=FILE"),
    "other model": ("evaluate {R} --config.model.width=48", 77, "of another model"),
    "changed config": (
        "train {R} --config.optimizer.b1=0.8 --config.seed=3",
        77,
        "optimizer.b1: 0.9 -> 0.8; seed: 0 -> 3",
    ),
    "no prompt": ("generate {R}", 2, "--prompt=TEXT or --prompts=FILE"),
    "no prompts file": ("generate {R} --prompts={T}/no.txt", 66, "there is no file .*no.txt"),
    "prompts in Latin-1": ("generate {R} --prompts={T}/latin.txt", 65, "byte 15"),
    "temperature": ("generate {R} --prompt=a --temperature=-1", 2, "temperature=-1"),
    "init missing": ("train {C} {W} --config.init={T}/no", 66, "no is not a run directory"),
    "init no run": ("train {C} {W} --config.init={T}/folder", 66, "is not a run directory"),
    "init of other shape": (
        "train {C} {W} --config.init={T}/run --config.model.width=48",
        77,
        "init=.*run: checkpoint step .* of another model",
    ),
    "init of other tokenizer": (
        "train {C} {W} --config.init={T}/run --config.tokenizer.sentinels=10",
        2,
        "brings its tokenizer along.*sentinels: 20 -> 10",
    ),
    "regex": ("train {C} {W} --config.init={T}/run --allow_missing=(", 2, "is not a regex"),
    "nothing to lack": ("train {C} {W} --allow_missing=x", 2, "and none are loaded here"),
    "lonely process": ("train {C} {W} --process_id=1", 2, "--process_id needs --coordinator=HOST"),
    "split of training": ("evaluate {R} --config.eval.split=test", 2, "evaluate has --split of"),
    "seed of training": ("generate {R} --prompt=a --config.seed=3", 2, "generate has --seed of"),
    "steps of a run": ("inspect {R} --config.train.steps=9", 2, "no effect in inspect; leave"),
    "unknown label": (
        "train {W} --config={T}/tune.json",
        65,
        "rows.jsonl, line 2.*label 'c'.*valid: a, b",
    ),
    "unknown column": (
        "train {W} --config={T}/tune.json --config.task.text_column=txt",
        65,
        "there is no column 'txt'.*columns: text, label",
    ),
    "workdir below a file": ("train {C} --workdir={T}/file/run", 74, "cannot write in"),
    "workdir is a file": ("tokenize {C} --workdir={T}/file", 74, "cannot write in"),
    "read-only workdir": ("train {C} --workdir=/proc/flaxlm", 74, "cannot write in"),
    "cache below a file": ("train {C} {W} --config.data.cache_dir={T}/file/x", 74, "cache_dir"),
}  # fmt: skip
CASES = (
    USAGE
    | {f"config: {k}": (f"train {{W}} {line}", 2, text) for k, (line, text) in CONFIG.items()}
    | {
        f"data: {name}": (f"train {{C}} {{W}} --config.data.path={{T}}/{name}", code, text)
        for name, (code, text) in DATA.items()
    }
    | {f"run: {name}": case for name, case in RUNS.items()}
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("bad")
    for name, contents in FILES.items():
        (place / name).write_bytes(contents)
    (place / "folder").mkdir()
    (place / "long.txt").write_bytes(b"x" * 100_000_000)
    draw = random.Random(0)
    words = "the sea was calm and grey".split()
    (place / "text.txt").write_text(
        "".join(" ".join(draw.choices(words, k=12)) + ".\n\n" for _ in range(200))
    )
    recipe = tiny.recipe(
        "causal",
        model=tiny.FAMILIES["causal"]["model"] | dict(vocab_size=281, width=12, num_layers=1),
        data=dict(path=str(place / "text.txt"), document="paragraph", valid_fraction=0.1),
        train=dict(steps=2, batch_size=4),
        eval=dict(split=""),
    )
    (place / "recipe.json").write_text(json.dumps(recipe))
    tune = dict(
        init=str(place / "run"),
        task=dict(name="classification"),
        objective=dict(name="classification", labels=("a", "b")),
        data=dict(path=str(place / "rows.jsonl"), split="tail", valid_fraction=0.5),
        train=dict(steps=2, batch_size=4, length=16),
    )
    (place / "tune.json").write_text(json.dumps(tune))
    yield place
    (place / "long.txt").unlink()


@pytest.fixture(scope="module")
def flaxlm(folder):
    """The command line, beside a finished run of two steps in {T}/run."""
    command = CommandLine(folder, devices=2)  # for what a mesh gets wrong
    done = command("train", f"--config={folder / 'recipe.json'}", f"--workdir={folder / 'run'}")
    assert done.code == 0, done.err
    return command


def refused(done, code: int, text: str) -> None:
    """Check exit code and message, and that nothing was trained."""
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    assert "first step done" not in done.err
    (line,) = done.errors
    assert done.err.endswith(f"{line}\n")
    assert re.search(text, line), line


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_with_one_line(case, flaxlm, folder, tmp_path):
    line, code, text = CASES[case]
    places = {"T": folder, "C": f"--config={folder / 'recipe.json'}",
              "R": f"--workdir={folder / 'run'}", "W": f"--workdir={tmp_path / 'run'}"}  # fmt: skip
    refused(flaxlm(*line.format(**places).split()), code, text)


@pytest.mark.parametrize("limit", [2_000, 8_000, 60_000], ids=["config", "cache", "checkpoint"])
def test_full_disk_is_noticed_before_training(limit, flaxlm, folder, tmp_path):
    done = flaxlm("train", f"--config={folder / 'recipe.json'}", f"--workdir={tmp_path / 'run'}",
                  max_file_bytes=limit)  # fmt: skip
    refused(done, 74, "cannot write .*File too large")


def test_two_runs_in_one_workdir(flaxlm, folder):
    with (folder / "run" / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = flaxlm("train", f"--workdir={folder / 'run'}")
    refused(done, 77, "in use by another run .*process [0-9]+")


@pytest.mark.parametrize("verb", ["train", "evaluate", "inspect"])
def test_tokenizer_that_the_checkpoint_was_not_trained_with(verb, flaxlm, folder, tmp_path):
    shutil.copytree(folder / "run", tmp_path / "run")
    ByteTokenizer(10).save(tmp_path / "run" / "tokenizer")
    refused(flaxlm(verb, f"--workdir={tmp_path / 'run'}"), 77, "is not the tokenizer that")


def test_init_with_another_tokenizer_in_the_workdir(flaxlm, folder, tmp_path):
    ByteTokenizer(10).save(tmp_path / "run" / "tokenizer")
    done = flaxlm("train", f"--config={folder / 'recipe.json'}", f"--workdir={tmp_path / 'run'}",
                  f"--config.init={folder / 'run'}")  # fmt: skip
    refused(done, 77, "is not the tokenizer that")


def test_damaged_config_of_a_run_without_checkpoints(flaxlm, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{")
    refused(flaxlm("inspect", f"--workdir={tmp_path / 'run'}"), 2, "config.json is damaged")


def test_unforeseen_exception_exits_70_with_its_traceback():
    code = (
        "import sys, flaxlm.__main__ as m\n"
        "def run(argv): raise RuntimeError('two\\nlines')\n"
        "m.run = run\n"
        "sys.exit(m.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 70
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("error: a bug in flaxlm: RuntimeError: two lines\n")
