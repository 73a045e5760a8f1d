"""What a message recommends can be done, and helps: each is met with, and its advice taken."""

import ast
import dataclasses
import functools
import importlib
import json
import os
import pathlib
import re
import warnings

import jax
import pytest
import tiny_runs as tiny
from advice import COMMAND_LINES, TRIALS
from advice_acts import Act, base, files, typed
from advice_reasons import REASONS

from flaxlm import sharding, tree
from flaxlm.commands import COMMANDS, embed, generate, recipe
from flaxlm.data.sources import DataConfig
from flaxlm.errors import ConfigError, DataError, FlaxlmError
from flaxlm.tasks import TASKS
from flaxlm.training import config as run_config
from flaxlm.training import start
from flaxlm.training.head_labels import order_of_head
from flaxlm.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("one_device")

PACKAGE = pathlib.Path(run_config.__file__).parents[1]
FILES = sorted(PACKAGE.rglob("*.py"))
# Of every verb, no flag's name, or of git and XLA.
OTHERS = ("config", "help", "flag", "key", "always", "dirty", "abbrev", "xla_gpu_deterministic_ops")
# Said where a verb without the flag never comes, though its module is imported.
GUARDED = {
    "allow_missing": "for verbs that have it; tried here, in test_hf_hostile.py and test_labels.py",
    "checkpoint": "`train` and `glue` read what they have just saved, and the best of an init",
    "init": "said where the verb has it, else --config.init",
    "split": "`glue` names the splits itself",
    **dict.fromkeys(
        ("coordinator", "num_processes", "process_id", "join_timeout"),
        "said to one of several processes, of a verb that has them",
    ),
    "workdir": "`convert` takes no recipe, and calls its directories --from and --to",
}
SECTIONS = (*run_config.SECTIONS, *run_config.TABLES)
KEY = rf"(?:{'|'.join(SECTIONS)})\.[a-z_]+"
NAMES = re.compile(
    rf"(?<![\w-])--[a-z]\w+|(?<![\w./])(?!tokenizer\.json){KEY}(?![\w.(\]/])"
    rf"|\b(?:{'|'.join(SECTIONS)})\.{{}}|(?<![\w.-])(?:{'|'.join(run_config.TOP)})="
)


@functools.cache
def messages() -> tuple[tuple[str, str], ...]:
    """Return (place, text) of the package's texts that name a flag or key, `{}` for what is filled.

    A text of which parts are added, or filled in, is one for each part.
    """
    found = []
    for path in FILES:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        docs = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        joined = [node for node in nodes if isinstance(node, ast.JoinedStr)]
        docs |= {id(part) for node in joined for part in node.values if _constant(part)}
        for node in nodes:
            if id(node) not in docs and (_constant(node) or isinstance(node, ast.JoinedStr)):
                parts = node.values if isinstance(node, ast.JoinedStr) else [node]
                text = "".join(part.value if _constant(part) else "{}" for part in parts)
                if " " in text and NAMES.search(text):
                    found.append((f"{path.relative_to(PACKAGE)}, line {node.lineno}", text))
    return tuple(found)


def _constant(node) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def parts_of(trial) -> list[str]:
    return trial[0].split(" … ")


def test_every_message_that_names_a_flag_or_key_has_a_trial_or_a_reason():
    tried = {part for trial in TRIALS for part in parts_of(trial)}
    known = {*tried, *REASONS}
    new = [both for both in messages() if not any(part in both[1] for part in known)]
    assert new == [], "neither a trial in advice.py nor one of advice_reasons.py"
    gone = [part for part in known if not any(part in text for _, text in messages())]
    assert gone == [], "nothing says these any more"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Go to a folder of what the trials read."""
    here = tmp_path_factory.mktemp("advice")
    files(here)
    (here / "recipe.json").write_text(json.dumps(base("causal")))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        yield here


def met_with(act, keys: dict[str, str]) -> str:
    """Return the message of an act, '' where it succeeds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            act(keys)
        except FlaxlmError as error:
            return str(error)
    return ""


def says(text: str, message: str) -> bool:
    """Say whether a message is of a text, with something in place of each `{}`."""
    return bool(re.search(re.escape(text).replace(r"\{\}", ".*"), message, re.DOTALL))


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial[0][:40])
def test_the_advice_of_a_message_is_taken_and_helps(trial, place):
    _, act, wrong, *rights = trial
    wrong, rights = typed(wrong), [typed(right) for right in rights if right]
    message = met_with(act, wrong)
    for part in parts_of(trial):
        texts = [text for _, text in messages() if part in text]
        assert any(says(text, message) for text in texts), message or "there is no error"
        for text in texts[:1]:  # what it recommends by value was tried with that value
            for key, word, value in re.findall(rf"({KEY})=(?:'(\w*)'|(\w+))(?![\w{{])", text):
                tried = [given.get(key) for given in (wrong, *rights)]
                assert value.isupper() or (word or value) in tried, (key, word or value)
    for right in rights:
        added = {key for key, value in right.items() if value != "-"} - wrong.keys()
        for key in added - {"data.path", "split"}:
            name = key.rpartition(".")[2] if trial not in COMMAND_LINES else f"--{key}"
            assert re.search(rf"(?<![\w-]){name}(?![\w.])", message), (key, message)
        number = re.findall(r"at (?:most|least) (\d+)", message)
        taken = {key: number[-1] if value == "?" else value
                 for key, value in (wrong | right).items() if value != "-"}  # fmt: skip
        assert met_with(act, taken) == "", right


