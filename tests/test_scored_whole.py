"""What is asked is what is scored: all of a file, and the table says how much of it."""

import json
import pathlib
import re

import pytest
import tiny_runs as tiny
from command_line import trained

from flaxlm.commands.evaluate import Options, in_buckets, scored_whole
from flaxlm.data.sources import DataConfig
from flaxlm.errors import ConfigError, DataError
from flaxlm.tasks import TASKS
from flaxlm.training.config import from_dict
from flaxlm.training.inputs import Inputs
from flaxlm.training.metrics import folded

WHOLE = {"data.split": "whole"}
RUN = {"data": {"path": "mine.txt", "split": "hash"}}
MODEL = {"vocab_size": 281}
PAIR = {"data": {"path": ("a", "b"), "split": "hash"}}
SPLIT = {"data": {"path": "a", "split": "file", "valid_path": "b"}}


@pytest.mark.parametrize(
    ("nested", "overrides", "foreign", "added"),
    [
        ({}, {"data.path": "x.jsonl"}, True, WHOLE),
        ({}, {"data.path": "x.jsonl", "task.name": "wnut17"}, True, WHOLE),
        (RUN, {"data.path": "other.txt"}, False, WHOLE),
        (SPLIT, {"data.path": "other.txt"}, False, WHOLE),
        # Nothing else is asked for, or a part is.
        (RUN, {}, False, {}),
        (RUN, {"data.path": "mine.txt"}, False, {}),
        (RUN, {"data.path": "./mine.txt"}, False, {}),
        ({}, {"data.path": "x.jsonl", "data.valid_fraction": "0.5"}, True, {}),
        ({}, {"data.path": "a", "data.valid_path": "b", "data.split": "file"}, True, {}),
        ({}, {"data.path": "stdlib", "task.name": "stdlib_package"}, True, {}),
        ({}, {"data.path": "{here}", "task.name": "multi30k"}, True, {}),
        # A recipe's own path, where it says nothing of splits and no run was trained on it.
        ({"data": {"path": "mine.txt"}}, {}, True, WHOLE),
        ({"data": {"path": "mine.txt"}}, {}, False, {}),
        ({"data": {"path": "a.conll"}, "task": {"name": "wnut17"}}, {}, True, WHOLE),
        ({"data": {"path": ("a", "b")}}, {}, True, WHOLE),
        ({"data": {"path": "{here}"}, "task": {"name": "multi30k"}}, {}, True, {}),
        ({"data": {"path": "stdlib"}}, {}, True, {}),
        (RUN, {}, True, {}),
        (RUN, {"data.path": "./mine.txt"}, True, {}),
        (RUN, {"data.path": "other.txt"}, True, WHOLE),
        ({"data": {"path": "mine.txt", "valid_fraction": 0.5}}, {}, True, {}),
        # Several paths.
        (RUN, {"data.path": "('mine.txt',)"}, False, {}),
        (PAIR, {"data.path": "('./a', 'b')"}, False, {}),
        (PAIR, {"data.path": "['a', 'b']"}, False, {}),
        (PAIR, {"data.path": "('a', 'c')"}, False, WHOLE),
        (PAIR, {"data.path": "a"}, False, WHOLE),
    ],
)
def test_a_file_that_nothing_was_trained_on_is_scored_whole(
    nested, overrides, foreign, added, tmp_path
):
    overrides = {key: value.format(here=tmp_path) for key, value in overrides.items()}
    if nested.get("data", {}).get("path") == "{here}":
        nested = nested | {"data": {"path": str(tmp_path)}}
    assert scored_whole(nested, overrides, None if foreign else nested) == overrides | added


@pytest.mark.parametrize(("path", "added"), [("./mine.txt", {}), ("other.txt", WHOLE)])
def test_a_recipe_given_again_does_not_make_a_runs_own_file_another(path, added):
    overrides = {"data.path": path}
    assert scored_whole({"data": {"path": "stdlib"}}, overrides, RUN) == overrides | added


