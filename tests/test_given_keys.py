"""Of keys that contradict each other, or that nothing reads, none wins in silence."""

import json

import pytest

from flaxlm.commands import recipe
from flaxlm.errors import ConfigError
from flaxlm.training import config as run_config


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    place = tmp_path_factory.mktemp("readers")
    (place / "text.txt").write_text("a b\n")
    (place / "rows.jsonl").write_text('{"text": "a b"}\n')
    (place / "set").mkdir()
    (place / "set" / "state.json").write_text("{}")
    return place


READERS = [
    ("text.txt", {}, {"field": "body"}, "data.field=body would .*: data.path is text, and has no"),
    ("text.txt", {}, {"document": "line"}, ""),
    ("rows.jsonl", {}, {"field": "label"}, ""),
    ("rows.jsonl", {}, {"document": "line"}, "data.document=line would .*: data.path is jsonl"),
    ("rows.jsonl", {}, {"document": "line", "format": "text"}, ""),
    ("*", {}, {"document": "line"}, ""),  # both of them
    ("*", {}, {"field": "body"}, ""),
    ("text.txt", {"split": "file", "valid_path": "rows.jsonl"}, {"field": "label"}, ""),
    ("absent.txt", {}, {"field": "body"}, ""),  # that it is not there is said first
    ("set", {}, {"include": "a*"}, "data.include=a. would .*: data.path is one data set"),
    ("stdlib", {}, {"format": "jsonl"}, "data.format=jsonl would .*'stdlib' is Python files"),
    ("stdlib", {}, {"document": "line"}, "data.document=line would .*'stdlib' is Python files"),
    ("stdlib", {"document": "line"}, {"document": "file"}, ""),
    ("stdlib", {}, {"field": "body"}, "data.field=body would have no effect"),
    ("text.txt", {}, {"weights": "(1.0,)"}, "data.weights=.* would .*: data.path is one path"),
    ("text.txt", {"threads": 0}, {"prefetch": "3"}, "data.prefetch=3 would .*: data.threads=0"),
    ("text.txt", {}, {"sentences": "True"}, "data.sentences=.*'causal_lm' predicts no next sent"),
]


@pytest.mark.parametrize(("path", "stated", "typed", "message"), READERS)
def test_what_the_readers_of_a_corpus_do_not_read_is_refused(path, stated, typed, message, corpus):
    held = {key: str(corpus / value) for key, value in stated.items() if key.endswith("path")}
    data = {"path": path if path == "stdlib" else str(corpus / path)} | stated | held
    nested, typed = {"train": {"steps": 1}}, {f"data.{k}": v for k, v in typed.items()}
    nested["data"] = data
    if not message:
        recipe.configure(nested, typed)
        return
    with pytest.raises(ConfigError, match=message):
        recipe.configure(nested, typed)


@pytest.mark.parametrize(
    ("name", "stated", "typed"),
    [
        ("classification", {}, {"data.document": "line"}),
        ("classification", {}, {"data.field": "body"}),
        ("multiple_choice", {}, {"task.seed": "3"}),
        ("multiple_choice", {"choice_columns": ("a", "b")}, {"task.choices_column": "c"}),
        ("schema", {"context_columns": ("a", "b")}, {"task.contexts_column": "c"}),
        ("question_answering", {}, {"task.null_threshold": "1.0"}),
        ("summarization", {}, {"objective.length_penalty": "1.0"}),
        ("text", {}, {"baseline": "runs/other"}),
        ("text", {}, {"eval.patience": "2"}),
        ("text", {}, {"train.profile_steps": "3:4"}),
        ("text", {}, {"train.profile_steps": "1:0"}),
    ],
)
def test_what_a_task_does_not_read_is_refused(name, stated, typed):
    nested = {"train": {"steps": 1}, "task": stated | {"name": name}}
    nested["data"] = {"path": "rows.jsonl"}
    nested |= {"objective": {"labels": ("a", "b")}} if name == "classification" else {}
    (key,) = typed
    with pytest.raises(ConfigError, match=rf"--config.{key}=.* would have no effect: "):
        recipe.configure(nested, typed)
    read = {"task.seed": {"shots": 2}, "task.null_threshold": {"unanswerable": True}}.get(key)
    if key == "train.profile_steps":
        assert recipe.configure(nested, {key: "0:1"}).train.profile_range() == (0, 1)
    if read:
        nested["task"] |= read
        recipe.configure(nested, typed)


