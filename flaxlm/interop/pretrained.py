"""Whole models from and to Hugging Face directories."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm import files, locks, tree
from flaxlm.data.hugging_face import load_hugging_face
from flaxlm.data.vocabulary import Tokenizer
from flaxlm.errors import ConfigError, MissingInput, StorageError, Unsafe, cause_of
from flaxlm.interop import config as hf_config
from flaxlm.interop import generation, tensor_writer
from flaxlm.interop.config import Description
from flaxlm.interop.parts import tensors_of
from flaxlm.interop.tokenizer import export_tokenizer
from flaxlm.interop.weights import Weights
from flaxlm.models import MODELS, abstract_params, build, init_params, real_shapes
from flaxlm.progress import Progress
from flaxlm.sharding import ShardingConfig, make_mesh, param_shardings
from flaxlm.trained import TrainedModel

SCHEME = "hf:"
UNFINISHED = ".unfinished"  # in a directory while a model is written: it may be begun anew
# What is fetched of a name: weights as safetensors, and texts. Never code, never pickles.
WANTED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja")


def resolve(name: str | os.PathLike, revision: str | None = None) -> pathlib.Path:
    """Return the directory of a name: itself, or a snapshot from the hub or its cache.

    `NAME@REVISION` names a branch, tag or commit. HF_HUB_OFFLINE=1 takes the cache alone.
    """
    text = os.fspath(name).removeprefix(SCHEME)
    path = pathlib.Path(text).expanduser()
    if path.is_dir():
        return path
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", text) is None or text.startswith((".", "/")):
        raise MissingInput(f"there is no directory {path}, and it is not the name of a model")
    repository, _, at = text.partition("@")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return pathlib.Path(
            snapshot_download(repository, revision=revision or at or None, allow_patterns=WANTED)
        )
    except LocalEntryNotFoundError:
        raise MissingInput(
            f"there is no directory {text}, and the model {repository} is neither in the cache nor "
            "can the hub be reached"
        ) from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        why = " ".join(str(error).split())[:200]
        raise MissingInput(f"the hub has no model {text} for you: {why}") from None


class Directory:
    """A Hugging Face directory (`path`), opened and checked; nothing is loaded yet."""

    def __init__(self, name: str | os.PathLike, revision: str | None = None):
        self.path = resolve(name, revision)
        self.weights = Weights(self.path, hf_config.read(self.path))
        self.description = self.weights.description

    def tokenizer(self) -> Tokenizer:
        """Return its tokenizer; MissingInput where it has none."""
        return load_hugging_face(self.path, self.description.raw)

    def generation(self) -> dict:
        """Return what the files say of generating texts, see `interop.generation`."""
        return generation.read_settings(self.path, self.description.raw)

    def rows(self) -> int:
        """Return how many ids a model needs rows for: at least those of the tokenizer."""
        size = self.weights.config.vocab_size
        with contextlib.suppress(MissingInput):
            return max(size, self.tokenizer().vocab_size)
        return size

    def heads(self) -> dict[str, int]:
        """Return the heads that the files hold: a backbone may come without its pooler."""
        heads = self.description.heads
        if list(heads) == ["pooled"]:
            shapes = real_shapes(self.description.model, self.weights.config, heads)
            if not any(path.startswith("heads/") for path in self.weights.offers(shapes)):
                return {}
        return heads

    def plan(
        self,
        config,
        heads: dict[str, int],
        allow_missing=None,
        fresh: Callable = lambda path: False,
    ) -> "Plan":
        """Return what to load into a model; what is not here is named, and refused.

        Args:
          config, heads: the model's.
          allow_missing: regex of paths that may be missing, or be there in another shape, and
            then start fresh; None where nobody can be asked.
          fresh: whether a path may be missing besides.

        Raises:
          ConfigError: a parameter is missing, or `config` is not what the files hold.
          DataError: a tensor has another shape, or is one that nothing is known of.
        """
        described, rows = self.description, self.weights.config.vocab_size
        grown = max(0, config.vocab_size - rows)  # see `Plan.load`
        if grown:
            config = dataclasses.replace(config, vocab_size=rows)
        if wrong := hf_config.differences(config, self.weights.config, described.model, ()):
            what = "the model differs from its weights"
            raise ConfigError(f"{self.path}: {what}: {'; '.join(wrong)}")
        shapes = real_shapes(described.model, config, heads)
        named = [path for path in shapes if allow_missing and re.search(allow_missing, path)]
        there = [
            path
            for path in self.weights.offers(shapes)
            if path not in named or self.weights.fits(path, shapes[path])
        ]
        missing = [path for path in shapes if path not in there]
        refused = [path for path in missing if not fresh(path) and path not in named]
        if refused:
            ask = f"; what may start fresh is named by --allow_missing='{tree.pattern_of(refused)}'"
            raise ConfigError(
                f"{self.path} has no {', '.join(refused)}{'' if allow_missing is None else ask}"
            )
        unread = self.weights.check({path: shapes[path] for path in there})
        return Plan(self, shapes, there, missing, unread, grown)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What will be loaded of a directory, checked.

    Attributes:
      shapes: {path: real shape} of all parameters, as far as the directory has their rows.
      there: paths that the directory has.
      missing: paths that it lacks, and may.
      unread: names of tensors that are not read.
      grown: how many rows more than the directory's vocabulary the model has.
    """

    directory: Directory
    shapes: dict[str, tuple[int, ...]]
    there: list[str]
    missing: list[str]
    unread: list[str]
    grown: int = 0

    def load(
        self, abstract: dict[str, jax.ShapeDtypeStruct], fresh: dict | None = None, quiet=False
    ) -> dict:
        """Return {path: array} of `there`, laid out as `abstract` {path: ShapeDtypeStruct}.

        Rows that the directory lacks come from `fresh`, {path: array} in the same layout.
        """
        weights = self.directory.weights
        if self.grown and fresh is None:
            rows = weights.config.vocab_size
            raise ConfigError(
                f"{self.directory.path} has {rows} rows of its vocabulary and the model "
                f"{rows + self.grown}; only training starts rows: set model.vocab_size={rows}"
            )
        asked = {path: abstract[path] for path in self.there}
        with Progress("load", weights.tensors.nbytes, unit="MB", scale=1e6, quiet=quiet) as bar:
            loaded = weights.load(asked, self.shapes, bar.add)
        if self.grown:
            for path, array in loaded.items():
                if self.shapes[path] != array.shape:
                    whole = _on_top(array, fresh[path], self.shapes[path])
                    loaded[path] = jax.device_put(whole, fresh[path].sharding)
        return loaded

    def __str__(self) -> str:
        rows = f"; {self.grown} new rows of the vocabulary start fresh" if self.grown else ""
        return (
            f"{self.directory.path}: {self.directory.description.architecture}, "
            f"{len(self.there)} parameters loaded{rows}; fresh: {', '.join(self.missing) or 'none'}"
            f"; not read: {', '.join(self.unread) or 'none'}"
        )