@pytest.mark.parametrize(
    ("then", "now", "split", "named"),
    [
        # A file that is gone hides none of the others, and integers are no other numbers.
        ({"path": ("gone.txt", "b.txt")}, {"path": "b.txt", "split": "whole"}, "valid", "data.sp"),
        ({"path": ("a.txt", "b.txt"), "split": "tail", "weights": (1, 1)}, {}, "valid", None),
        ({}, {"split": "tail"}, "valid", "1 of the 1 files .*'hash' there and 'tail' here"),
        ({}, {"split": "whole"}, "valid", "data.split is 'hash' there"),
        ({}, {"valid_fraction": 0.5}, "test", "data.valid_fraction is 0.01 there and 0.5 here"),
        ({}, {"document": "line"}, "valid", "data.document is 'file' there"),
        ({}, {"path": "./a.txt", "nfc": True}, "valid", "data.nfc is False there"),
        ({"path": ("a.txt", "b.txt")}, {"path": "b.txt", "split": "whole"}, "valid", "data.split"),
        ({}, {"path": "?.txt", "split": "whole"}, "valid", "1 of the 3 files"),
        ({"path": ("a.txt", "b.txt"), "split": "tail"}, {"weights": (1, 1)}, "valid", "weights"),
        ({"path": ("a.txt", "b.txt"), "split": "tail"}, {"path": ("b.txt", "a.txt")}, "valid",
         "data.path is"),
        ({}, {"split": "file", "valid_path": "./a.txt"}, "valid", "data.split"),
        ({"split": "file", "valid_path": "b.txt"}, {"valid_path": "a.txt"}, "valid", "valid_path"),
        # The same rows, rows that were trained on by name, and other files.
        ({}, {}, "valid", None),
        ({}, {"split": "tail"}, "train", None),
        ({}, {"path": "b.txt", "split": "tail"}, "valid", None),
        ({}, {"workers": 1, "format": "text", "exclude": ("z",)}, "valid", None),
        ({"path": ("a.txt", "b.txt")}, {"path": "b.txt"}, "valid", None),
        ({"split": "file", "valid_path": "b.txt"}, {"valid_path": "./b.txt"}, "valid", None),
        ({"split": "file", "valid_path": "b.txt"}, {"valid_path": "c.txt"}, "valid", None),
        ({"split": "file", "valid_path": "b.txt"}, {"test_path": "c.txt"}, "test", None),
        ({}, {"path": "gone.txt", "split": "tail"}, "valid", None),
    ],
)  # fmt: skip
def test_another_part_of_what_was_trained_on_is_said(
    then, now, split, named, tmp_path, recwarn, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in "abc":
        pathlib.Path(f"{name}.txt").write_text("one\n\ntwo\n")
    then = dict(path="a.txt", split="hash") | then
    pathlib.Path("config.json").write_text(json.dumps(tiny.recipe("causal", data=then)))
    recipe = tiny.recipe("causal", data=then | now)
    config = Options(workdir=str(tmp_path), split=split).configure(recipe, {})
    assert config.data.split == (then | now)["split"]
    said = [str(warning.message) for warning in recwarn]
    assert len(said) == bool(named)
    assert not named or re.search(rf"{re.escape(str(tmp_path))} was trained .*{named}", said[0])


def test_a_split_that_is_none_is_said_before_anything_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny.recipe("causal", **SPLIT)))
    with pytest.raises(ConfigError, match="--split='bogus' is not known; choose one of: train"):
        Options(workdir=str(tmp_path), split="bogus").configure(tiny.recipe("causal", **SPLIT), {})


def test_other_columns_of_a_task_are_other_texts(tmp_path, recwarn):
    rows = tmp_path / "a.jsonl"
    rows.write_text('{"text": "a", "other": "b", "label": "x"}\n')
    sections = dict(
        data=dict(path=str(rows)), task={"name": "classification"},
        objective=dict(name="classification", labels=("x", "y")),
    )  # fmt: skip
    recipe = tiny.recipe("masked", **sections)
    del recipe["objective"]["nsp"]
    (tmp_path / "config.json").write_text(from_dict(recipe).to_json())
    options = Options(workdir=str(tmp_path))
    options.configure(recipe, {"task.label_column": "label"})
    assert not [str(w.message) for w in recwarn]
    options.configure(recipe, {"task.text_column": "other"})
    assert "task.text_column is 'text' there and 'other' here" in str(recwarn[0].message)


