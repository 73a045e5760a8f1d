"""config.json of a run is what its checkpoints were trained with, and all that a start needs."""

import itertools
import json
import pathlib
import shutil
import types

import pytest
import tiny_runs as tiny
from command_line import ROOT, CommandLine
from faults import selection
from resume_cases import table, task_recipe, text_recipe

from flaxlm.commands import recipe as recipes
from flaxlm.errors import FlaxlmError, Unsafe
from flaxlm.train import train
from flaxlm.training import config as run_config
from flaxlm.training.config import from_dict
from flaxlm.training.values import changes

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def line(tmp_path_factory, compilation_cache):
    root = tmp_path_factory.mktemp("line")
    return CommandLine(root, cwd=root)


READERS = (
    "train --config.train.steps=3",
    "evaluate",
    "inspect",
    "generate --prompt=a --max_new_tokens=1",
    "convert --from={run} --to=hf:{out}",
)


def test_config_json_is_restored_from_the_newest_checkpoint_and_compared_with_it(
    text_run, line, tmp_path
):
    """A change by hand, or damage that can still be read, is refused by every verb."""
    run = pathlib.Path(shutil.copytree(text_run / "run", tmp_path / "run"))
    path, own = run / "config.json", (run / "config.json").read_text()
    damage = {
        "missing": lambda: path.unlink(),
        "could not be read": lambda: path.write_text(own[: len(own) // 2]),
    }
    for (why, break_it), verb in zip(damage.items(), (READERS[1], READERS[2]), strict=True):
        break_it()
        done = line(*verb.split(), f"--workdir={run}")
        assert done.code == 0, done.err
        said = f"{path} was {why}" if why == "missing" else f"{path} {why}"
        assert f"{said}, and is that of {run}/checkpoints/step_00000002 again" in done.err
        assert path.read_text() == own
    path.write_text(own.replace('"learning_rate": 0.01', '"learning_rate": 0.02'))
    for verb in READERS:
        words = verb.format(run=run, out=tmp_path / "out").split()
        done = line(*words, *[f"--workdir={run}"] * (words[0] != "convert"))
        assert done.code == 77, (verb, done.err)
        (error,) = done.errors
        assert "step_00000002 was trained with; undo this, delete " in error
        assert "optimizer.learning_rate: 0.01 -> 0.02" in error
    # With a recipe, and without a config.json that would say what the run is.
    path.unlink()
    other = text_recipe(text_run, optimizer={"learning_rate": 0.02})
    with pytest.raises(Unsafe, match=r"another config.*learning_rate: 0\.01 -> 0\.02"):
        train(from_dict(other), run)


# Every recipe, with every argument, and what makes a config derive something.
SPECS = (
    "quickstart quickstart:family=bert quickstart:family=t5 gpt_small bert_base t5_small lstm "
    "lstm:cell=gru shakespeare_char shakespeare_char:size=baby text_to_text text_to_text:gpt "
    "quickstart:stage=finetune quickstart:family=t5,stage=finetune "
    "quickstart:family=bert,stage=finetune adapt adapt:masked_lm adapt:span_corruption finetune "
    "text_to_text:pretrained"
).split()
OVERRIDES = (
    {},
    {"tokenizer.kind": "byte"},
    {"tokenizer.kind": "byte", "tokenizer.sentinels": "7"},
    {"tokenizer.kind": "byte", "model.vocab_size": "9000"},
    {"tokenizer.kind": "char"},
    {"tokenizer.kind": "word", "tokenizer.vocab_size": "600"},
    {"model.preset": "gpt2"},
    {"model.preset": "bert_tiny", "tokenizer.kind": "byte"},
    {"model.preset": "t5_small", "tokenizer.kind": "char"},
    {"lora.rank": "2"},
    {"train.epochs": "2", "optimizer.warmup_fraction": "0.1"},
    {"data.path": "('a','b')", "data.weights": "(1,2)"},
    {"eval.metric": "perplexity"},
    {"eval.split": ""},
    {"data.split": "tail", "seeds": "2"},
    {"train.buckets": "(16, 32)"},
)


@pytest.mark.parametrize("init", ["", "run"])
def test_config_json_of_every_recipe_is_a_fixed_point(init, tmp_path, monkeypatch):
    """What is made of it is it again, and the same run: whatever its recipe derived."""
    monkeypatch.chdir(tmp_path)
    for name in ("train", "dev"):
        table(pathlib.Path(f"{name}.jsonl"), 40)
    started = {"objective.labels": "auto"}
    if init:
        sizes = {"max_length": 512, "token_types": 2} | tiny.SIZES
        source = tiny.recipe("masked" if init == "run" else "causal", model=sizes)
        source["tokenizer"] = {"kind": "byte"}
        source["model"].pop("vocab_size")
        pathlib.Path("init").mkdir()
        pathlib.Path("init/config.json").write_text(from_dict(source).to_json())
    taken = 0
    for spec, overrides in selection([*itertools.product(SPECS, OVERRIDES)], 130):
        more = {"init": "init"} if init else {}
        more |= started if spec == "finetune" else {}
        try:
            config = recipes.configure(recipes.load_recipe(spec), overrides | more)
        except FlaxlmError:  # not every objective is for every model
            continue
        tokenizer = types.SimpleNamespace(vocab_size=65)
        monkeypatch.setattr(run_config, "load_tokenizer", lambda path, t=tokenizer: t)
        run = tmp_path / "run"
        run.mkdir(exist_ok=True)
        (run / "config.json").unlink(missing_ok=True)
        written = run_config.sized(config, run).to_json()
        (run / "config.json").write_text(written)
        again = recipes.configure(run_config.read_run(str(run)), {})
        assert run_config.sized(again, run).to_json() == written, (spec, overrides)
        assert not changes(run_config.expand(run_config.read_run(str(run))), again.raw)
        taken += 1
    assert taken > (30 if init else 60)


def test_every_run_goes_on_without_its_recipe(line, text_run, task_run, tmp_path):
    """A byte tokenizer beside a recipe's size, an `init` that is gone, several seeds."""
    sizes = "width=16 num_layers=1 num_heads=2 head_dim=8 remat=none".split()
    small = [f"--config.model.{size}" for size in sizes]
    small += [f"--config.{key}" for key in (
        f"data.path={text_run / 'text'}", "data.document=paragraph", "train.steps=1",
        "train.length=16", "train.batch_size=4", "eval.batch_size=4", "optimizer.warmup_steps=1",
        "data.test_fraction=0", "data.valid_fraction=0.3", "tokenizer.kind=byte",
    )]  # fmt: skip
    spec = ROOT / "configs" / "quickstart.py"
    derived = line("train", f"--config={spec}", "--workdir=derived", *small)
    assert derived.code == 0, derived.err
    recipe = task_recipe(task_run, seeds=2, train={"steps": 1, "length": 24})
    recipe |= {"tokenizer": {}, "model": {}}
    (line.cwd / "seeds.json").write_text(json.dumps(recipe))
    shutil.copytree(task_run / "run", line.cwd / "gone")
    seeds = line("train", "--config=seeds.json", "--workdir=seeds", "--config.init=gone")
    assert seeds.code == 0, seeds.err
    shutil.rmtree(line.cwd / "gone")
    for run, places in (("derived", ["derived"]), ("seeds", ["seeds/seed_0", "seeds/seed_1"])):
        done = line("train", f"--workdir={run}", "--config.train.steps=2")
        assert done.code == 0, done.err
        for place in places:
            assert json.loads((line.cwd / place / "result.json").read_text())["step"] == 2
