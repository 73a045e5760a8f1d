"""Vectors of texts from a trained model: pooled final states, in the texts' own order."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.data.sentence_modules import SentenceModules, read_modules
from flaxlm.data.vocabulary import Tokenizer
from flaxlm.errors import ConfigError, choose
from flaxlm.inference.prompts import batches, pad, position_limit
from flaxlm.models.heads import POOLINGS, pool
from flaxlm.progress import Progress
from flaxlm.trained import TrainedModel


@dataclasses.dataclass(frozen=True)
class EmbedConfig:
    """How to make a vector of a text; where nothing is given, as the model's own files say.

    Attributes:
      pooling: `mean` of the real tokens' states, the first one's (`cls`) or the `last` one's;
        empty: what the model says, else mean.
      normalize: divide by the Euclidean length; None: what the model says, else no.
      prompt_name: which of the model's prompts to put before texts; empty: its default, if any.
      batch_size: texts computed together.
      max_tokens: longer texts are cut, their special tokens kept; 0: what the model says, else
        what it can read, 512 where it has no bound.
    """

    pooling: str = ""
    normalize: bool | None = None
    prompt_name: str = ""
    batch_size: int = 32
    max_tokens: int = 0

    def __post_init__(self):
        choose("--pooling", self.pooling, ("", *POOLINGS))
        if self.batch_size < 1 or self.max_tokens < 0:
            raise ConfigError("--batch_size must be at least 1, --max_tokens 0 or more")


@functools.partial(jax.jit, static_argnames=("module", "pooling", "normalize"))
def _vectors(module, params, batch, *, pooling, normalize):
    if hasattr(module, "encode"):  # an encoder-decoder: what its encoder made of the text
        batch = {f"encoder_{name}": array for name, array in batch.items()}
        x_BLD = module.apply({"params": params}, batch, method="encode")
        segments = batch["encoder_segment_ids"]
    else:
        x_BLD = module.apply({"params": params}, batch)["hidden"]
        segments = batch["segment_ids"]
    x_BD = pool(x_BLD, segments, pooling).astype(jnp.float32)
    if normalize:
        x_BD = x_BD / jnp.maximum(jnp.linalg.norm(x_BD, axis=-1, keepdims=True), 1e-12)
    return x_BD


def settle(
    options: EmbedConfig, modules: SentenceModules, trained: str, limit: int | None
) -> tuple[EmbedConfig, str, str]:
    """Return (options with nothing left open, the prompt, a line on what was decided and where).

    Args:
      options: as they were given.
      modules: what the model's files say.
      trained: the pooling that a run was trained with; it comes before that of the files.
      limit: the most tokens that the model reads; None where it has no bound.

    Raises:
      ConfigError: the files ask for what is not computed and no pooling is given, there is no such
        prompt, or max_tokens is above the limit.
    """
    if modules.unsupported and not options.pooling:
        raise ConfigError(
            f"{modules.unsupported[0]}, which is not computed here; --pooling=mean, or another one "
            "of the last layer's states, makes vectors without it"
        )
    if options.max_tokens and limit is not None and options.max_tokens > limit:
        raise ConfigError(f"--max_tokens={options.max_tokens} is above model.max_length={limit}")
    name = options.prompt_name
    if name and not modules.prompts:
        raise ConfigError(f"--prompt_name={name!r}: the model's files name no prompt")
    prompt = modules.prompt
    if name:
        prompt = modules.prompts[choose("--prompt_name", name, modules.prompts)]
    most = limit or 512
    said = {
        "pooling": trained or modules.pooling or "mean",
        "normalize": modules.normalize,
        "max_tokens": min(modules.max_tokens or most, most),
    }
    where = dict(modules.where) | ({"pooling": "objective.pooling"} if trained else {})
    decided, parts = dict(said), []
    for name in said:
        asked = getattr(options, name)
        if asked or asked is False:
            decided[name] = asked
        if name in where:
            other = f"--{name}; {where[name]} says {said[name]}"
            source = where[name] if decided[name] == said[name] else other
            parts.append(f"{name} {decided[name]} ({source})")
    parts += [f"left out: {fault}" for fault in modules.unsupported]
    parts += [f"prompt {prompt!r}"] if prompt else []
    return dataclasses.replace(options, **decided), prompt, ", ".join(parts)


def embed(
    model: TrainedModel,
    texts: Sequence[str],
    options: EmbedConfig,
    trained: str = "",
    say: Callable = lambda line: None,
) -> np.ndarray:
    """Return a vector for each text, float32 [N, D], row i for text i.

    Args:
      model: its backbone is what counts; heads cost time and are ignored.
      texts: any; an empty one is its special tokens alone.
      options: see the class.
      trained: the pooling that the model was trained with, where that is known.
      say: prints a line: what the model's files decided.
    """
    with model.reading_text():
        tokenizer, limit = model.tokenizer, position_limit(model.config)
        modules = read_modules(tokenizer.beside)
        options, prompt, line = settle(options, modules, trained, limit)
        if line:
            say(f"vectors: {line}")
        texts = [prompt + text for text in texts]
        if modules.lowercase:
            texts = [text.lower() for text in texts]
        rows = [_row(tokenizer, ids, options.max_tokens) for ids in tokenizer.encode_batch(texts)]
    vectors = np.zeros((len(rows), model.config.width), np.float32)
    size, typed = options.batch_size, getattr(model.config, "token_types", 0)
    with model.on_mesh(), Progress("embed", len(rows), unit="texts") as bar:
        for members, padded in batches([len(ids) for ids, _ in rows], size):
            length = min(padded, limit or padded)
            batch = pad([rows[m][0] for m in members], size, length, left=False)
            if typed:
                types = pad([rows[m][1] for m in members], size, length, left=False)
                batch["token_types"] = types["tokens"]
            kinds = {"pooling": POOLINGS[options.pooling], "normalize": options.normalize}
            batch_vectors = _vectors(model.module, model.params, batch, **kinds)
            vectors[members] = np.asarray(batch_vectors)[: len(members)]
            bar.add(len(members))
    return vectors


def _row(tokenizer: Tokenizer, ids: list[int], most: int) -> tuple[list[int], list[int]]:
    """Return (ids, token types) of a text within its special tokens, `most` of them."""
    specials = len(tokenizer.with_specials([])[0])
    if specials >= most:
        raise ConfigError(f"--max_tokens={most} leaves no room beside {specials} special tokens")
    ids, types = tokenizer.with_specials(ids[: most - specials])
    # A tokenizer without specials of its own still needs something to read for an empty text.
    return (ids, types) if ids else ([tokenizer.bos_id], [0])
