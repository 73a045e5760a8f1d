"""What a message recommends can be done: its flags are flags of the verb, its keys are keys."""

import ast
import dataclasses
import functools
import importlib
import pathlib
import re

import pytest
import tiny_runs as tiny

from flaxlm import tree
from flaxlm.commands import COMMANDS, recipe
from flaxlm.data.sources import DataConfig
from flaxlm.errors import ConfigError
from flaxlm.tasks import TASKS
from flaxlm.training import config as run_config

PACKAGE = pathlib.Path(run_config.__file__).parents[1]
FILES = sorted(PACKAGE.rglob("*.py"))
# Of every verb, no flag's name, or of git and XLA.
OTHERS = ("config", "help", "flag", "key", "always", "dirty", "abbrev", "xla_gpu_deterministic_ops")
# Said where a verb without the flag never comes, though its module is imported.
GUARDED = {
    "allow_missing": "None for verbs that cannot be asked; see `Directory.plan`",
    "checkpoint": "`train` and `glue` read what they have just saved, and the best of an init",
    "init": "said where the verb has it, else --config.init",
    "split": "`glue` names the splits itself",
    "workdir": "`convert` takes no recipe, and calls its directories --from and --to",
}


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


@pytest.mark.parametrize(
    "paths",
    [["heads/classification/kernel", "heads/classification/bias"], ["a/b", "c/d"],
     ["encoder/layers/mlp/kernel"]],
)  # fmt: skip
def test_the_pattern_that_is_recommended_matches(paths):
    assert all(re.search(tree.pattern_of(paths), path) for path in paths)
    assert not re.search(tree.pattern_of(paths), "decoder/layers/mlp/kernel")


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
