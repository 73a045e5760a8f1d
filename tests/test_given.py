"""Nothing given is ignored: every key, set to another value, is read by the run or refused.

A run of each base is trained for a step and evaluated with sections that note which of their keys
the package reads; what is noted and what `unread` would refuse share no key and leave none out.
"""

import dataclasses
import functools
import json
import operator
import re
import shutil
import sys
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs as tiny

from flaxlm import __main__ as command
from flaxlm.commands import embed, evaluate, generate, inspect, recipe
from flaxlm.commands.options import settle
from flaxlm.data.tokenizer import load_tokenizer
from flaxlm.errors import ConfigError, FlaxlmError, Unsafe
from flaxlm.inference import likelihood, sampling
from flaxlm.sharding import make_mesh
from flaxlm.tasks import TASKS
from flaxlm.train import train
from flaxlm.training import config as run_config
from flaxlm.training.inputs import Inputs
from flaxlm.training.program import make_program
from flaxlm.training.unread import unread

SIZE = {"width": 24, "num_heads": 3, "num_layers": 1, "max_length": 32}
BASES = {
    "decoder": dict(
        model=dict(name="decoder", **SIZE, windows=(4,), rope_local_theta=9.0),
        objective=dict(name="causal_lm"),
    ),
    "rotary": dict(
        model=dict(name="decoder", **SIZE, positions="rotary", rope_scaling="llama3"),
        objective=dict(name="causal_lm"),
        optimizer=dict(name="sgd", schedule="wsd"),
        lora=dict(rank=2),
    ),
    "encoder": dict(
        model=dict(name="encoder", token_types=2, **SIZE),
        objective=dict(name="masked_lm"),
        data=dict(sentences=True),
    ),
    "encoder_decoder": dict(
        model=dict(name="encoder_decoder", positions="relative", **SIZE),
        objective=dict(name="span_corruption"),
        optimizer=dict(name="lion", schedule="inverse_sqrt"),
        eval=dict(split=""),
    ),
    "recurrent": dict(
        model=dict(name="recurrent", width=24, num_layers=1),
        objective=dict(name="causal_lm"),
        data=dict(path="rows.jsonl"),
        tokenizer=dict(kind="unigram", vocab_size=50, sentinels=0, byte_fallback=False),
    ),
    "classifier": dict(
        model=dict(name="encoder", **SIZE),
        task=dict(name="classification"),
        objective=dict(name="classification", labels=("a", "b")),
        data=dict(path="rows.jsonl"),
        train=dict(buckets=(8,)),
    ),
}
# Another value of a key that is one of a few.
OTHER = {"auto": "text", "line": "file", "hash": "tail", "learned": "rotary", "cosine": "linear",
         "adamw": "sgd", "loss": "ece", "normal": "t5", "float32": "bfloat16", "cheap": "full",
         "gelu_tanh": "relu", "layernorm": "rmsnorm", "pre": "post", "lstm": "gru"}  # fmt: skip