DURATIONS = {"steps": 0, "tokens": 0, "epochs": 0.0}


@pytest.mark.parametrize("stated", DURATIONS)
@pytest.mark.parametrize("given", DURATIONS)
def test_a_duration_that_is_typed_takes_the_place_of_the_recipes(stated, given):
    nested = {"train": {stated: 7}} if stated != "epochs" else {"train": {"epochs": 7.0}}
    config = recipe.configure(nested, {f"train.{given}": "3"})
    values = {name: getattr(config.train, name) for name in DURATIONS}
    assert values == DURATIONS | {given: 3}


@pytest.mark.parametrize(
    ("nested", "typed", "message"),
    [
        ({"preset": "gpt2", "name": "encoder"}, {}, "is of model.name='decoder'.*is 'encoder'"),
        ({"preset": "bert_tiny"}, {"model.name": "decoder"}, "set model.preset=''"),
        ({}, {"model.preset": "gpt2", "model.name": "encoder"}, "leave one of them out"),
        ({"name": "encoder"}, {"model.preset": "gpt2"}, ""),  # takes the place of the recipe's
        ({"preset": "bert_tiny"}, {"model.preset": "", "model.name": "decoder"}, ""),
    ],
)
def test_a_preset_beside_the_name_of_another_family_is_refused(nested, typed, message):
    nested = {"train": {"steps": 1}, "model": nested}
    if message:
        with pytest.raises(ConfigError, match=message):
            recipe.configure(nested, typed)
    else:
        assert recipe.configure(nested, typed).model_name == "decoder"


def test_a_run_that_states_the_preset_of_another_family_goes_on_without_it(tmp_path):
    full = recipe.configure({"train": {"steps": 2}}, {}).raw
    full["model"]["preset"] = "bert_tiny"
    (tmp_path / "config.json").write_text(json.dumps(full))
    model = run_config.build(run_config.read_run(str(tmp_path))).raw["model"]
    assert model == full["model"] | {"preset": ""}


def test_two_durations_or_warmups_in_one_place_are_refused():
    with pytest.raises(ConfigError, match=r"train.steps=2 and train.epochs=3.0 are two durations"):
        recipe.configure({"train": {"steps": 2, "epochs": 3.0}}, {})
    with pytest.raises(ConfigError, match=r"tokens=9 and train.epochs=1.0 are two durations"):
        recipe.configure({"train": {"steps": 2}}, {"train.epochs": "1", "train.tokens": "9"})
    with pytest.raises(ConfigError, match=r"steps=1, train.tokens=9 and .* are three durations"):
        recipe.configure({"train": {"steps": 1, "tokens": 9, "epochs": 1.0}}, {})
    nested = {"train": {"steps": 2}, "optimizer": {"warmup_steps": 5}}
    optimizer = recipe.configure(nested, {"optimizer.warmup_fraction": "0.1"}).optimizer
    assert (optimizer.warmup_steps, optimizer.warmup_fraction) == (0, 0.1)
    both = {"optimizer.warmup_fraction": "0.1", "optimizer.warmup_steps": "3"}
    with pytest.raises(ConfigError, match="set one of them to 0"):
        recipe.configure(nested, both)


def test_a_run_that_states_two_durations_goes_on_with_the_first(tmp_path):
    full = recipe.configure({"train": {"steps": 2}}, {}).raw
    full["train"]["epochs"] = 3.0
    (tmp_path / "config.json").write_text(json.dumps(full))
    for nested in (run_config.read_run(str(tmp_path)),
                   recipe.load_recipe(str(tmp_path / "config.json"))):  # fmt: skip
        train_ = run_config.build(nested).train
        assert (train_.steps, train_.epochs) == (2, 0.0)


