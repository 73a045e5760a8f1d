"""A head whose outputs are labels, from another model: its outputs in the order of ours."""

import os
import re
import warnings
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from flaxlm.errors import ConfigError
from flaxlm.tasks.labels import order_of_labels
from flaxlm.training.config import RunConfig, read_run

LABELED = r"heads/(token_)?classification(?=/)"  # an output a label


def order_of_head(
    config: RunConfig,
    theirs: Sequence[str],
    paths: Iterable[str],
    source: str,
    allow_missing: str | None = None,
) -> tuple[list[int], list[str]]:
    """Return where the outputs of a loaded head stand that are this run's labels.

    That is for each label its place, nothing where there is no such head; and the paths of a head
    that has other labels, and starts fresh because `allow_missing` says so.

    Args:
      config: of the run that reads the head.
      theirs: labels of the model that the head comes from, in its order.
      paths: of the parameters that are about to be loaded.
      source: what names that model in an error.
      allow_missing: regex of parameters that may start fresh; None where none may.

    Raises:
      ConfigError: the labels are not those of the run.
    """
    head = [path for path in paths if re.match(LABELED, path)]
    labels = tuple(getattr(config.objective, "labels", ()))
    number = not labels and len(theirs) == 1  # so the hub writes the head that answers with one
    if not head or labels == tuple(theirs) or number:
        return [], []
    order = None
    if labels and theirs:
        order, warning = order_of_labels(labels, theirs, config.task.published)
        if warning:
            warnings.warn(f"{source}: {warning}", stacklevel=2)
    if order is not None:
        return order, []
    if allow_missing and all(re.search(allow_missing, path) for path in head):
        return [], head
    advice = "choose a task that has its labels, or name them alike in its config (id2label)"
    if allow_missing is not None:
        start = re.match(LABELED, head[0])[0]
        advice = f"let the head start fresh with --allow_missing='{start}', or name them alike"
    published = [config.task.published.get(label, label) for label in labels]
    raise ConfigError(
        f"{source} answers with {_listed(theirs)}, and objective.labels are {_listed(published)}: "
        f"{advice}"
    )


def labels_of_run(run: str | os.PathLike) -> tuple[str, ...]:
    """Return the labels that a run was trained with; none where its objective has none."""
    return tuple(read_run(os.fspath(run)).get("objective", {}).get("labels", ()))


def _listed(labels: Sequence[str]) -> str:
    """Return the number of labels and the first of them; none stand for a number as the answer."""
    if not labels:
        return "a number"
    shown = ", ".join(map(repr, labels[:20])) + ", …" * (len(labels) > 20)
    return f"{len(labels)} label{'s' * (len(labels) > 1)} ({shown})"


def in_order(params: dict, order: Sequence[int]) -> dict:
    """Return {path: array} with a labeled head's outputs, its last axis, put in an order, if any.

    `order` says for each output where it stands now.
    """
    places = np.array(order)
    if len(places) == 0 or (places == np.arange(len(places))).all():
        return params
    return {
        path: jax.jit(lambda leaf: leaf[..., places], out_shardings=array.sharding)(array)
        if re.match(LABELED, path)
        else array
        for path, array in params.items()
    }
