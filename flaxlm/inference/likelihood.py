"""How likely texts are to a trained model: continuations, masked tokens, and long texts in windows.

Requests of like length are computed together, padded to one of a few lengths, so that few shapes
are compiled. How many rows a device gets at a time is a function of that length alone: a matrix
product of another number of rows rounds otherwise, and an answer must not depend on what else was
asked, nor on how many devices there are. The device gives a float32 log-probability for each token;
sums are made in float64 on the host.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from flaxlm import sharding
from flaxlm.errors import ConfigError, DataError
from flaxlm.inference.prompts import SMALLEST_BUCKET, bucket, pad, position_limit
from flaxlm.inference.requests import (
    Continuation,
    Ids,
    Masked,
    Request,
    Scores,
    check_left_to_right,
    windows,
)
from flaxlm.models import losses
from flaxlm.progress import Progress
from flaxlm.trained import TrainedModel

# Tokens that a device reads at a time, in rows of one padded length: as many as keep an accelerator
# busy, and few enough that a request by itself is not dear on a CPU.
BLOCK_TOKENS = 1024


class _Row(NamedTuple):
    """One row of a batch: what is read, and the (place, target) pairs that are judged in it."""

    owner: int
    tokens: Sequence[int]
    places: Sequence[int]
    targets: Sequence[int]
    types: Sequence[int] = ()
    encoder: Sequence[int] = ()


def score(
    model: TrainedModel,
    requests: Sequence[Request],
    max_length: int = 0,
    title: str = "likelihoods",
) -> Scores:
    """Return the log-likelihood of each request; equal requests are computed once.

    On a mesh, rows are spread over its batch axes.

    Args:
      model: the trained model.
      requests: `Continuation`s; for an encoder `Masked`.
      max_length: most tokens that the model is given to read; 0 for as many as it has positions.
      title: of the progress bar.

    Raises:
      DataError: what is to be judged does not fit into the model; only a context is ever cut.
      ConfigError: the model has no head to judge tokens with.
    """
    layout, head = _answered if model.traits.encodes else _continued, "lm"
    if model.traits.bidirectional:
        layout, head = _hidden, "mlm"
    limit = reading_limit(model, max_length)
    index: dict[Request, int] = {}
    owners = np.array([index.setdefault(request, len(index)) for request in requests], np.int64)
    rows, cut = [], np.zeros(len(index), bool)
    for number, request in enumerate(index):
        laid_out, cut[number] = layout(model.tokenizer, number, request, limit)
        rows += laid_out
    with model.reading_text():
        judged = _compute(model, rows, limit, head, title)
    tokens: list[list] = [[] for _ in index]
    greedy = np.ones(len(index), bool)
    for row, (values, best) in zip(rows, judged, strict=True):
        tokens[row.owner].append(values)
        greedy[row.owner] &= best
    # Rows of a request stand in their order: its tokens come out in theirs.
    joined = [np.concatenate(parts) if parts else np.zeros(0, np.float32) for parts in tokens]
    return Scores([joined[i] for i in owners], greedy[owners], cut[owners])


def reading_limit(model: TrainedModel, max_length: int = 0) -> int | None:
    """Return how many tokens a model reads at once; `max_length` may ask for fewer (0: not)."""
    return min((n for n in (position_limit(model.config), max_length) if n), default=None)


def _continued(tokenizer, number: int, request: Continuation, limit) -> tuple[list[_Row], bool]:
    """Return the row of a decoder: context and continuation, each token judged from those before.

    The last token is judged and never read.
    """
    continuation = request.continuation
    context, cut = _fit(number, request, len(continuation), limit)
    tokens = (*context, *continuation[:-1])
    places = range(len(context) - 1, len(tokens))
    return [_Row(number, tokens, places, continuation)], cut


def _fit(number: int, request: Continuation, beside: int, limit: int | None) -> tuple[Ids, bool]:
    """Return the end of a context that fits before `beside` tokens, and whether that is a cut."""
    context, continuation = request
    if not context or not continuation:
        raise DataError(f"request {number} needs a token of context and one to judge")
    if limit is not None and len(continuation) > limit:
        raise _too_long(number, len(continuation), limit)
    if limit is None or len(context) + beside - 1 <= limit:
        return context, False
    return context[-(limit + 1 - beside) :], True


def _too_long(number: int, length: int, limit: int) -> DataError:
    return DataError(
        f"request {number}: the {length} tokens to be judged do not fit into the {limit} that the "
        "model is given to read, and only contexts are cut; shorten the text"
    )


def _answered(tokenizer, number: int, request: Continuation, limit) -> tuple[list[_Row], bool]:
    """Return the row of an encoder-decoder: it reads the context, and writes the continuation."""
    context, cut = _fit(number, request, 1, limit)
    tokens = (tokenizer.start_id, *request.continuation[:-1])
    row = _Row(number, tokens, range(len(tokens)), request.continuation, encoder=context)
    return [row], cut


def _hidden(tokenizer, number: int, request: Masked, limit) -> tuple[list[_Row], bool]:
    """Return the rows of an encoder, a masked token each.

    What does not fit is cut behind the first token, where the context begins.
    """
    rows, cut = [], False
    first = min((place for *_, place in request.rows), default=0)
    for ids, types, place in request.rows:
        over = 0 if limit is None else max(0, len(ids) - limit)
        if over:
            if first <= over:
                raise _too_long(number, len(ids) - first, limit)
            cut = True
        target = (ids[place],)
        if over:
            ids, types = (part[:1] + part[1 + over :] for part in (ids, types))
        rows.append(_Row(number, ids, (place - over,), target, types))
    return rows, cut


def _compute(model: TrainedModel, rows, limit, head, title) -> list:
    """Return (log-probabilities float32 [tokens], whether all are the likeliest) of each row.

    The device is given batch i + 1 before the host waits for batch i.
    """
    results: list = [None] * len(rows)

    def started() -> Iterator[tuple]:
        for members, size, shape in _groups(rows, limit):
            batch = _batch(model, [rows[m] for m in members], size, shape, head)
            yield members, _judge(model.module, model.params, sharding.spread(batch), head=head)
        yield None, None

    with Progress(title, len(rows), unit="rows", quiet=jax.process_index() != 0) as bar:
        for (members, outputs), _ in itertools.pairwise(started()):
            values, best = (np.asarray(array) for array in outputs)
            for place, member in enumerate(members):
                count = len(rows[member].targets)
                results[member] = values[place, :count], bool(best[place, :count].all())
            bar.add(len(members))
    return results


def _groups(rows: Sequence[_Row], limit: int | None) -> Iterator[tuple[list[int], int, tuple]]:
    """Yield (indices, batch size, padded lengths of tokens, encoder, targets) of rows of one shape.

    The longest come first, so that what does not fit into the memory fails at once.
    """

    def padded(ids) -> int:  # no more than there are positions
        return min(_padded(len(ids)), limit or _padded(len(ids))) if ids else 0

    def judged(count: int, length: int) -> int:  # one, or room for 16, 64, 256, …: fewer shapes
        room = SMALLEST_BUCKET
        while room < count:
            room *= 4
        return min(room, length) if count > 1 else count

    shapes: dict[tuple[int, int, int], list[int]] = {}
    for index, row in enumerate(rows):
        length = padded(row.tokens)
        shape = (length, padded(row.encoder), judged(len(row.targets), length))
        shapes.setdefault(shape, []).append(index)
    for shape, indices in sorted(shapes.items(), reverse=True):
        size = max(1, BLOCK_TOKENS // (shape[0] + shape[1])) * sharding.batch_width()
        for begin in range(0, len(indices), size):
            yield indices[begin : begin + size], size, shape


def _padded(length: int) -> int:
    """Return the padded length: 16, 32, …, 256, then 384, 512, 768, 1024, …

    Attention costs the square: of long rows, half as many steps again are worth their compilation.
    """
    most = bucket(length)
    return most * 3 // 4 if most > 256 and length <= most * 3 // 4 else most


def _batch(model: TrainedModel, rows: list[_Row], size: int, shape, head) -> dict:
    """Return the arrays of some rows, padded on the right; missing rows are empty."""
    length, encoder, judged = shape
    batch = pad([row.tokens for row in rows], size, length, left=False)
    if encoder:
        read = pad([row.encoder for row in rows], size, encoder, left=False)
        batch |= {f"encoder_{name}": array for name, array in read.items()}
    places, targets = np.zeros((2, size, judged), np.int32)
    for number, row in enumerate(rows):
        places[number, : len(row.places)] = row.places
        targets[number, : len(row.targets)] = row.targets
    if head == "mlm":
        batch["tokens"][np.arange(len(rows)), places[: len(rows), 0]] = model.tokenizer.mask_id
        if getattr(model.config, "token_types", 0):
            types = pad([row.types for row in rows], size, length, left=False)
            batch["token_types"] = types["tokens"]
    return batch | {"target_positions": places, "targets": targets}


@functools.partial(jax.jit, static_argnames=("module", "head"))
def _judge(module, params, batch, *, head):
    """Return (log-probability, whether it is the likeliest) [B, P] of each target."""
    outputs = module.apply({"params": params}, batch)
    if head not in outputs:
        raise ConfigError(
            f"the model has no {head} head to judge tokens with; score the pre-trained run"
        )
    return sharding.replicate(losses.token_log_likelihoods(outputs[head], batch["targets"]))


def rolling(model: TrainedModel, texts: Sequence[str], window: int, stride: int = 0) -> np.ndarray:
    """Return the nats of long texts, float64 [N], each token judged exactly once.

    A text is read as BOS and its tokens, in windows that overlap: see `requests.windows`.

    Args:
      model: of a family that goes on from what it has read.
      texts: any.
      window: tokens that the model reads at once.
      stride: tokens judged in each window; 0 for all of them, without overlap.
    """
    check_left_to_right(model.family)
    stride, limit = stride or window, position_limit(model.config)
    if not 1 <= stride <= window:
        raise ConfigError(f"stride={stride} must be between 1 and window={window}")
    if limit is not None and window > limit:
        raise ConfigError(f"window={window} is above model.max_length={limit}")
    bos = model.tokenizer.bos_id
    streams = [[bos, *ids] for ids in model.tokenizer.encode_batch(texts)]
    asked = [list(windows(stream, window, stride)) for stream in streams]
    scores = score(model, [request for requests in asked for request in requests], title="windows")
    owners = [number for number, requests in enumerate(asked) for _ in requests]
    return np.bincount(np.array(owners, np.int64), -scores.log_likelihood, minlength=len(texts))
