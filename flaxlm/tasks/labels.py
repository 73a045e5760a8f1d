"""What classes are called: by a set, by a config, and by the model that a head comes from."""

import json
import re
import warnings
from collections.abc import Collection, Mapping, Sequence

from flaxlm.data.tables import integer
from flaxlm.errors import ConfigError, DataError, nearest
from flaxlm.progress import note

MOST_DIGITS = 20  # of a number that counts anything


class LabelIds(dict[str, int]):
    """{label: id}, which finds the label that a row means: by its name, or by a number.

    Where labels are numbers, another number is compared with them by its value: 1.0 is 1. Where
    none is, numbers are places among the labels, which is warned of.
    """

    def __init__(self, labels: Sequence[str]):
        super().__init__((label, index) for index, label in enumerate(labels))
        self._known: dict[str, int | None] = {}
        values = [_number(label) for label in labels]
        self._places = not any(value is not None for value in values)  # whether a number is one
        pairs = zip(values, labels, strict=True)
        self._by_value = {value: label for value, label in pairs if values.count(value) == 1}
        self._kind = ""  # what the rows have had so far

    def find(self, name: str, place: str, what: str = "labels") -> int | None:
        """Return the id of the label that the row at `place` means, None where there is none.

        `what` such names are in a warning. DataError where names and numbers stand side by side.
        """
        if name not in self._known:
            value, digits = _number(name), whole_number(name)
            if name in self or value is None or self._places:
                label = find_label(name, self)
            else:
                label = self._by_value.get(value)
            if label is None and self._is_place(digits) and int(digits) < len(self):
                self._known[name] = int(digits)
                self._one_kind("numbers", name, place, what)
            else:
                self._known[name] = None if label is None else self[label]
                if label is not None:
                    self._one_kind("names", name, place, what)
        return self._known[name]

    def lack(self, name: str) -> str:
        """Return what an error says of a name that `find` does not find."""
        numbers = f", or 0 … {len(self) - 1}" if self._is_place(name) else ""
        return f"not in objective.labels{nearest(name, self)}; valid: {', '.join(self)}{numbers}"

    def _is_place(self, name: str) -> bool:
        return self._places and name.isdecimal() and len(name) < MOST_DIGITS

    def _one_kind(self, kind: str, name: str, place: str, what: str) -> None:
        if self._kind and kind != self._kind:
            raise DataError(
                f"{place}: {name!r} stands for one of the {what}, and rows before it have "
                f"{self._kind}; write names everywhere"
            )
        if not self._kind and kind == "numbers":
            meaning = ", ".join(f"{i} as {label}" for i, label in enumerate(list(self)[:20]))
            warnings.warn(
                f"{place}: {what} are numbers, the places of objective.labels: {meaning}"
                + ", …" * (len(self) > 20),
                stacklevel=1,
            )
        self._kind = kind


def _number(text: str) -> float | None:
    """Return the value of a text that is a decimal number, None of any other."""
    return float(text) if re.fullmatch(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", text) else None


def whole_number(text: str) -> str:
    """Return 1 of 1.0, as a table of texts writes it where one is missing; others unchanged."""
    return re.sub(r"^(\d+)\.0+$", r"\1", text)


def label_text(value: object) -> str | None:
    """Return how a row's value names a label, a number by its digits; None where it cannot."""
    if isinstance(value, bool | str):
        return value if isinstance(value, str) else json.dumps(value)
    number = integer(value)
    return None if number is None else str(number)


def label_ids(labels: Sequence[str]) -> LabelIds:
    """Return {label: id}; ConfigError unless `labels` names at least two, each once."""
    ids = LabelIds(labels)
    if len(ids) < 2 or len(ids) != len(labels):
        raise ConfigError(
            f"objective.labels={tuple(labels)!r} must name at least two labels, each once"
        )
    return ids


def folded(name: str) -> str:
    """Return a name as it is compared: case, and the kind of its separators, say nothing."""
    return re.sub(r"[\s_-]+", "_", name.strip()).casefold()


def find_label(name: str, labels: Collection[str]) -> str | None:
    """Return the one of `labels` that a name means: itself, or the only one that reads alike."""
    if name in labels:
        return name
    alike = [label for label in labels if folded(label) == folded(name)]
    return alike[0] if len(alike) == 1 else None


def order_of_labels(
    labels: Sequence[str], theirs: Sequence[str], published: Mapping[str, str]
) -> tuple[list[int] | None, str]:
    """Return where a model's head has each of `labels`, and what to warn of ('': nothing).

    Names decide, whatever their order. Where one side has numbers alone (`LABEL_0`, …, as
    `transformers` names what nobody named, or `0`, …), they are places, which is warned of.

    Args:
      labels: of the config.
      theirs: of the model, in the order of the head's outputs.
      published: {label: the name that its set publishes}, where the set's labels are numbers.

    Returns:
      For each of `labels`, its place among `theirs`; None where the names do not match.
    """
    if len(labels) != len(theirs):
        return None, ""
    for names in (labels, [published.get(label, label) for label in labels]):
        places = [find_label(name, theirs) for name in names]
        if None not in places and len(set(places)) == len(labels):
            return [theirs.index(place) for place in places], ""
    count = list(map(str, range(len(labels))))
    ours_are_numbers = sorted(labels) == sorted(count)
    theirs_are_numbers = [re.sub(r"(?i)^label_", "", name) for name in theirs] == count
    if not theirs_are_numbers and (published or not ours_are_numbers):
        return None, ""
    order = [int(label) if ours_are_numbers else i for i, label in enumerate(labels)]
    meaning = ", ".join(
        f"{theirs[place]} as {published.get(label, label)}"
        for label, place in zip(labels, order, strict=True)
    )
    return order, f"the model's labels are taken by their places: {meaning}"


AUTO = "auto"  # the labels that stand in the training rows
MOST_LABELS = 100  # that an error message lists


def labels_from_data(
    stated: str | Sequence[str], counts: Mapping[str, int], source: str, key: str = ""
) -> tuple:
    """Return the labels of a config that leaves them to the data, and print how often each stands.

    `counts` are of the train split where 'auto' is `stated`, else of all rows, and ConfigError
    lists them. It is raised as well where a column of texts was read as labels, of which `key` of
    the task is the name.
    """
    names = tuple(counts)
    few = ", ".join(f"{name!r} ({counts[name]:,})" for name in names[:20])
    if len(names) > MOST_LABELS and (not stated or 2 * len(names) > sum(counts.values())):
        raise ConfigError(
            f"objective.labels={stated or ()!r}: {source} has {len(names)} different ones "
            f"({', '.join(map(repr, names[:5]))}, …): do they stand in the right column"
            + (f", which task.{key} names?" if key else "?")
        )
    if stated:
        more = f" and {len(names) - 20} more" * (len(names) > 20)
        note(f"objective.labels: {len(names)} of {source}: {few}{more}")
        return names
    # Ready for a shell, in which these mean something within quotation marks.
    listed = re.sub(r'(["\\$`])', r"\\\1", repr(names))
    raise ConfigError(
        "objective.labels is empty; 'auto' takes those of the training rows, and those of all rows "
        f'of {source} are --config.objective.labels="{listed}"'
    )
