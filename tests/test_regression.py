"""Numbers and several labels: losses against torch, rows of every kind, what is refused."""

import ast
import json
import subprocess

import hf_cases
import jax
import numpy as np
import pytest
import tiny_runs as tiny
import torch
import transformers
from hf_cases import CASES
from test_objective_models import built, compiled, results

from flaxlm.commands import convert
from flaxlm.data.sources import DataConfig
from flaxlm.errors import ConfigError, DataError
from flaxlm.objectives import OBJECTIVES, MultiLabel, Regression
from flaxlm.tasks import TASKS
from flaxlm.tasks.task import values_of
from flaxlm.training import config as run_config

FAMILIES = ("encoder", "decoder", "recurrent")
LABELS = ("joy", "anger", "喜")


def real_part(case, name):
    """Return (logits, labels) of the rows that are no filling, as torch has them."""
    batch, outputs = built(case, name)[3], results(case, name)[2]
    real = batch["example_ids"] >= 0
    assert not real.all()
    return (torch.tensor(np.array(a)[real]) for a in (outputs["classification"], batch["labels"]))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_loss_of_numbers_is_torchs(name):
    logits, labels = real_part("regression", name)
    (total, weight), *_ = results("regression", name)[0][0].values()
    expected = torch.nn.functional.mse_loss(logits[:, 0], labels)
    assert float(total / weight) == pytest.approx(float(expected), rel=1e-5)
    assert logits.shape == (11, 1) and weight == 11


@pytest.mark.parametrize("name", FAMILIES)
def test_the_loss_of_several_labels_is_torchs(name):
    logits, labels = real_part("multi_label", name)
    (total, weight), *_ = results("multi_label", name)[0][0].values()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    assert float(total / weight) == pytest.approx(float(expected), rel=1e-5)
    assert logits.shape == labels.shape == (11, 3) and 0 < labels.sum() < 33


def test_label_smoothing_moves_the_targets_in_training_alone():
    objective, model, params, batch = built("multi_label", "recurrent")  # without dropout
    smooth = MultiLabel(labels=objective.labels, label_smoothing=0.2).for_model("recurrent")
    logits, labels = real_part("multi_label", "recurrent")
    for train, targets in ((True, labels * 0.8 + 0.1), (False, labels)):
        rng = jax.random.key(0)
        (total, weight), *_ = smooth.loss(model, params, batch, rng, train)[0].values()
        expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
        assert float(total / weight) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("case", ["regression", "multi_label"])
def test_predictions_are_the_heads(case):
    objective, model, params, batch = built(case, "decoder")
    outputs = compiled(case, "decoder")(batch)[2]["classification"]
    found = objective.predict(model, params, batch)
    if case == "regression":
        np.testing.assert_allclose(found["values"], outputs[:, 0], rtol=1e-5)
    else:
        np.testing.assert_allclose(
            found["probabilities"], torch.sigmoid(torch.tensor(outputs)), rtol=1e-5
        )


@pytest.mark.parametrize(
    ("objective", "fields"),
    [
        ("regression", {"label_smoothing": 0.1}),
        ("regression", {"z_loss": 0.1}),
        ("multi_label", {"labels": LABELS, "z_loss": 0.1}),
        ("multi_label", {"labels": ("joy",)}),
        ("multi_label", {"labels": ("joy", "joy")}),
    ],
)
def test_settings_without_a_meaning_are_refused(objective, fields):
    with pytest.raises(ConfigError, match=r"objective\."):
        OBJECTIVES[objective](**fields)


def test_numbers_and_labels_of_the_wrong_shape_are_named():
    example = {"id": "f:3", "text": "a"}
    with pytest.raises(DataError, match="example f:3: score nan"):
        Regression().plan([example | {"score": np.nan}], 9, None, seed=0, shuffle=True)
    with pytest.raises(DataError, match="example f:3: 2 truth values for 3 labels"):
        MultiLabel(labels=LABELS).plan(
            [example | {"labels": (True, False)}], 9, None, seed=0, shuffle=True
        )


# --- rows


def data_of(path, rows, **fields):
    """Write rows as JSONL, or as TSV where the ending says so; return where they stand."""
    if path.suffix == ".tsv":
        lines = ["\t".join(rows[0]), *("\t".join(str(v) for v in row.values()) for row in rows)]
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return DataConfig(path=str(path), **{"split": "tail", "valid_fraction": 0.0} | fields)


