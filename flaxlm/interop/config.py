"""`config.json` of a Hugging Face directory to a model's config, and back.

A key that changes the computation and is not understood is refused by name, never ignored.
"""

import dataclasses
import pathlib
from typing import Any

from flaxlm.errors import ConfigError, DataError, MissingInput, Unsafe, choose
from flaxlm.interop.config_keys import not_understood
from flaxlm.interop.names import BY_TYPE, FAMILIES
from flaxlm.interop.spec import Family, Head, Key
from flaxlm.models import MODELS
from flaxlm.untrusted import parse_json

# Names that classes had in earlier releases.
RENAMED = {"T5WithLMHeadModel": "T5ForConditionalGeneration"}
RENAMED |= {"LLaMAForCausalLM": "LlamaForCausalLM"}
MOST = 2**30  # of any number in config.json
MOST_LAYERS = 10_000
# Fields that may be 0; of other sizes 0 would mean the usual one to a config of ours.
OPTIONAL = ("attention_softcap", "output_softcap")
CONFIG_BYTES = 10 << 20
SIZED = ("classification", "token_classification")  # heads with an output a label
# problem_type -> key of OBJECTIVES
PROBLEMS = {"regression": "regression", "multi_label_classification": "multi_label"}
# Fields of ours that decide how a model is initialised, stored or run.
WITHOUT_EFFECT = ("init", "init_std", "scale_residual_init", "dtype", "param_dtype", "scan_layers")
WITHOUT_EFFECT += ("remat", "vocab_multiple", "attention", "tied")
LLAMA3 = ("rope_low_frequency", "rope_high_frequency", "rope_original_length")


@dataclasses.dataclass(frozen=True)
class Description:
    """What a `config.json` says.

    Attributes:
      family: the table of its `model_type`.
      architecture: the class; the bare backbone where none is named, until the tensors decide.
      model: key of MODELS.
      fields: of the model's config.
      labels: names of a classifier's classes.
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
        """{head: output size} of the class."""
        return {name: len(self.labels) if name in SIZED else 0 for name in self.head.heads}

    @property
    def objective(self) -> str:
        """Key of OBJECTIVES that the class's head for whole texts is of."""
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
        raw = parse_json(path.read_bytes(), once=True)
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from None
    if not isinstance(raw, dict):
        raise DataError(f"{path} holds no object")
    try:
        return describe(raw)
    except (ConfigError, Unsafe) as error:
        raise type(error)(f"{path}: {str(error).removeprefix('config.json: ')}") from None


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
    others = {k: v for k, v in raw.items() if k not in family.unused}
    fields = dict(family.constants)
    for key in family.keys:
        value = _checked(key, others.pop(key.hf, key.default))
        fields |= dict.fromkeys(key.ours.split(), key.read(value))
    for name, values in family.fixed.items():
        value, valid = others.pop(name, None), " or ".join(map(repr, values))
        if value is not None and value not in values:
            raise ConfigError(f"{name}={value!r} is not supported; {valid} is")
    family.finish(fields, others)
    if unknown := not_understood(others):
        raise ConfigError(
            f"not understood: {', '.join(unknown)}; what may change the computation is not "
            "ignored: remove it if it does not"
        )
    fields |= head.fields
    model = head.model or family.model
    described = Description(family, kind, architecture, head, model, fields, _labels(raw), raw)
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
    default = key.default
    if value is None:
        return default
    kind = int | float if default is None or isinstance(default, float) else type(default)
    if isinstance(value, bool) != isinstance(default, bool) or not isinstance(value, kind):
        raise ConfigError(f"{key.hf}={value!r} is not of the type of {default!r}")
    low = int(not isinstance(default, bool | float) and key.ours not in OPTIONAL)
    high = MOST_LAYERS if key.ours.endswith("layers") else MOST
    if isinstance(value, int | float) and not low <= value <= high:
        raise ConfigError(f"{key.hf}={value!r} must be in {low} … {high}")
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
    dropouts = [name for name in fields if name.endswith("_dropout")]
    for name in (*WITHOUT_EFFECT, *dropouts):
        fields.pop(name, None)
    pattern = config.windows or (0,)
    sizes = tuple(pattern[i % len(pattern)] for i in range(config.num_layers))
    fields["windows"] = sizes if any(sizes) else ()
    fields["pooling"] = config.pooling or ("first" if model == "encoder" else "last")
    fields["pooler"] = config.pooler or ("dense" if fields["pooling"] == "first" else "none")
    fields["transform_activation"] = config.transform_activation or config.activation
    pooled = {"pooled", "nsp", "classification"} & set(heads)
    transformed = "mlm" in heads or (heads and fields["pooler"] == "transform")
    used = (
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
    )
    unused = {name for needed, names in used if not needed for name in names}
    return {name: value for name, value in fields.items() if name not in unused}


def differences(ours, theirs, model: str, heads) -> list[str]:
    """Return a line for each field that makes two configs compute something else."""
    a, b = canonical(ours, model, heads), canonical(theirs, model, heads)
    names = [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
    return [f"{name}={a.get(name)!r}, not {b.get(name)!r}" for name in names]


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
      ConfigError: none computes the same; the nearest one's differences are named.
    """
    classes = [
        (family, kind, name, head)
        for family in FAMILIES
        for kind in family.model_types
        for name, head in family.architectures(kind).items()
    ]
    if architecture:
        choose("architecture", architecture, [name for _, _, name, _ in classes])
    count = max(heads.get(name, 0) for name in SIZED)
    labels = (labels or tuple(f"LABEL_{i}" for i in range(count))) if count else ()
    nearest: list[str] | None = None
    for family, kind, name, head in classes:
        alike = (head.model or family.model) == model and set(head.heads) == set(heads)
        if not alike or (architecture or name) != name:
            continue
        try:
            described = _describe_as(config, family, kind, name, labels)
            wrong = differences(described.config(), config, model, heads)
        except ConfigError as error:
            wrong = [str(error)]
        if not wrong:
            return described
        if nearest is None or len(wrong) < len(nearest):
            nearest = [f"{name} has {line}" for line in wrong]
    why = "; ".join(nearest or [f"none has the heads {', '.join(heads) or 'none'} on {model}"])
    raise ConfigError(f"no known Hugging Face architecture computes what this model does: {why}")


def _describe_as(config, family: Family, kind: str, name: str, labels) -> Description:
    """Return the description of a config that is written as one class."""
    out: dict[str, Any] = {key: values[0] for key, values in family.fixed.items()}
    out |= {key.hf: key.write(getattr(config, key.ours.split()[0])) for key in family.keys}
    out |= {"architectures": [name], "model_type": kind}
    if labels:
        out["id2label"] = {str(i): label for i, label in enumerate(labels)}
        out["label2id"] = {label: i for i, label in enumerate(labels)}
    out["is_encoder_decoder"] = family.model == "encoder_decoder"
    family.finish_write(config, out)
    return describe(out)
