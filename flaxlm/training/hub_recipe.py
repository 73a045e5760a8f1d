"""The recipe that a Hugging Face model stands for."""

from flaxlm.interop.pretrained import Directory
from flaxlm.objectives import OBJECTIVES
from flaxlm.tasks.tagging import task_of_labels
from flaxlm.training.sections import TrainConfig


def hub_recipe(init: str) -> dict:
    """Return the tokenizer and model sections of a Hugging Face directory, and a recipe to read it.

    The objective is the one that its heads were trained with, as far as there is one here.
    """

    def fits(objective: str) -> bool:
        return described.model in OBJECTIVES[objective].models()

    directory = Directory(init)
    described, heads = directory.description, directory.heads()
    model = {"name": described.model, **described.fields}
    length = TrainConfig.length
    if model.get("positions", "learned") == "learned":
        length = min(length, model["max_length"])
    recipe = {
        "model": model,
        "tokenizer": {"kind": "huggingface", "vocab_size": model["vocab_size"]},
        "train": {"epochs": 1.0, "length": length},
    }
    if "classification" in heads:
        recipe["task"] = {"name": described.objective}
        labels = {} if described.objective == "regression" else {"labels": described.labels}
        recipe["objective"] = {"name": described.objective} | labels
    elif "token_classification" in heads and fits("token_classification"):
        recipe["objective"] = {"name": "token_classification", "labels": described.labels}
        recipe["task"] = task_of_labels(described.labels)
    elif "question_answering" in heads and fits("question_answering"):
        recipe["task"] = {"name": "question_answering"}
        recipe["objective"] = {"name": "question_answering"}
    elif fits("masked_lm"):
        recipe["objective"] = {"name": "masked_lm", "nsp": "nsp" in heads}
    elif fits("span_corruption"):
        recipe["objective"] = {"name": "span_corruption"}
    return recipe