# Not read here, and not refused: what they are for may come later, or lie elsewhere.
ELSEWHERE = (
    r"train\.(tokens|epochs)",  # take the place of train.steps where they are given
    r"model\.(mlm|classification)_bias|model\.(transform|pool|output)\w*",  # heads to come, by init
)
# Read and refused: what is made of them is not used.
UNUSED = (
    r"checkpoint\.keep_best|eval\.(metric|mode|patience)",  # there is no evaluation
    r"optimizer\.decay_steps|objective\.model",
    r"data\.(document|sentences|weights)",  # handed on to who does not look at it
    r"baseline",
)


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with tiny.one_device():
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    place = tmp_path_factory.mktemp("given")
    words = "the sea was calm and grey that day we rowed to a far green island".split()
    draw = np.random.default_rng(0)
    lines = [f"{' '.join(draw.choice(words, 9))}. {draw.choice(words)}." for _ in range(60)]
    (place / "text.txt").write_text("\n".join(lines) + "\n")
    rows = [{"text": line, "label": "ab"[n % 2]} for n, line in enumerate(lines)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def nested_of(base, corpus) -> dict:
    name = BASES[base].get("data", {}).get("path", "text.txt")
    data = {"valid_fraction": 0.2}
    nested = {
        "data": data | ({"document": "line"} if name == "text.txt" else {}),
        "tokenizer": {"kind": "byte", "sentinels": 30},
        "train": {"steps": 2, "length": 16, "batch_size": 4},
        "eval": {"batch_size": 4},
    }
    for section, values in BASES[base].items():
        nested[section] = nested.get(section, {}) | values
    nested["data"]["path"] = str(corpus / name)
    return nested


SECTIONS = (*run_config.SECTIONS, *run_config.TABLES)
CHECKS = ("__post_init__", "check_rates", "check_range")


def noting(section, name: str, noted: set[str]):
    """Return a section that notes which of its fields the package reads, checks apart."""
    names = {field.name for field in dataclasses.fields(section)}

    class Noting(type(section)):
        def __getattribute__(self, field):
            if field in names:
                caller = sys._getframe(1).f_code
                generated = caller.co_filename.endswith(("dataclasses.py", ">"))
                if not generated and caller.co_name not in CHECKS:
                    noted.add(f"{name}.{field}")
            return super().__getattribute__(field)

        __hash__ = object.__hash__

    values = {f.name: getattr(section, f.name) for f in dataclasses.fields(section) if f.init}
    return Noting(**values)


def traced(function, fill: int = 0, **options):
    """Stand for `jax.jit`: trace a function, and return `fill` in the shapes of its results."""

    def call(*arguments, **named):
        static = len(arguments) and isinstance(arguments[0], nn.Module)
        fixed = functools.partial(function, *arguments[:static], **named)
        shapes = jax.eval_shape(fixed, *arguments[static:])
        return jax.tree.map(lambda leaf: jnp.full(leaf.shape, fill, leaf.dtype), shapes)

    return call


ones = functools.partial(traced, fill=1)


def noted_in(config, function, jit=traced) -> set[str]:
    """Return the keys that a function reads of a config."""
    noted: set[str] = set()
    sections = {name: noting(getattr(config, name), name, noted) for name in SECTIONS}
    noted.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", jit)
        function(dataclasses.replace(config, **sections))
    return noted


@pytest.fixture(scope="module")
def trained(corpus):
    """Return function: base -> (config, keys that training read, run directory), made once."""

    @functools.cache
    def get(base: str):
        config, run = recipe.configure(nested_of(base, corpus), {}), corpus / base
        return config, noted_in(config, lambda noting: train(noting, run)), run

    return get


@pytest.mark.parametrize("base", BASES)
def test_what_a_run_does_not_read_is_refused(base, corpus, trained):
    config, noted, _ = trained(base)
    refused = unread(config)
    for key in keys_of(config):
        read, elsewhere = key in noted, re.fullmatch("|".join(ELSEWHERE), key)
        if key not in refused:
            assert read or elsewhere or not arrives(base, corpus, key, config), key
        elif read:
            assert re.fullmatch("|".join(UNUSED), key), key


def keys_of(config) -> list[str]:
    named = (f"{s}.{f.name}" for s in SECTIONS for f in dataclasses.fields(getattr(config, s)))
    types = recipe.key_types(config.raw)
    return [key for key in named if key in types]


def other(value) -> str:
    """Return another value than that of a key, as it is typed."""
    if isinstance(value, bool):
        return str(not value)
    if isinstance(value, tuple):
        return "(3,)" if value and isinstance(value[0], int) else "('other',)"
    if isinstance(value, str):
        return OTHER.get(value, "other")
    return str(2 * value or type(value)(1))


def arrives(base, corpus, key, config) -> bool:
    """Return whether another value of a key stands in the config; else it was refused."""
    section, _, name = key.rpartition(".")
    before = getattr(getattr(config, section), name)
    try:
        changed = recipe.configure(nested_of(base, corpus), {key: other(before)})
    except FlaxlmError as error:
        assert name in str(error), f"{key}: {error}"
        return False
    assert getattr(getattr(changed, section), name) != before, key
    return True


@pytest.mark.parametrize("base", BASES)
def test_another_value_of_any_key_stands_in_the_config_or_is_refused(base, corpus):
    config = recipe.configure(nested_of(base, corpus), {})
    refused = unread(config)
    for key in keys_of(config):
        assert arrives(base, corpus, key, config) <= (key not in refused), key


def test_a_run_that_kept_the_worst_goes_on_the_right_way_round(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "jit", traced)
    nested, run = nested_of("recurrent", corpus) | {"eval": {"metric": "loss"}}, tmp_path / "run"
    train(recipe.configure(nested, {}), run)
    stated = (run / "config.json").read_text()
    (run / "config.json").write_text(stated.replace('"mode": "min"', '"mode": "max"'))
    resume = ["train", f"--workdir={run}"]
    # To undo what was stated is no way out: the run states it. It goes on, and says so once.
    with pytest.raises(ConfigError, match=r"leave eval.mode out, or set it to 'min'"):
        recipe.configure(nested | {"eval": {"metric": "loss", "mode": "max"}}, {})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        command.run([*resume, "--config.train.steps=3"])
    (said,) = (str(w.message) for w in caught if "kept the worst by" in str(w.message))
    assert "eval.mode='max' kept the worst by eval.metric='loss'; it is read as 'min'" in said
    assert json.loads((run / "config.json").read_text())["eval"]["mode"] == "min"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert train(recipe.configure(nested, {"train.steps": "4"}), run)["step"] == 4


def test_a_character_model_is_as_large_as_its_tokenizer(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "jit", traced)
    nested = nested_of("decoder", corpus) | {"tokenizer": {"kind": "char", "byte_fallback": False}}
    config = recipe.configure(nested, {})
    assert config.model.vocab_size == 0
    with pytest.raises(ConfigError, match=r"model.vocab_size=0, what the tokenizer has"):
        make_program(config, make_mesh(config.sharding))
    run = tmp_path / "run"
    train(config, run)
    size = load_tokenizer(run / "tokenizer").vocab_size
    assert run_config.read_run(str(run))["model"]["vocab_size"] == size < 200
    evaluate.evaluate(recipe.configure(run_config.read_run(str(run)), {}), run, "valid", "")
    longer = recipe.configure(nested, {"train.steps": "3"})
    assert train(longer, run)["step"] == 3  # the recipe again, which leaves the size open
    # Inherited by `init`, and not asked of a tokenizer that might have another size.
    assert recipe.configure({"init": str(run), "train": {"steps": 1}}, {}).model.vocab_size == size


VERBS = {
    evaluate: {},
    generate: {"prompt": ("a",), "max_new_tokens": 2},
    embed: {"input": "in.jsonl", "output": "out.npy"},
    inspect: {},
}
TABLE = {"data.path": "table.jsonl", "data.split": "whole"}
# What is read: the base that was trained, and what is said of a task.
READINGS = {base: (base, {}) for base in BASES} | {
    "likelihoods": ("rotary", {"task.name": "multiple_choice"} | TABLE),
    "texts": ("encoder_decoder", {"task.name": "text_to_text"} | TABLE),
    "vectors": ("encoder", {"task.name": "similarity"} | TABLE),
}
# Read, and refused all the same: by modules that draw no parameters and drop nothing out where
# nothing is trained; of an evaluation that the run has not; handed on to who does not look at it.
IN_VAIN = r"eval\.\w+|model\.(\w+_dropout|init\w*|scale_residual_init)"
IN_VAIN += r"|objective\.(model|pack|prefix|labels)|data\.(document|sentences|weights)|seed"
IN_VAIN += r"|train\.length|sharding\..*"
COMPILED = [
    (generate.generation, "_most_likely"),
    (embed.embedding, "_vectors"),
    (likelihood, "_judge"),
    (sampling, "start"),
    (sampling, "advance"),
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Enter a directory with what verbs read; nothing is computed, and no text is measured."""
    monkeypatch.chdir(tmp_path)
    row = {"text": "a", "context": "a", "choices": ["b", "c"], "gold": 0, "input": "a"}
    rows = [row | {"target": "b", "sentence1": "a", "sentence2": "b", "score": n} for n in (1, 5)]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    for module, name in COMPILED:
        monkeypatch.setattr(module, name, ones(getattr(module, name).__wrapped__))
    for name in ("metrics", "intervals"):
        monkeypatch.setattr(TASKS["text_to_text"], name, lambda *arguments: {})
    monkeypatch.setattr(TASKS["text_to_text"], "mistake", lambda *arguments: 0)


@pytest.mark.parametrize("reading", READINGS)
def test_a_verb_refuses_the_keys_that_it_does_not_read(reading, trained, place):
    base, said = READINGS[reading]
    run = trained(base)[2]
    for verb, more in VERBS.items() if not said else [(evaluate, {})]:
        if verb == generate and base == "classifier":
            continue  # it writes nothing
        more = {"prompt": ("[MASK]",)} if verb == generate and base == "encoder" else more
        options, name = verb.Options(workdir=str(run), **more), verb.__name__.rpartition(".")[2]
        _, config = settle(name, options, None, said)
        shutil.rmtree(run / "cache", ignore_errors=True)
        noted = noted_in(config, functools.partial(verb.run, options), ones)
        idle = unread(config)
        rules = "|".join([keys for holds, keys, _ in options.unread(config) if holds])
        for key in keys_of(config):
            reads = re.fullmatch(options.reads, key) and not re.fullmatch(rules, key)
            before = operator.attrgetter(key)(config)
            if key in idle or (reads and key in noted):
                continue
            assert reads or key not in noted or re.fullmatch(IN_VAIN, key), (name, key)
            # Nor does it stand where it was refused for its value.
            with pytest.raises(FlaxlmError, match=f"no effect|{key.rpartition('.')[2]}"):
                settle(name, options, None, said | {key: other(before)})


@pytest.mark.parametrize("base", ["decoder", "encoder", "classifier"])
def test_a_seed_is_refused_where_an_evaluation_draws_nothing(base, trained):
    run = trained(base)[2]
    batches = []
    for seed in (0, 1):
        config = dataclasses.replace(recipe.configure(run_config.read_run(str(run)), {}), seed=seed)
        with Inputs.open(config, run, write=False) as inputs:
            batches.append(inputs.evaluation("valid", 8)[0].rows(0, 0, 8))
    same = all(np.array_equal(batches[0][name], batches[1][name]) for name in batches[0])
    refused = [why for holds, key, why in evaluate.Options(workdir=str(run)).unread(config)
               if key == "seed" and holds]  # fmt: skip
    assert bool(refused) == same == (base != "encoder")


@pytest.mark.parametrize("checkpoint", ["", "best", "1"])
@pytest.mark.parametrize("patience", [0, 2])
def test_what_chooses_a_checkpoint_is_refused_where_none_is_chosen(checkpoint, patience, trained):
    options = evaluate.Options(workdir=str(trained("classifier")[2]), checkpoint=checkpoint)
    config = trained("classifier")[0]
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, patience=patience))
    rules = "|".join([keys for holds, keys, _ in options.unread(config) if holds])
    chosen = checkpoint == "best" or (not checkpoint and patience > 0)
    assert bool(re.fullmatch(rules, "eval.metric")) != chosen
    assert bool(re.fullmatch(rules, "eval.patience")) == bool(checkpoint)


@pytest.mark.parametrize("base", ["decoder", "classifier"])
def test_a_tokenizer_of_a_first_attempt_is_not_taken_for_another(base, corpus, tmp_path):
    nested = nested_of(base, corpus)
    with Inputs.open(recipe.configure(nested, {}), tmp_path):
        pass  # and no checkpoint
    other_ = recipe.configure(nested, {"tokenizer.sentinels": "31"})
    with (
        pytest.raises(Unsafe, match=r"tokenizer.sentinels=31 \(was 30\)"),
        Inputs.open(other_, tmp_path),
    ):
        pass
    with Inputs.open(recipe.configure(nested, {}), tmp_path) as inputs:
        assert len(inputs.tokenizer.sentinel_ids) == 30


def test_the_tokenizer_of_init_is_not_taken_for_another_either(corpus, trained, tmp_path):
    nested = {"init": str(trained("decoder")[2])} | nested_of("decoder", corpus)
    with Inputs.open(recipe.configure(nested, {}), tmp_path):
        pass  # and no checkpoint
    with (
        pytest.raises(ConfigError, match="brings its tokenizer along"),
        Inputs.open(recipe.configure(nested, {"tokenizer.sentinels": "31"}), tmp_path),
    ):
        pass
