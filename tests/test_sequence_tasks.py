"""Numbers, several labels and similarity through the command line: trained, scored, answered."""

import json
import random

import pytest
import tiny_runs as tiny

from flaxlm import __main__ as command
from flaxlm.commands import recipe
from flaxlm.tasks import TASKS
from flaxlm.tasks.glue import GLUE
from flaxlm.training import config as run_config

WORDS = "the sea was calm 海 很 平静 and grey that day we rowed to a far green island".split()
LABELS = ("sea", "day", "海")
# {task: (columns of the gold, overrides)}
CASES = {
    "regression": (("score",), ["--config.task.pair_column=b"]),
    "multi_label": (("labels",), [f"--config.objective.labels={LABELS!r}"]),
    "similarity": (
        ("score",),
        ["--config.task.text_column=text", "--config.task.pair_column=b",
         "--config.task.threshold=2"],
    ),
    "qqp": (("is_duplicate",), []),
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_device")


def rows(seed, count, golds):
    draw = random.Random(seed)
    for _ in range(count):
        words = draw.choices(WORDS, k=4)
        row = {"text": " ".join(words), "b": " ".join(draw.choices(WORDS, k=2))}
        row |= {"question1": row["text"], "question2": row["b"]}  # as QQP has them
        found = {"score": words.count("sea") + len(words[0]) / 2, "labels": []}
        found["labels"] = [label for label in LABELS if label in words]
        found["is_duplicate"] = int("sea" in words)
        yield row | {name: found[name] for name in golds}


@pytest.mark.filterwarnings("ignore:.*training pairs have a score")
@pytest.mark.parametrize("task", CASES)
def test_a_file_of_ones_own_is_trained_scored_and_answered(tmp_path, task):
    golds, overrides = CASES[task]
    recipe = tiny.recipe("recurrent", model={"vocab_size": 281, "num_layers": 1}, task={})
    recipe |= {"objective": {}, "task": {"name": task}}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    for seed, (split, count) in enumerate((("train", 40), ("dev", 11), ("test", 7))):
        lines = rows(seed, count, golds if split != "test" else ())
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines)
        (tmp_path / f"{split}.jsonl").write_text(text, encoding="utf-8")
    data = [f"--config.data.{k}={tmp_path / v}.jsonl" for k, v in
            (("path", "train"), ("valid_path", "dev"), ("test_path", "test"))]  # fmt: skip
    workdir = tmp_path / "run"
    overrides = [*overrides, "--config.data.split=file", "--config.eval.every=2"]
    recipe = f"--config={tmp_path / 'recipe.json'}"
    command.run(["train", recipe, f"--workdir={workdir}", *data, *overrides])
    command.run(["evaluate", f"--workdir={workdir}", "--split=test"])
    result = json.loads((workdir / "result.json").read_text())
    metric = TASKS[task].defaults["eval"]["metric"]
    low, high = (result[f"valid/{metric}_{end}"] for end in ("low", "high"))
    assert low <= result[f"valid/{metric}"] <= high
    for split, count in (("valid", 11), ("test", 7)):
        path = workdir / "evaluations" / f"{task}-{split}" / "predictions.jsonl"
        answers = [json.loads(line) for line in path.read_text().splitlines()]
        name = "dev" if split == "valid" else "test"
        assert [a["id"] for a in answers] == [f"{name}.jsonl:{n + 1}" for n in range(count)]
        assert all((a["gold"] is None) == (split == "test") for a in answers)
    # The best checkpoint's scores are those of the answers that were written.
    if task == "regression":
        path = workdir / "evaluations" / "regression-valid" / "predictions.jsonl"
        answers = [json.loads(line) for line in path.read_text().splitlines()]
        errors = [(a["prediction"] - a["gold"]) ** 2 for a in answers]
        assert result["valid/mse"] == pytest.approx(sum(errors) / 11, rel=1e-3)
        assert result["valid/loss"] == pytest.approx(result["valid/mse"], rel=1e-4)


SUPERVISED = ("classification", "regression", "multi_label", "similarity", *GLUE)


@pytest.mark.parametrize("task", SUPERVISED)
def test_the_recipe_of_fine_tuning_takes_any_task_by_its_name(task):
    made = recipe.load_recipe("finetune")
    named = task in GLUE or task in ("regression", "similarity")
    overrides = {"task.name": task} | ({} if named else {"objective.labels": "('a','b')"})
    config = recipe.configure(made, overrides)
    assert (config.task_name, config.objective_name) == (task, TASKS[task].objective)
    assert config.eval.metric == TASKS[task].defaults["eval"]["metric"]
    labels = TASKS[task].defaults.get("objective", {}).get("labels", ("a", "b"))
    assert getattr(config.objective, "labels", labels) == labels
    # What a run's config.json says is the same run.
    assert run_config.build(run_config.expand(config.raw)).objective == config.objective
