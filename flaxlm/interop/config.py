"""`config.json` of a Hugging Face directory to a model's config, and back.

A key that changes the computation and is not understood is refused by name, never ignored.
"""

import dataclasses
import json
import pathlib
from typing import Any

from flaxlm.errors import ConfigError, DataError, MissingInput, Unsafe, choose
from flaxlm.interop.config_keys import not_understood
from flaxlm.interop.names import BY_TYPE, FAMILIES
from flaxlm.interop.spec import Family, Head, Key
from flaxlm.models import MODELS

# Names that classes had in earlier releases.
RENAMED = {
    "T5WithLMHeadModel": "T5ForConditionalGeneration",
    "LLaMAForCausalLM": "LlamaForCausalLM",
}
MOST = 2**30  # of any number in config.json
MOST_LAYERS = 10_000
CONFIG_BYTES = 10 << 20
SIZED = ("classification", "token_classification")  # heads with an output a label
# problem_type -> key of OBJECTIVES
PROBLEMS = {"regression": "regression", "multi_label_classification": "multi_label"}
LLAMA3 = ("rope_low_frequency", "rope_high_frequency", "rope_original_length")


@dataclasses.dataclass(frozen=True)
class Description:
    """What a `config.json` says.

    Attributes:
      family: the table of its `model_type`.
      model_type, architecture: as they stand there; the bare backbone where no class is named,
        until the tensors decide (`weights`).
      head: of the class.
      model: key of MODELS.
      fields: of the model's config.
      labels: names of the classes of a classifier; empty where it has none.
      raw: the whole file.
    """

    family: Family
    model_type: str
    architecture: str
    head: Head
    model: str
    fields: dict[str, Any]
    labels: tuple[str, ...]
    raw: dict

    @property
    def heads(self) -> dict[str, int]:
        """Return {head: output size} of the class."""
        return {name: len(self.labels) if name in SIZED else 0 for name in self.head.heads}

    @property
    def objective(self) -> str:
        """Return the key of OBJECTIVES that the class's head for whole texts is of."""
        problem = self.raw.get("problem_type") or ("" if len(self.labels) > 1 else "regression")
        if problem == "regression" and len(self.labels) > 1:
            raise ConfigError(f"problem_type='regression' with {len(self.labels)} numbers")
        return PROBLEMS.get(problem, "classification")

    def config(self, **changes):
        """Return the model's config, with changed fields."""
        return MODELS[self.model].config_class(**(self.fields | changes))


def read(directory: pathlib.Path) -> Description:
    """Return what a directory's `config.json` says.

    Raises:
      MissingInput: there is none.
      DataError: it is damaged.
      Unsafe: it asks for code of its own to be run.
      ConfigError: it describes a model that is not understood.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise MissingInput(f"{directory} is no Hugging Face directory: there is no {path}")
    if path.stat().st_size > CONFIG_BYTES:
        raise DataError(f"{path} has {path.stat().st_size} bytes, which no config.json has")
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}") from None
    if not isinstance(raw, dict):
        raise DataError(f"{path} holds no object")
    try:
        return describe(raw)
    except (ConfigError, Unsafe) as error:
        message = str(error)
        where = message if message.startswith("config.json: ") else f"config.json: {message}"
        raise type(error)(f"{directory}/{where}") from None


def describe(raw: dict) -> Description:
    """Return what the object of a `config.json` says; see `read`."""
    if "auto_map" in raw:
        raise Unsafe(
            "auto_map asks to run code that comes with the model, which is never done; "
            "only architectures that are known by name are loaded"
        )
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in BY_TYPE:
        choose("model_type", str(kind), BY_TYPE)
    family = BY_TYPE[kind]
    architecture, head = _architecture(raw, family, kind)
    rest = {k: v for k, v in raw.items() if k not in family.unused}
    fields = dict(family.constants)
    for key in family.keys:
        value = _checked(key, rest.pop(key.hf, key.default))
        fields |= dict.fromkeys(key.ours.split(), key.read(value))
    for name, values in family.fixed.items():
        value = rest.pop(name, None)
        if value is not None and value not in values:
            raise ConfigError(
                f"{name}={value!r} is not supported; {' or '.join(map(repr, values))} is"
            )
    family.finish(fields, rest)
    if unknown := not_understood(rest):
        raise ConfigError(
            f"not understood: {', '.join(unknown)}; what may change the computation is not "
            "ignored: remove it if it does not"
        )
    fields |= head.fields
    described = Description(
        family, kind, architecture, head, head.model or family.model, fields, _labels(raw), raw
    )
    described.config()  # its own checks
    return described


def _architecture(raw: dict, family: Family, kind: str) -> tuple[str, Head]:
    valid = family.architectures(kind)
    named = raw.get("architectures")
    if not named:
        return next(iter(valid.items()))
    if not isinstance(named, list) or len(named) != 1 or not isinstance(named[0], str):
        raise ConfigError(f"architectures={named!r} does not name one class")
    name = choose("architectures", RENAMED.get(named[0], named[0]), valid)
    return name, valid[name]


def _checked(key: Key, value):
    """Return a value of the default's type and of a size that can be."""
    kinds = {bool: bool, int: int, float: (int, float), str: str, type(None): (int, float)}
    default = key.default
    fits = isinstance(value, kinds[type(default)])
    if value is None:
        return default
    if isinstance(value, bool) != isinstance(default, bool) or not fits:
        raise ConfigError(f"{key.hf}={value!r} is not of the type of {default!r}")
    if isinstance(value, int | float) and not 0 <= value <= MOST:
        raise ConfigError(f"{key.hf}={value!r} must be in 0 … {MOST}")
    if "layers" in key.ours and not isinstance(value, bool) and not 0 < value <= MOST_LAYERS:
        raise ConfigError(f"{key.hf}={value!r} must be in 1 … {MOST_LAYERS}")
    return float(value) if isinstance(default, float) else value


