"""Vectors of texts from a trained model: pooled final states, in the texts' own order."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.data.vocabulary import Tokenizer
from flaxlm.errors import ConfigError, choose
from flaxlm.inference.prompts import batches, pad, position_limit
from flaxlm.models.heads import POOLINGS, pool
from flaxlm.progress import Progress
from flaxlm.trained import TrainedModel


@dataclasses.dataclass(frozen=True)
class EmbedConfig:
    """How to make a vector of a text.

    Attributes:
      pooling: `mean` of the real tokens' states, the first one's (`cls`) or the `last` one's.
      normalize: divide by the Euclidean length.
      batch_size: texts computed together.
      max_tokens: longer texts are cut, their special tokens kept; 0 for what the model can read,
        512 where it has no bound.
    """

    pooling: str = "mean"
    normalize: bool = False
    batch_size: int = 32
    max_tokens: int = 0

    def __post_init__(self):
        choose("--pooling", self.pooling, POOLINGS)
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


def embed(model: TrainedModel, texts: Sequence[str], options: EmbedConfig) -> np.ndarray:
    """Return a vector for each text, float32 [N, D], row i for text i.

    Texts of like length are computed together: padded to 16, 32, 64, … tokens, so that few shapes
    are compiled and little is padded.

    Args:
      model: its backbone is what counts; heads cost time and are ignored.
      texts: any; an empty one is its special tokens alone.
      options: see the class.
    """
    tokenizer, limit = model.tokenizer, position_limit(model.config)
    most = options.max_tokens or limit or 512
    if limit is not None and most > limit:
        raise ConfigError(f"--max_tokens={most} is above model.max_length={limit}")
    rows = [_row(tokenizer, ids, most) for ids in tokenizer.encode_batch(texts)]
    found = np.zeros((len(rows), model.config.width), np.float32)
    size = options.batch_size
    with model.reading_text(), Progress("embed", len(rows), unit="texts") as bar:
        for members, padded in batches([len(ids) for ids, _ in rows], size):
            length = min(padded, limit or padded)
            batch = pad([rows[m][0] for m in members], size, length, left=False)
            types = pad([rows[m][1] for m in members], size, length, left=False)["tokens"]
            vectors = _vectors(
                model.module,
                model.params,
                batch | ({"token_types": types} if getattr(model.config, "token_types", 0) else {}),
                pooling=POOLINGS[options.pooling],
                normalize=options.normalize,
            )
            found[members] = np.asarray(vectors)[: len(members)]
            bar.add(len(members))
    return found


def _row(tokenizer: Tokenizer, ids: list[int], most: int) -> tuple[list[int], list[int]]:
    """Return (ids, token types) of a text within its special tokens, `most` of them."""
    specials = len(tokenizer.with_specials([])[0])
    if specials >= most:
        raise ConfigError(f"--max_tokens={most} leaves no room beside {specials} special tokens")
    ids, types = tokenizer.with_specials(ids[: most - specials])
    # A tokenizer without specials of its own still needs something to read for an empty text.
    return (ids, types) if ids else ([tokenizer.bos_id], [0])