@functools.cache
def texts(path: pathlib.Path) -> list[tuple[int, str]]:
    """Return (line, text) of a file's strings that are no docstrings."""
    module = ast.parse(path.read_text())
    nodes = list(ast.walk(module))
    docs = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    strings = (n for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str))
    return [(node.lineno, node.value) for node in strings if id(node) not in docs]


@functools.cache
def imported(path: pathlib.Path) -> set[pathlib.Path]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    places = [PACKAGE.parent / name.replace(".", "/") for name in names]
    return {p for place in places for p in (place.with_suffix(".py"), place / "__init__.py")
            if p in FILES}  # fmt: skip


def reached(verb: str) -> set[pathlib.Path]:
    """Return the files of the package that a verb imports."""
    todo = [PACKAGE / "commands" / f"{verb}.py"]
    seen = set(todo)
    while todo:
        new = imported(todo.pop()) - seen
        seen |= new
        todo += new
    return seen


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_flag_that_is_named_is_one_of_the_verb(verb):
    options = importlib.import_module(f"flaxlm.commands.{verb}").Options
    flags = {field.name.rstrip("_") for field in dataclasses.fields(options)} | {*OTHERS}
    for path in reached(verb):
        for line, text in texts(path):
            for flag in re.findall(r"(?<![\w-])--([a-z]\w+)=?", text):
                known = flag in flags or (flag in GUARDED and flag in every_flag())
                assert known, f"{path.name}, line {line}: --{flag}"


@functools.cache
def every_flag() -> set[str]:
    classes = [importlib.import_module(f"flaxlm.commands.{verb}").Options for verb in COMMANDS]
    return {field.name.rstrip("_") for cls in classes for field in dataclasses.fields(cls)}


def test_a_key_that_is_named_is_one():
    rows = {"model": [row.config_class for row in run_config.MODELS.values()],
            "objective": run_config.OBJECTIVES.values(), "task": TASKS.values()}  # fmt: skip
    classes = {section: [cls] for section, cls in run_config.SECTIONS.items()} | rows
    keys = {f"{section}.{field.name}" for section, several in classes.items()
            for cls in several for field in dataclasses.fields(cls)}  # fmt: skip
    keys |= {f"{section}.name" for section in rows} | {"model.preset"}
    names = "|".join(classes)
    for path in FILES:
        for line, text in texts(path):
            if " " not in text:  # a file's name, or a module's
                continue
            for key in re.findall(rf"(?<![\w./{{])((?:{names})\.[a-z_]+)(?![\w.(\]])", text):
                if key not in ("tokenizer.json", "sharding.use"):
                    assert key in keys, f"{path.name}, line {line}: {key}"


def choices() -> set[str]:
    """Return what `choose` is asked about, where that is a key or a flag."""
    calls = [n for path in FILES for n in ast.walk(ast.parse(path.read_text()))
             if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "choose"]  # fmt: skip
    asked = {call.args[0].value for call in calls if _constant(call.args[0])}
    return {what for what in asked if re.fullmatch(KEY, what)}


# The task or family that has a key, where a plain decoder has not.
OWNERS = {"objective.keep": "text_to_text", "objective.pooling": "similarity",
          "task.language": "text_to_text",
          "task.metric": "stsb", "task.normalize": "multiple_choice", "task.pairs": "similarity",
          "task.scheme": "ner", "task.scored_by": "text_to_text", "task.set": "t5_glue",
          "task.spaces": "ner", "task.style": "question_answering"}  # fmt: skip
# Set by another message's advice, or asked for in Python alone.
UNTYPED = {"sharding.rules", "eval.metric"}


@pytest.mark.parametrize("key", sorted(choices() - UNTYPED))
def test_what_can_be_chosen_can_be(key):
    """`choose` says what is valid: each of it is accepted, or refused for another reason."""
    name, act = OWNERS.get(key, ""), Act("spans" if key == "objective.keep" else "causal")
    keys = {"task.name": name, "objective.labels": "('O','B-A','I-A')"} if name else {}
    keys = {k: v for k, v in keys.items() if k != "objective.labels" or name == "ner"}
    message = met_with(act, keys | {key: "wrnog"})
    found = re.search(rf"^{re.escape(key)}='wrnog' is not known.*; choose one of: (.*)$", message)
    assert found, message
    for value in found[1].split(", "):
        assert not re.match(rf"{key}=.* is not known", met_with(act, keys | {key: value})), value


@pytest.mark.parametrize(
    "paths",
    [["heads/classification/kernel", "heads/classification/bias"], ["a/b", "c/d"],
     ["encoder/layers/mlp/kernel"]],
)  # fmt: skip
def test_the_pattern_that_is_recommended_matches(paths):
    assert all(re.search(tree.pattern_of(paths), path) for path in paths)
    assert not re.search(tree.pattern_of(paths), "decoder/layers/mlp/kernel")