@pytest.mark.parametrize("name", ["a.jsonl", "a.tsv"])
def test_numbers_are_read_from_every_kind_of_file(tmp_path, name):
    rows = [{"text": f"t {i}", "b": f"u {i}", "score": v} for i, v in enumerate((0, 2.5, -1e-3))]
    data = data_of(tmp_path / name, rows)
    found = TASKS["regression"](pair_column="b").examples(data, "train")
    assert [(e["text"], e["text_pair"], e["score"]) for e in found] == [
        tuple(row.values()) for row in rows
    ]
    assert TASKS["regression"]().examples(data, "train")[0].keys() == {"id", "text", "score"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5.5, r"line 2: column 'score' holds 5.5, which is not in 0.0 … 5.0"),
        (-0.1, r"line 2: .*not in 0.0 … 5.0"),
        ("high", r"line 2: column 'score' holds 'high', not a finite number"),
        ("nan", r"line 2: column 'score' holds 'nan', not a finite number"),
        (float("inf"), r"line 2: column 'score' holds inf, not a finite number"),
        (True, r"line 2: column 'score' holds true, not a text"),
        (None, r"line 2: column 'score' holds null"),
        ("", r"line 2: column 'score' is empty"),
    ],
)
def test_a_bad_number_is_refused_with_its_line(tmp_path, value, message):
    data = data_of(tmp_path / "a.jsonl", [{"text": "a", "score": 5}, {"text": "b", "score": value}])
    with pytest.raises(DataError, match=message):
        TASKS["regression"](low=0.0, high=5.0).examples(data, "train")
    if value == 5.5:
        assert TASKS["regression"]().examples(data, "train")[1]["score"] == 5.5


def test_a_test_file_without_numbers_can_be_answered(tmp_path):
    path = str(tmp_path / "test.jsonl")
    data_of(tmp_path / "test.jsonl", [{"text": "a"}])
    data = data_of(
        *(tmp_path / "a.jsonl", [{"text": "b", "score": 1}]),
        **dict(split="file", valid_path=str(tmp_path / "a.jsonl"), test_path=path),
    )
    for name, gold in (("regression", {"score": None}), ("multi_label", {"labels": None})):
        assert TASKS[name]().examples(data, "test", LABELS) == [
            {"id": "test.jsonl:1", "text": "a"} | gold
        ]


def test_labels_are_a_list_or_a_text_with_a_separator(tmp_path):
    several = [["joy", "喜"], [], ["anger"]]
    lists = data_of(tmp_path / "a.jsonl", [{"text": "t", "labels": row} for row in several])
    texts = [{"text": "t", "labels": " | ".join(row)} for row in several]
    texts = data_of(tmp_path / "b.tsv", texts)
    expected = [(True, False, True), (False, False, False), (False, True, False)]
    task = TASKS["multi_label"](separator="|")
    for data in (lists, texts):
        found = task.examples(data, "train", LABELS)
        assert [e["labels"] for e in found] == expected == task.golds(found)
        assert list(task.label_counts(data)) == sorted(LABELS)
    assert [task.show(row, LABELS) for row in expected] == several


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["joi"], r"line 1: .*the label 'joi', which is not in.*mean 'joy'.*valid: joy, anger, 喜"),
        (["joy", "joy"], r"line 1: column 'labels' holds an empty label, or one twice"),
        ("joy,,anger", r"line 1: column 'labels' holds an empty label, or one twice"),
        ([["joy"]], r"line 1: column 'labels' holds \[\[.*not a text"),
        (None, r"line 1: column 'labels' holds null"),
    ],
)
def test_bad_labels_are_refused_with_their_line(tmp_path, value, message):
    data = data_of(tmp_path / "a.jsonl", [{"text": "t", "labels": value}])
    with pytest.raises(DataError, match=message):
        TASKS["multi_label"]().examples(data, "train", LABELS)


def test_the_threshold_decides_and_the_score_is_of_the_whole_answer():
    chances = np.array([[0.3, 0.9, 0.5], [0.1, 0.2, 0.6]])
    examples = [{"id": "", "text": "", "labels": None}] * 2
    half, low = (
        TASKS["multi_label"](threshold=t).postprocess({"probabilities": chances}, examples)
        for t in (0.5, 0.25)
    )
    assert values_of(half) == [(False, True, True), (False, False, True)]
    assert values_of(low) == [(True, True, True), (False, False, True)]
    assert half[0].score == pytest.approx(0.7 * 0.9 * 0.5)
    task = TASKS["multi_label"]()
    assert task.mistake(half[0], (True, True, False)) == pytest.approx(0.7 + 0.5)


# --- labels that a config does not name