def _labels(raw: dict) -> tuple[str, ...]:
    """Return the names of the classes by id; two unnamed ones where there are none."""
    named = raw.get("id2label")
    if named is None:
        count = raw.get("num_labels", 2)
        if not isinstance(count, int) or not 0 < count < 1_000_000:
            raise ConfigError(f"num_labels={count!r} must be in 1 … 999999")
        return tuple(f"LABEL_{i}" for i in range(count))
    try:
        by_id = {int(i): str(name) for i, name in named.items()}
    except (AttributeError, ValueError, TypeError):
        raise ConfigError(f"id2label={str(named)[:80]} is not {{id: name}}") from None
    if sorted(by_id) != list(range(len(by_id))):
        raise ConfigError("id2label does not name the ids 0, 1, … without a gap")
    return tuple(by_id[i] for i in range(len(by_id)))


def canonical(config, model: str, heads) -> dict:
    """Return the fields that decide what a model computes, without those that have no effect."""
    fields = dataclasses.asdict(config)
    for name in (
        *("init", "init_std", "scale_residual_init", "dtype", "param_dtype", "scan_layers"),
        *("remat", "vocab_multiple", "attention", "tied"),
        *(name for name in fields if name.endswith("_dropout")),
    ):
        fields.pop(name, None)
    pattern = config.windows or (0,)
    sizes = tuple(pattern[i % len(pattern)] for i in range(config.num_layers))
    fields["windows"] = sizes if any(sizes) else ()
    fields["pooling"] = config.pooling or ("first" if model == "encoder" else "last")
    usual = "dense" if fields["pooling"] == "first" else "none"
    fields["pooler"] = config.pooler or usual
    fields["transform_activation"] = config.transform_activation or config.activation
    pooled = {"pooled", "nsp", "classification"} & set(heads)
    transformed = "mlm" in heads or (heads and fields["pooler"] == "transform")
    unused = []
    for needed, names in (
        (config.positions == "rotary", [n for n in fields if n.startswith(("rope_", "rotary_"))]),
        (config.rope_scaling, ["rope_factor"]),
        (config.rope_scaling == "llama3", list(LLAMA3)),
        (fields["windows"], ["rope_local_theta"]),
        (config.positions == "learned", ["max_length", "position_offset"]),
        (config.positions == "relative", ["relative_buckets", "relative_max_distance"]),
        (config.norm == "layernorm", ["norm_bias"]),
        (pooled, ["pooling"]),
        (heads, ["pooler"]),
        (pooled and fields["pooler"] == "dense", ["pooler_activation"]),
        (transformed, ["transform_activation", "transform_bias"]),
        ("mlm" in heads, ["mlm_bias"]),
        ("classification" in heads, ["classification_bias"]),
    ):
        unused += [] if needed else names
    return {name: value for name, value in fields.items() if name not in unused}


def differences(ours, theirs, model: str, heads) -> list[str]:
    """Return a line for each field that makes two configs compute something else."""
    a, b = canonical(ours, model, heads), canonical(theirs, model, heads)
    return [
        f"{name}={a.get(name)!r}, not {b.get(name)!r}"
        for name in sorted(a.keys() | b.keys())
        if a.get(name) != b.get(name)
    ]


def write(
    config, model: str, heads: dict[str, int], labels: tuple[str, ...] = (), architecture: str = ""
) -> Description:
    """Return the description of a model of ours: the first architecture that computes the same.

    Args:
      config: the model's.
      model: key of MODELS.
      heads: {head: output size} that it has.
      labels: names of a classifier's classes.
      architecture: the class to write it as; empty for the first that fits.

    Raises:
      ConfigError: no known architecture computes what this model computes; the nearest one's
        differences are named.
    """
    nearest: list[str] | None = None
    names = [n for f in FAMILIES for kind in f.model_types for n in f.architectures(kind)]
    if architecture:
        choose("architecture", architecture, names)
    for family in FAMILIES:
        for kind in family.model_types:
            for name, head in family.architectures(kind).items():
                if (head.model or family.model) != model or (architecture or name) != name:
                    continue
                if set(head.heads) != set(heads):
                    continue
                found, wrong = _try(config, family, kind, name, heads, labels)
                if found:
                    return found
                if nearest is None or len(wrong) < len(nearest):
                    nearest = [f"{name} has {line}" for line in wrong]
    why = "; ".join(nearest or [f"none has the heads {', '.join(heads) or 'none'} on {model}"])
    raise ConfigError(f"no known Hugging Face architecture computes what this model does: {why}")


def _try(config, family: Family, kind: str, name: str, heads, labels):
    """Return (Description or None, differences) of writing a config as one class."""
    out: dict[str, Any] = {"architectures": [name], "model_type": kind}
    for key in family.keys:
        out[key.hf] = key.write(getattr(config, key.ours.split()[0]))
    for fixed, values in family.fixed.items():
        out.setdefault(fixed, values[0])
    count = max((heads.get(name, 0) for name in SIZED), default=0)
    if count:
        labels = labels or tuple(f"LABEL_{i}" for i in range(count))
        out["id2label"] = {str(i): label for i, label in enumerate(labels)}
        out["label2id"] = {label: i for i, label in enumerate(labels)}
    out["is_encoder_decoder"] = family.model == "encoder_decoder"
    try:
        family.finish_write(config, out)
        described = describe(out)
    except ConfigError as error:
        return None, [str(error)]
    wrong = differences(described.config(), config, described.model, heads)
    return (None, wrong) if wrong else (described, [])