def test_the_file_that_a_run_was_trained_on_is_no_split_beside_another():
    for path in ("a", "./a"):
        with pytest.raises(ConfigError, match=r"its valid split is .*b: .*--split=train"):
            scored_whole(SPLIT, {"data.path": path}, SPLIT)
        asked = {"data.path": path}
        assert scored_whole(SPLIT, asked, SPLIT, "train") == asked
        for more in ({"data.split": "file"}, {"data.test_path": "c"}):
            with pytest.raises(ConfigError, match="--split=train"):
                scored_whole(SPLIT, asked | more, SPLIT)
        asked |= {"data.valid_path": "c"}
        assert scored_whole(SPLIT, asked, SPLIT) == asked
    both = {"data": SPLIT["data"] | {"valid_path": "a"}}
    assert scored_whole(both, {"data.path": "a"}, both) == {"data.path": "a"}


def test_a_run_that_was_not_evaluated_in_training_is_scored_in_any_batches(tmp_path):
    recipe = tiny.recipe("causal", eval={"split": ""})
    (tmp_path / "config.json").write_text(json.dumps(recipe))
    options = Options(workdir=str(tmp_path))
    assert options.configure(recipe, {"eval.batch_size": "3"}).eval.batch_size == 3


def test_batches_of_a_foreign_model_are_cut_where_a_task_has_examples():
    assert "(16, 32, 64" in in_buckets({}, {"task.name": "sst2"})["train.buckets"]
    assert "16, 32" in in_buckets({"task": {"name": "ner"}}, {})["train.buckets"]
    for nested, overrides in [
        ({}, {}),
        ({}, {"task.name": "hellaswag"}),
        ({}, {"task.name": "sst2", "train.buckets": "()"}),
        ({"task": {"name": "ner"}, "train": {"buckets": (8,)}}, {}),
    ]:
        assert in_buckets(nested, overrides) == overrides


def test_the_table_says_of_how_many():
    rows = {"valid/examples": 5, "valid/examples_read": 400, "valid/f1": 0.5}
    assert folded(rows) == {"valid/examples": "5 of 400", "valid/f1": "0.5000"}


@pytest.mark.parametrize("split", ["whole", "hash", "tail"])
def test_a_split_says_how_much_it_is_of_what_was_read(split, tmp_path):
    text, rows = tmp_path / "text.txt", tmp_path / "rows.jsonl"
    text.write_text("\n".join(f"line {n}" for n in range(40)))
    rows.write_text(
        "".join(json.dumps({"text": f"t {n}", "label": "ab"[n % 2]}) + "\n" for n in range(40))
    )
    data = dict(split=split, valid_fraction=0.2, document="line")
    plain = from_dict(tiny.recipe("causal", model=MODEL, data=dict(path=str(text), **data)))
    task = dict(
        task={"name": "classification"}, objective=dict(name="classification", labels=("a", "b"))
    )
    labelled = from_dict(
        tiny.recipe("causal", model=MODEL, data=dict(path=str(rows), **data), **task)
    )
    for config, what, total in ((plain, "bytes", 270), (labelled, "examples", 40)):
        with Inputs.open(config, tmp_path / what) as inputs:
            amount = inputs.amount("valid")
        assert amount[f"{what}_read"] == total
        assert amount[what] == total if split == "whole" else 0 < amount[what] < total / 2


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_without_rows_names_the_way_to_score_all(split, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": "t", "label": "a"}) + "\n")
    data = DataConfig(path=str(rows), split="tail")
    with pytest.raises(DataError, match=r"evaluate.* all of (them: data.split='whole'|its rows)"):
        TASKS["classification"]().examples(data, split, ("a", "b"))


def test_what_was_trained_on_is_known_under_another_name_and_from_elsewhere(
    tmp_path, recwarn, monkeypatch
):
    text = "\n\n".join(f"Line {n} of a text." for n in range(40))
    (tmp_path / "a.txt").write_text(text)
    data = dict(path="a.txt", document="paragraph", valid_fraction=0.1)
    recipe = tiny.recipe("recurrent", model=MODEL, train=dict(steps=1), data=data)
    _, run = trained(tmp_path, recipe)
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    (other / "b.txt").write_text(text)
    (other / "c.txt").write_text(text.replace("Line 7 ", "Line 8 "))
    for name, alike in (("b.txt", 1), ("c.txt", 0)):
        options = Options(workdir=str(run))
        options.configure(options.default_recipe(), {"data.path": name})
        said = [str(warning.message) for warning in recwarn if "trained on" in str(warning.message)]
        assert len(said) == alike
        recwarn.clear()