FILES = {"path": "a", "split": "file", "valid_path": "b", "test_path": "c"}
# A task that brings its files along.
HELD_OUT = {"task": {"name": "multi30k"}, "model": {"name": "encoder_decoder"}}


@pytest.mark.parametrize("split", ["hash", "tail", "whole"])
@pytest.mark.parametrize("nested", [{"data": FILES}, HELD_OUT])
def test_a_split_that_is_typed_leaves_the_files_of_the_recipe_out(nested, split):
    nested = {"train": {"steps": 1}} | nested
    assert recipe.configure(nested, {}).data.valid_path
    for data in (
        recipe.configure(nested, {"data.split": split}).data,
        recipe.configure(HELD_OUT | nested | {"data": {"split": split}}, {}).data,
    ):
        assert (data.split, data.valid_path, data.test_path) == (split, "", "")
    # Both in one place contradict each other.
    for more, typed in (
        ({}, {"data.split": split, "data.test_path": "d"}),
        ({"data": FILES | {"split": split}}, {}),
    ):
        with pytest.raises(ConfigError, match=r"need data.split='file', not .* leave data"):
            recipe.configure(nested | more, typed)


CLASSIFIER = {"train": {"steps": 1}, "task": {"name": "cola"}}


@pytest.mark.parametrize(
    ("recipes", "typed", "mode"),
    [
        ({}, {}, "max"),
        ({}, {"eval.metric": "loss"}, "min"),
        ({"metric": "loss"}, {}, "min"),
        ({"metric": "loss"}, {"eval.metric": "accuracy"}, "max"),
        ({"metric": "ece", "mode": "min"}, {"eval.metric": "f1_macro"}, "max"),
        ({}, {"eval.metric": "accuracy/kind=a"}, "max"),
        ({}, {"eval.metric": "own", "eval.mode": "min"}, "min"),
        ({}, {"eval.metric": "brier", "eval.mode": "min"}, "min"),
    ],
)
def test_the_mode_follows_the_metric_unless_it_is_given(recipes, typed, mode):
    assert recipe.configure(CLASSIFIER | {"eval": recipes}, typed).eval.mode == mode


@pytest.mark.parametrize(
    ("recipes", "typed", "message"),
    [
        ({}, {"eval.metric": "loss", "eval.mode": "max"}, "would keep the worst by eval.metric"),
        ({}, {"eval.mode": "min"}, "eval.mode='min' would keep the worst by .*'matthews'.*'max'"),
        ({"metric": "mse", "mode": "max"}, {}, "would keep the worst"),
        ({}, {"eval.metric": "acuracy"}, "did you mean 'accuracy'.*needs eval.mode"),
    ],
)
def test_a_mode_against_its_metric_is_refused(recipes, typed, message):
    with pytest.raises(ConfigError, match=message):
        recipe.configure(CLASSIFIER | {"eval": recipes}, typed)


@pytest.mark.parametrize(
    ("stated", "typed", "sizes"),
    [
        ({}, {}, (8192, 8192)),
        ({}, {"tokenizer.kind": "byte"}, (361, 361)),
        ({}, {"tokenizer.kind": "byte", "tokenizer.sentinels": "0"}, (261, 261)),
        ({}, {"tokenizer.kind": "char"}, (8192, 0)),
        ({}, {"tokenizer.vocab_size": "500"}, (500, 500)),
        ({}, {"tokenizer.vocab_size": "500", "model.vocab_size": "600"}, (500, 600)),
        ({"vocab_size": 400}, {"tokenizer.kind": "byte"}, (361, 400)),
        ({"vocab_size": 400}, {"tokenizer.kind": "char"}, (8192, 400)),
        ({"preset": "gpt2"}, {"tokenizer.kind": "byte"}, (361, 50257)),
    ],
)
def test_the_vocabulary_follows_the_tokenizer_unless_it_is_stated(stated, typed, sizes):
    config = recipe.configure({"train": {"steps": 1}, "model": stated}, typed)
    assert (config.tokenizer.vocab_size, config.model.vocab_size) == sizes
    # What is written down is read as the same.
    assert run_config.build(run_config.expand(config.raw)).raw == config.raw