def test_other_labels_start_fresh_where_that_can_be_asked_for():
    config = recipe.configure(
        base("encoder"), {"task.name": "classification", "objective.labels": "('x','y')"}
    )
    asked = (config, ("a", "b"), ["heads/classification/kernel", "heads/classification/bias"], "it")
    for allow in (None, ""):
        with pytest.raises(ConfigError) as caught:
            order_of_head(*asked, allow)
        found = re.search(r"--allow_missing='(.*?)'", str(caught.value))
        assert bool(found) == (allow is not None)
    assert order_of_head(*asked, found[1]) == ([], asked[2])


def test_parameters_that_a_run_lacks_start_fresh(place):
    run = run_config.read_run("run")
    run["model"]["qk_norm"] = True
    config = run_config.from_dict(run | {"init": "run"})
    program = make_train_step(config, sharding.make_mesh(config.sharding, jax.devices()[:1]), 1)
    with pytest.raises(ConfigError, match=r"has no .*query_norm") as caught:
        start._init_from_run(program, "")
    start._init_from_run(program, re.search(r"--allow_missing='(.*)'", str(caught.value))[1])


@pytest.mark.parametrize("name", ["nul", "long", "table"])
def test_a_reader_without_a_config_names_no_key(name, tmp_path, monkeypatch):
    """What a prompts file, or the texts of `embed`, get wrong cannot be helped by a config."""
    monkeypatch.setattr("flaxlm.files.MOST_LINE_BYTES", 50)
    text = {"nul": '{"text": "a\0"}\n', "long": '{"text": "' + "a" * 99 + '"}\n', "table": "a\n"}
    path = tmp_path / ("a.txt" if name == "table" else "a.jsonl")
    path.write_text(text[name])
    options = generate.Options(workdir="run", prompts=str(path))
    acts = [lambda: embed.read_texts(str(path)), lambda: generate.run(options, None)]
    for act in acts[: 1 if name == "table" else 2]:
        with pytest.raises(DataError, match=r"NUL|longer than|what kind of table") as caught:
            act()
        assert not re.search(rf"{KEY}|--config", str(caught.value).replace(os.fspath(path), ""))


def test_a_split_that_is_not_there_can_be_done_without(tmp_path):
    rows = '{"text": "x y", "label": "a"}\n{"text": "x z", "label": "b"}\n'
    (tmp_path / "rows.jsonl").write_text(rows)
    data = DataConfig(path=str(tmp_path / "rows.jsonl"), valid_fraction=0.0)
    message = data.lacks("valid")
    assert "data.valid_fraction is 0" in message
    keys = dict(re.findall(r"([a-z]+\.[a-z]+)='(\w*)'", message))
    assert keys == {"eval.split": "", "data.split": "whole"}
    nested = tiny.recipe("causal", data=dict(path=data.path, valid_fraction=0.0))
    assert recipe.configure(nested, {"eval.split": keys["eval.split"]}).eval.split == ""
    whole = dataclasses.replace(data, split=keys["data.split"])
    assert len(TASKS["classification"]().examples(whole, "valid", ("a", "b"))) == 2


@pytest.mark.parametrize("scheme", ["bmes", "BMES", "Bmes"])
def test_tags_of_another_scheme_name_it(scheme):
    labels = ("O", "B-A", "M-A", "E-A", "S-A")
    with pytest.raises(ConfigError, match=r"tags of task.scheme='bmes'$"):
        TASKS["ner"]().check(labels)
    TASKS["ner"](scheme=scheme).check(labels)


@pytest.mark.parametrize(
    ("sizes", "count", "advice"),
    [
        ((2, 1, 1), 1, {"data": "-1"}),
        ((1, 2, 1), 4, {"data": "-1"}),
        ((4, 2, 1), 4, {"data": "-1"}),
        ((2, 3, 1), 4, {"fsdp": "-1"}),
        ((2, 2, 2), 3, {"data": "-1", "fsdp": "1", "tensor": "1"}),
        ((-1, 2, 1), 1, {"fsdp": "1"}),
        ((-1, 2, 1), 3, {"fsdp": "1"}),
        ((2, 3, -1), 4, {"data": "1", "fsdp": "1"}),
    ],
)
def test_sizes_of_a_mesh_that_do_not_divide_are_named_with_others_that_do(sizes, count, advice):
    def keys(values: dict) -> dict:
        return {f"sharding.{axis}": str(size) for axis, size in values.items()}

    def mesh(typed: dict):
        config = recipe.configure(base("causal"), typed).sharding
        return sharding.make_mesh(config, jax.devices("cpu")[:count])

    typed = keys(dict(zip(sharding.MESH_AXES, sizes, strict=True)))
    with pytest.raises(ConfigError, match=rf"the {count} devices?; set ") as caught:
        mesh(typed)
    assert dict(re.findall(r"(sharding\.\w+)=(-?\d+)", str(caught.value))) == keys(advice)
    assert mesh(typed | keys(advice)).size == count
