"""A verb is a file and a row; its flags, its help and the config's keys come from dataclasses."""

import dataclasses
import importlib
import io
import json
import sys
import types

import jax
import pytest

from flaxlm import __main__ as command
from flaxlm import commands
from flaxlm.commands import COMMANDS, flags, recipe
from flaxlm.errors import ConfigError, MissingInput

VERB = '''"""A verb of a test."""

import dataclasses

from flaxlm.commands.options import RunOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(RunOptions):
    """What is shouted.

    Attributes:
      words: what to shout, in as
        many lines as it takes
      loud: or not
    """

    words: tuple[str, ...] = ()
    loud: bool = False
    times: int = 2

    def default_recipe(self):
        return {"train": {"steps": 3}}


def run(options, config):
    (options.place / "shout.txt").write_text(f"{options.words} {options.loud} {options.times} "
                                             f"{config.train.steps} {config.seed}")
'''


def options_of(verb: str):
    return importlib.import_module(f"flaxlm.commands.{verb}").Options


def test_a_verb_is_one_file_and_one_row(tmp_path, monkeypatch, capsys):
    (tmp_path / "shout.py").write_text(VERB)
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    monkeypatch.setitem(COMMANDS, "shout", "say it louder")
    arguments = ["--words=a b", "--words=c", "--loud", "--times=3", "--config.seed=7"]
    command.run(["shout", f"--workdir={tmp_path}", *arguments])
    assert (tmp_path / "shout.txt").read_text() == "('a b', 'c') True 3 3 7"
    command.run(["--help"])
    command.run(["shout", "--help"])
    shown = capsys.readouterr().out
    assert "  shout      say it louder\n" in shown
    assert "python -m flaxlm shout: say it louder\n" in shown
    assert "what to shout, in as many lines as it takes\n" in shown
    with pytest.raises(ConfigError, match="--workdir=DIR is required"):
        command.run(["shout"])
    with pytest.raises(ConfigError, match=r"loudd.*flags: --help, --loud, --times, --words,"):
        command.run(["shout", f"--workdir={tmp_path}", "--loudd"])


@pytest.mark.parametrize("verb", COMMANDS)
def test_help_has_every_flag_with_its_default_and_says_what_it_is(verb, capsys):
    cls = options_of(verb)
    command.run([verb, "--help"])
    lines = capsys.readouterr().out.splitlines()
    texts = flags.field_texts(cls)
    for field in dataclasses.fields(cls):
        (line,) = (x for x in lines if x.split(" ")[0] == f"--{field.name.rstrip('_')}")
        assert texts[field.name] and line.endswith(texts[field.name])
        if field.default is not dataclasses.MISSING:
            assert repr(field.default) in line
    assert ("--config.help" in "".join(lines)) == bool(cls.takes_config)


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_flag_that_is_given_twice_is_refused_unless_it_is_a_list(verb):
    cls = options_of(verb)
    needed = [f for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
    for field in dataclasses.fields(cls):
        name = field.name.rstrip("_")
        others = [f"--{f.name.rstrip('_')}=x" for f in needed if f is not field]
        twice = [*others, f"--{name}=1", f"--{name}=1"]
        if isinstance(field.default, tuple) and "commas" not in field.metadata:
            assert getattr(flags.parse(cls, twice), name) == ("1", "1")
            continue
        with pytest.raises(ConfigError, match=f"--{name} is given twice; "):
            flags.parse(cls, twice)


def test_a_hugging_face_model_has_no_checkpoints_in_any_verb():
    verbs = [verb for verb in COMMANDS if options_of(verb).reads_hub]
    assert {"evaluate", "generate", "embed", "inspect"} <= {*verbs}
    for verb in verbs:
        needed = ["--input=x", "--output=x"] * (verb == "embed")
        with pytest.raises(ConfigError, match="--checkpoint=7: hf:x is a model and no run"):
            command.run([verb, "--workdir=hf:x", "--checkpoint=7", *needed])


def test_a_key_that_is_given_twice_is_refused():
    message = r"--config.train.steps=1 and --config.train.steps=2 are both given; leave one"
    for verb in ("train", "inspect"):
        with pytest.raises(ConfigError, match=message):
            command.run([verb, "--config.train.steps=1", "--x=3", "--config.train.steps=2"])
    with pytest.raises(ConfigError, match=r"--config=a and --config=a are both given"):
        command.run(["train", "--config=a", "--config=a", "--workdir=x"])


def test_no_option_of_generation_and_embedding_is_said_twice():
    from flaxlm.inference.embed import EmbedConfig
    from flaxlm.inference.generate import GenerateConfig

    assert issubclass(options_of("generate"), GenerateConfig)
    assert issubclass(options_of("embed"), EmbedConfig)
    for verb, config in (("generate", GenerateConfig), ("embed", EmbedConfig)):
        own = options_of(verb).__annotations__
        assert not own.keys() & {field.name for field in dataclasses.fields(config)}


def test_config_help_lists_every_key_with_type_and_value(capsys):
    command.run(["train", "--config=finetune", "--config.task.name=cola", "--config.help"])
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
    full, _ = recipe.select(recipe.load_recipe("finetune"), {"task.name": "cola"})
    keys = [f"{s}.{k}" for s, v in full.items() if isinstance(v, dict) for k in v]
    keys += [k for k, v in full.items() if not isinstance(v, dict)]
    assert {f"--config.{key}" for key in keys} == {k for k in lines if k.startswith("--config.")}
    assert lines["--config.optimizer.learning_rate"][1:3] == ["float", "5e-05"]
    assert lines["--config.task.name"][1:3] == ["str", "'cola'"]


def test_a_recipe_that_comes_along_is_found_by_its_name():
    assert recipe.load_recipe("adapt:masked_lm")["objective"]["name"] == "masked_lm"
    with pytest.raises(MissingInput, match=r"there is no file nope, nor .*: adapt, bert_base, "):
        recipe.load_recipe("nope")


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (str | tuple[str, ...], "a,b.txt", "a,b.txt"),
        (str | tuple[str, ...], "('a.txt', 'b.txt')", ("a.txt", "b.txt")),
        (str | tuple[str, ...], "['a.txt']", ("a.txt",)),
        (tuple[str, ...], "('a',)", ("a",)),
        (tuple[str, ...], "('a')", ("a",)),
        (tuple[str, ...], "embed/", ("embed/",)),
        (tuple[str, ...], "bias$", ("bias$",)),
        (tuple[float, ...], "(1, 2.5)", (1, 2.5)),
        (tuple[int, ...], "8", (8,)),
        (tuple[int, ...], "()", ()),
        (str, "('a',)", "('a',)"),
        (str, "3", "3"),
        (bool, "False", False),
        (bool, "t", True),
        (int, "-3", -3),
        (float, "1e-3", 1e-3),
        (float, "3", 3.0),
    ],
)
def test_what_is_typed_is_read_as_its_keys_type(kind, text, value):
    read = recipe.read_value("a.b", kind, text)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("kind", "text"),
    [(int, "1.5"), (int, "x"), (bool, "2"), (float, "fast"), (tuple[str, ...], "('a',"),
     (str | tuple[str, ...], "('a', b)")],
)  # fmt: skip
def test_what_is_of_another_type_is_refused(kind, text):
    with pytest.raises(ConfigError, match=r"config key a\.b=.* must be of type"):
        recipe.read_value("a.b", kind, text)


