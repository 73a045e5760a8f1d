"""The flags of a verb, made from the dataclass of its options.

A field's default is its flag's, and its text under `Attributes:`, or beside it, the flag's help. A
field without a default must be given; a tuple's flag may be repeated. A field named for a keyword
of Python ends in `_`. `metadata` may hold `value`, the word for what a required flag takes (DIR),
and `commas`, for a tuple that is written a,b,c.
"""

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterable

from absl import flags

from flaxlm.errors import ConfigError

FILE = {"value": "FILE"}
DEFINE = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float}


def field_texts(cls) -> dict[str, str]:
    """Return {field: what it is, in one line} of a dataclass and its bases.

    That is its entry under `Attributes:`, or the comment beside it.
    """
    texts = {}
    for base in [base for base in reversed(cls.__mro__) if "__dataclass_params__" in vars(base)]:
        texts |= re.findall(r"^    (\w+): .*  # (.*)$", inspect.getsource(base), re.MULTILINE)
        _, _, entries = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")
        for names, text in re.findall(r"^  ([\w, ]+): (.*(?:\n {3,}.*)*)", entries, re.MULTILINE):
            texts |= dict.fromkeys(names.split(", "), " ".join(text.split()).removesuffix("."))
    return texts


def _fields(cls) -> list[tuple[str, dataclasses.Field, str]]:
    """Return (flag, field, word for its value if it is required) of a verb, required ones first."""
    rows = []
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING
        word = field.metadata.get("value", "DIR") if required else ""
        rows.append((field.name.rstrip("_"), field, word))
    return sorted(rows, key=lambda row: not row[2])


def _define(cls) -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_bool("help", False, "show this help", short_name="h", flag_values=values)
    for name, field, required in _fields(cls):
        kind = next((k for k in typing.get_args(field.type) if k in DEFINE), field.type)
        define = DEFINE.get(kind, flags.DEFINE_string)
        default = None if required else field.default
        if isinstance(default, tuple):
            define = flags.DEFINE_list if "commas" in field.metadata else flags.DEFINE_multi_string
            default = list(default)
        define(name, default, "", flag_values=values)
    return values


def parse(cls, arguments: list[str]):
    """Return the options of a verb's arguments, those of its config apart; None for `--help`."""
    values = _define(cls)
    try:
        unread = values(["flaxlm", *arguments])[1:]
    except flags.Error as error:
        names = ", ".join(f"--{name}" for name in sorted(values) if name != "h")
        raise ConfigError(f"{error}; flags: {names}") from None
    if values.help:
        return None
    if unread:
        raise ConfigError(f"argument {unread[0]!r} is not a flag; write --flag=value")
    options = {}
    for name, field, required in _fields(cls):
        value, commas = values[name].value, "commas" in field.metadata
        if values[name].present > 1 and not isinstance(values[name], flags.MultiFlag):
            way = f"write --{name}=a,b" if commas else "leave one of them out"
            raise ConfigError(f"--{name} is given twice; {way}")
        if required and not value:
            raise ConfigError(f"--{name}={required} is required")
        options[field.name] = tuple(value) if isinstance(value, list) else value
    return cls(**options)


def help_text(verb: str, summary: str, cls) -> str:
    """Return the text of `python -m flaxlm VERB --help`."""
    texts, rows = field_texts(cls), []
    for name, field, required in _fields(cls):
        value = required or repr(field.default)
        rows.append((f"--{name}", type_name(field.type), value, texts.get(field.name, "")))
    config = (
        "\n\n--config=FILE[:args] names a recipe, --config.section.key=value changes a key of it;\n"
        f"python -m flaxlm {verb} --config.help lists every key."
    )
    return f"python -m flaxlm {verb}: {summary}\n\n{listing(rows)}{config * bool(cls.takes_config)}"


def type_name(kind) -> str:
    """Return a type as help shows it."""
    return str(kind) if typing.get_args(kind) else kind.__name__


def listing(rows: Iterable[tuple[str, ...]]) -> str:
    """Return rows of cells as lines, all but the last cell aligned."""
    rows = list(rows)
    widths = [min(40, max(map(len, column))) for column in zip(*rows, strict=True)][:-1]
    return "\n".join(
        "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    )
