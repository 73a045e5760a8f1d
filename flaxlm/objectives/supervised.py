"""What the supervised objectives share: examples become flat token arrays, once, at plan time."""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from flaxlm.data.vocabulary import Template
from flaxlm.errors import DataError

Tokens = list[np.ndarray]
NUMBERS = {int: (int, np.integer), float: (int, float, np.integer, np.floating)}


def column(examples: Sequence[Mapping], name: str, kind: type, required: bool = True) -> list:
    """Return one field of all examples; DataError names the example and what it has."""
    values = []
    for number, example in enumerate(examples):
        value = example.get(name)
        if value is None and not required:
            value = kind()
        if not isinstance(value, NUMBERS.get(kind, kind)):
            who = example.get("id", number)
            raise DataError(
                f"example {who}: {name!r} is {type(value).__name__}, a {kind.__name__} is needed; "
                f"the example has: {', '.join(map(str, example))}"
            )
        values.append(value)
    if not values:
        raise DataError("there are no examples; check the task's data path and split")
    return values


def gold(examples: Sequence[Mapping], name: str, kind: type, training: bool) -> list:
    """Return the right answer of all examples; of a split without any, an empty one for each.

    Such a split can be answered, but DataError where it is to be trained on.
    """
    if training or any(example.get(name) is not None for example in examples):
        return column(examples, name, kind)
    return [kind()] * len(examples)


def warn_absent(counts: Sequence[int], labels: Sequence[str], training: bool) -> None:
    """Warn of labels that nothing in a split has: in training any, in evaluation all but one.

    Args:
      counts: how often each label occurs; all 0 in a split without right answers.
      labels: their names.
      training: whether the split is trained on.
    """
    absent = [label for label, count in zip(labels, counts, strict=True) if not count]
    shown = ", ".join(absent[:10]) + (f" and {len(absent) - 10} more" if len(absent) > 10 else "")
    if training and absent:
        warnings.warn(f"nothing in the training split is labelled {shown}", stacklevel=3)
    elif len(absent) == len(labels) - 1:
        (only,) = set(labels) - set(absent)
        warnings.warn(
            f"all of a split to be evaluated has the label {only}: scores of it tell little",
            stacklevel=3,
        )


def encode(tokenizer, texts: Sequence[str]) -> Tokens:
    """Return int32 ids of each text, without special tokens."""
    return [np.asarray(ids, np.int32) for ids in tokenizer.encode_batch(list(texts))]


def shorten(
    first: Tokens, second: Tokens, room: int, keep: str = "start"
) -> tuple[Tokens, Tokens, int]:
    """Cut pairs to `room` tokens, the longer of the two first; return them and how many were cut.

    An absent second text is an empty array; `keep` says which part of a text stays, its 'start' or
    its 'end'.
    """

    def part(ids: np.ndarray, most: int) -> np.ndarray:
        return ids[:most] if keep == "start" else ids[len(ids) - most :]

    one, two, cut = [], [], 0
    for a, b in zip(first, second, strict=True):
        over = len(a) + len(b) - room
        if over > 0:
            cut += 1
            # What both keep if they are equally long; a shorter one leaves its part to the other.
            keep_b = min(len(b), max(room // 2, room - len(a)))
            a, b = part(a, room - keep_b), part(b, keep_b)
        one.append(a)
        two.append(b)
    return one, two, cut


def join(*parts: Tokens | int) -> Tokens:
    """Return, for each example, its parts one behind the other; a number is that one token."""
    number = next(len(part) for part in parts if not isinstance(part, int))
    columns = [
        [np.array([part], np.int32)] * number if isinstance(part, int) else part for part in parts
    ]
    return [np.concatenate(arrays) for arrays in zip(*columns, strict=True)]


def framed(template: Template, first: Tokens, second: Tokens) -> tuple[Tokens, Tokens]:
    """Return (rows, token types) of texts in a template; an absent second text is empty."""
    found = [
        template.pair.around(a, b) if len(b) else template.single.around(a)
        for a, b in zip(first, second, strict=True)
    ]
    return [ids for ids, _ in found], [types for _, types in found]


def flat(tokens: Tokens, width: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return (values, offsets, width) of an ExamplePlan's sequence."""
    offsets = np.cumsum([0, *map(len, tokens)])
    return np.concatenate([np.zeros(0, np.int32), *tokens]), offsets, width


def with_end(second: Tokens, end: int) -> Tokens:
    """Return each second text with `end` behind it; an absent one stays empty."""
    return [np.append(b, np.int32(end)) if len(b) else b for b in second]


def filled(lengths: np.ndarray, width: int) -> np.ndarray:
    """Return int32 [B, width], 1 on the first lengths[b] columns."""
    return (np.arange(width) < lengths[:, None]).astype(np.int32)