@pytest.mark.parametrize(
    ("encoding", "terminal", "shown"),
    [("latin-1", False, "Zażółć 猫".encode()), ("ascii", False, "Zażółć 猫".encode()),
     ("latin-1", True, b"Za?\xf3?? ?"), ("utf-8", True, "Zażółć 猫".encode())],
)  # fmt: skip
def test_output_is_utf_8_or_what_the_terminal_can_show(encoding, terminal, shown, monkeypatch):
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    for name in ("stdout", "stderr"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        stream.isatty = lambda: terminal
        monkeypatch.setattr(sys, name, stream)
    command.speak_utf_8()
    print("Zażółć 猫", end="", flush=True)
    assert sys.stdout.buffer.getvalue() == shown


def test_what_was_generated_is_written_before_any_of_it_is_shown(tmp_path, monkeypatch):
    from flaxlm.commands import generate
    from flaxlm.inference.generate import Generation

    made = [Generation(text, "ółć", (), 0.0, True) for text in ("Zażółć 猫 said", "Once")]
    monkeypatch.setattr(generate, "generate", lambda *arguments: made)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
    options = generate.Options(workdir=str(tmp_path), prompt=("a",))
    with pytest.raises(UnicodeEncodeError):
        generate.run(options, None)
    text = (tmp_path / "generations.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line)["prompt"] for line in text.split("\n")[:-1]] == [
        g.prompt for g in made
    ]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["/venv/bin/flaxlm", "train", "--prompt=a b"], "flaxlm train '--prompt=a b'"),
        (["/src/flaxlm/__main__.py", "train"], "PYTHON -m flaxlm train"),
        (["sweep.py", "3"], "PYTHON sweep.py 3"),
    ],
)
def test_a_run_says_how_it_was_started(argv, said):
    from flaxlm.training.record import command_line

    assert command_line(argv) == said.replace("PYTHON", sys.executable.rpartition("/")[2])


def test_a_promotion_of_dtypes_that_no_model_can_have_is_refused():
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    try:
        with pytest.raises(ConfigError, match="JAX_NUMPY_DTYPE_PROMOTION=strict is not supported"):
            command.set_up_jax(types.SimpleNamespace(platform=""))
    finally:
        jax.config.update("jax_numpy_dtype_promotion", "standard")


def test_a_platform_that_is_not_there_is_no_bug(monkeypatch):
    def devices():
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(ConfigError, match=r"JAX_PLATFORMS is cuda\): Unable to initialize"):
        command.set_up_jax(types.SimpleNamespace(platform=""))
