"""What `config.json` of an earlier version said, in the words of today."""

import pathlib
import warnings

from flaxlm.metrics.measure import direction
from flaxlm.models import PRESETS
from flaxlm.training.sections import DURATIONS


def family_of(model: dict) -> str | None:
    """Return the `model.name` that the preset of a `model` section has, or else its own."""
    return PRESETS.get(model.get("preset"), model).get("name")


def as_today(recipe: dict, path: pathlib.Path) -> dict:
    """Return the `recipe` of a run with what is refused today set to what held; `path` names it."""
    # Runs of before 2026-11-26 may state two durations, of which the first held.
    train = recipe.get("train", {})
    for name in [name for name in DURATIONS if train.get(name)][1:]:
        train[name] = type(train[name])()
    # They may state the preset of one family beside the name of another, which held,
    model = recipe.get("model", {})
    if model.get("name", family_of(model)) != family_of(model):
        model["preset"] = ""
    # and a metric and the mode that keeps its worst.
    judged = recipe.get("eval", {})
    better = direction(judged.get("metric", ""))
    if judged.get("mode", better) != better and better:
        warnings.warn(
            f"{path}: eval.mode={judged['mode']!r} kept the worst by eval.metric="
            f"{judged['metric']!r}; it is read as {better!r}, among the checkpoints that are left",
            stacklevel=1,  # one place, so that it is said once
        )
        judged["mode"] = better
    return recipe