@functools.partial(jax.jit, static_argnums=2)
def _on_top(array: jax.Array, fresh: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return `fresh` with `array` over its first `shape`."""
    inside = jnp.ones((), bool)
    for axis, size in enumerate(shape):
        inside &= jax.lax.broadcasted_iota(jnp.int32, array.shape, axis) < size
    return jnp.where(inside, array, fresh)


def from_pretrained(
    name: str | os.PathLike,
    *,
    revision: str | None = None,
    heads: dict[str, int] | None = None,
    allow_missing: str | None = "",
    sharding: ShardingConfig | None = None,
    **changes,
) -> TrainedModel:
    """Return the model of a Hugging Face directory, or of a name on its hub.

    Args:
      name: a directory, or a name as `owner/model`, fetched through `huggingface_hub`.
      revision: branch, tag or commit of a name.
      heads: {head: output size} in place of the class's own; {} for the backbone.
      allow_missing: regex of parameters that may start fresh, from seed 0; None: none may.
      sharding: how the parameters are split over all devices; None: all on the first one.
      changes: fields of the model's config, such as dtype or param_dtype.

    Raises:
      MissingInput, DataError, ConfigError, Unsafe: what is wrong with it, in one line.
    """
    directory = Directory(name, revision)
    described, raw = directory.description, directory.description.raw
    config = dataclasses.replace(directory.weights.config, **changes)
    heads = directory.heads() if heads is None else heads
    abstract = abstract_params(described.model, config, heads)
    mesh = None if sharding is None else make_mesh(sharding)
    if mesh is not None:
        shardings = param_shardings(MODELS[described.model].axes, abstract, mesh, sharding)
        abstract = jax.tree.map(lambda x, place: x.update(sharding=place), abstract, shardings)
    flat = tree.flatten(abstract)
    plan = directory.plan(config, heads, allow_missing)
    params = plan.load(flat)
    if plan.missing:
        fresh = tree.flatten(init_params(described.model, config, heads, jax.random.key(0)))
        params |= {path: fresh[path] for path in plan.missing}
    tokenizer = None
    with contextlib.suppress(MissingInput):
        tokenizer = directory.tokenizer()
        tokenizer.restrict(config.vocab_size)
    return TrainedModel(
        described.model,
        build(described.model, config, heads),
        tree.unflatten({path: params[path] for path in flat}),
        tokenizer,
        labels=described.labels if set(heads) & set(hf_config.SIZED) else (),
        generation=directory.generation(),
        context=config.max_length if config.positions == "rotary" else 0,
        architecture=described.architecture if heads == described.heads else "",
        special_ids={k: v for k, v in raw.items() if k.endswith("_token_id") and v is not None},
        problem=raw.get("problem_type") or "",
        mesh=mesh,
        sharding=sharding,
    )


def save_pretrained(
    directory: str | os.PathLike,
    model: TrainedModel,
    *,
    architecture: str = "",
    dtype: str = "",
    limit: int = 5 * 10**9,
    overwrite: bool = False,
) -> list[pathlib.Path]:
    """Write a model as a Hugging Face directory that `transformers` loads; return its files.

    Args:
      directory: made if it is not there.
      model: any.
      architecture: class to write it as; empty for the one it came from, or the first that fits.
      dtype: of the tensors; empty for that of the parameters.
      limit: most bytes of a file of tensors.
      overwrite: replace the model that stands there.

    Raises:
      Unsafe: a model stands there.
      ConfigError: no known architecture computes what the model does.
      StorageError: the directory cannot be written.
    """
    path = pathlib.Path(directory)
    old = {*path.glob("[!.]*.safetensors*"), *path.glob("config.json")}
    begun = path / UNFINISHED
    if old and not overwrite and not begun.exists():
        raise Unsafe(f"{path} holds a model already ({min(old).name}); take another directory")
    config, heads = model.config, model.heads
    architecture = architecture or model.architecture
    described = hf_config.write(config, model.family, heads, model.labels, architecture)
    described = dataclasses.replace(described, fields=described.fields | {"tied": config.tied})
    stored = np.dtype(dtype or config.param_dtype)
    shapes = real_shapes(model.family, config, heads)
    tensors = tensors_of(described, tree.flatten(model.params), shapes, stored)
    special = _special_ids(model, described)
    raw = described.raw | {"dtype": stored.name, "torch_dtype": stored.name} | special
    raw |= {"problem_type": model.problem} if model.problem else {}
    try:
        path.mkdir(parents=True, exist_ok=True)
        locks.sweep(path)
        files.replace(begun, "")
        saved = tensor_writer.save(path, tensors, limit)
        for stale in old - {*saved, path / "config.json"}:
            stale.unlink()
        files.replace(path / "config.json", json.dumps(raw, indent=2, sort_keys=True) + "\n")
        if "lm" in heads:
            settings = special | generation.to_write(model)
            files.replace(path / generation.FILE, json.dumps(settings, indent=2) + "\n")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {cause_of(error, path)}") from None
    if model.tokenizer is not None:
        continues = model.traits.writes and not model.traits.encodes and "lm" in heads
        export_tokenizer(
            model.tokenizer,
            path,
            max_length=config.max_length if getattr(config, "positions", "") == "learned" else 0,
            token_types=getattr(config, "token_types", 0) > 1,
            after_bos=continues and model.trained_here,
        )
    begun.unlink()
    return saved


def _special_ids(model: TrainedModel, described: Description) -> dict[str, int]:
    """Return the keys of config.json that name special tokens."""
    ids = {}
    if model.tokenizer is not None:
        roles = ("bos", "eos", "pad", *(("cls", "sep") if described.model == "encoder" else ()))
        ids = {f"{role}_token_id": getattr(model.tokenizer, f"{role}_id") for role in roles}
        if described.model == "encoder_decoder":
            ids["decoder_start_token_id"] = model.tokenizer.start_id
    ids |= model.special_ids
    if "pad_token_id" in described.raw:  # RoBERTa's positions depend on it
        ids.pop("pad_token_id", None)
    return {name: index for name, index in ids.items() if index != -1}