@pytest.mark.parametrize("task", ["classification", "multi_label"])
def test_labels_that_are_not_given_are_listed_ready_to_be_copied(tmp_path, task):
    names = ['a "b"', "$HOME", "c's", "\\d"]
    column = "label" if task == "classification" else "labels"
    rows = [{"text": "t", column: name if column == "label" else [name]} for name in names]
    data = {"path": data_of(tmp_path / "a.jsonl", rows).path, "valid_fraction": 0.0}
    recipe = tiny.recipe("masked", data=data) | {"task": {"name": task}, "objective": {}}
    with pytest.raises(
        ConfigError, match=r"objective.labels is empty; .*all rows of .*a.jsonl"
    ) as e:
        run_config.from_dict(recipe)
    command = ["sh", "-c", f"printf %s {str(e.value).partition(' are ')[2]}"]
    flag = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    key, _, value = flag.partition("=")
    assert key == "--config.objective.labels" and ast.literal_eval(value) == tuple(sorted(names))
    recipe["objective"] = {"labels": ast.literal_eval(value)}
    assert run_config.from_dict(recipe).objective.labels == tuple(sorted(names))


def test_labels_left_to_the_data_are_those_of_the_training_rows_and_stay(tmp_path, capsys):
    train, valid = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    data_of(train, [{"text": f"t {i}", "label": "bab"[i % 3]} for i in range(9)])
    data_of(valid, [{"text": "t", "label": "c", "id": "mine"}])
    data = dict(path=str(train), split="file", valid_path=str(valid))
    recipe = tiny.recipe("masked", data=data) | {"task": {"name": "classification"}}
    with pytest.raises(ConfigError, match=r"labels is empty; .*all rows of .*a.jsonl"):
        run_config.from_dict(recipe | {"objective": {}})
    for auto in ("auto", ("auto",), ["auto"]):
        config = run_config.from_dict(recipe | {"objective": {"labels": auto}})
        assert config.objective.labels == ("a", "b")
    assert "objective.labels: 2 of" in (said := capsys.readouterr().err)
    assert "'a' (3), 'b' (6)" in said
    # The config that a run keeps has them, so that no later command looks again.
    kept = json.loads(config.to_json())
    assert kept["objective"]["labels"] == ["a", "b"]
    with pytest.raises(DataError, match=r"b.jsonl, line 1: .*label 'c', which is not in.*: a, b"):
        config.task.examples(config.data, "valid", config.objective.labels)
    with pytest.raises(ConfigError, match="finds no labels"):
        run_config.from_dict(recipe | {"task": {"name": "sst2"}, "objective": {"labels": "auto"}})


def test_numbered_labels_are_listed_by_size_and_a_column_of_texts_is_none(tmp_path):
    rows = [{"text": f"t {i}", "label": i} for i in (10, 9, 0, 10)]
    data = data_of(tmp_path / "a.jsonl", rows)
    assert list(TASKS["classification"]().label_counts(data).items()) == [
        ("0", 1),
        ("9", 1),
        ("10", 2),
    ]
    rows = [{"text": f"t {i}", "label": "x"} for i in range(200)]
    recipe = tiny.recipe("masked", data={"path": data_of(tmp_path / "b.jsonl", rows).path})
    recipe |= {"task": {"name": "classification", "label_column": "text"}, "objective": {}}
    with pytest.raises(
        ConfigError,
        match=r"200 different ones \('t 0', .*right column, which task.label_column names\?",
    ):
        run_config.from_dict(recipe)


# --- what transformers calls them


@pytest.mark.parametrize(
    ("count", "given", "task"),
    [
        (1, None, "regression"),
        (1, "regression", "regression"),
        (3, "multi_label_classification", "multi_label"),
        (3, None, "classification"),
    ],
)
def test_what_a_head_says_is_read_in_transformers_words(tmp_path, count, given, task):
    fields = {"num_labels": count} | ({"problem_type": given} if given else {})
    hf_cases.torch_model(CASES["bert"], "classification", **fields).save_pretrained(tmp_path)
    recipe = run_config.hub_recipe(f"hf:{tmp_path}")
    labels = {} if count == 1 else {"labels": tuple(f"LABEL_{i}" for i in range(count))}
    assert (recipe["task"], recipe["objective"]) == ({"name": task}, {"name": task} | labels)


def test_a_run_is_written_with_what_its_head_says(tmp_path):
    here, run, there = (str(tmp_path / name) for name in ("here", "run", "there"))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    fields = {"vocab_size": len(pieces), "problem_type": "multi_label_classification"}
    hf_cases.torch_model(CASES["bert"], "classification", **fields).save_pretrained(here)
    (tmp_path / "here" / "vocab.txt").write_text("\n".join(pieces))
    convert.convert(f"hf:{here}", run)
    convert.convert(run, f"hf:{there}")
    said = transformers.AutoConfig.from_pretrained(there)
    assert (said.num_labels, said.problem_type) == (3, "multi_label_classification")
    assert OBJECTIVES["regression"].problem == "regression"


def test_several_numbers_a_text_are_refused(tmp_path):
    fields = {"num_labels": 3, "problem_type": "regression"}
    hf_cases.torch_model(CASES["bert"], "classification", **fields).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="problem_type='regression' with 3 numbers"):
        run_config.hub_recipe(f"hf:{tmp_path}")
