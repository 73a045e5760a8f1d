"""`embed`: write a vector for each text of a JSONL file."""

import contextlib
import dataclasses
import pathlib
import shlex
from typing import ClassVar

import jax
import numpy as np

from flaxlm import files
from flaxlm.commands.flags import FILE
from flaxlm.commands.options import MODEL, ReadOptions
from flaxlm.errors import DataError, MissingInput, StorageError, cause_of
from flaxlm.inference import embed as embedding
from flaxlm.progress import say
from flaxlm.tasks import records
from flaxlm.training.metrics import report
from flaxlm.training.opened import INIT, open_run
from flaxlm.training.workdir import probe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ReadOptions, embedding.EmbedConfig):
    """What is read and written."""

    reads: ClassVar[str] = rf"{MODEL}|objective\.pooling"
    headless: ClassVar[bool] = True
    input: str = dataclasses.field(metadata=FILE)  # JSONL file with field text
    output: str = dataclasses.field(metadata=FILE)  # NumPy file to write, float32 [N, D]


def run(options: Options, config) -> None:
    """Write a vector for each text, and print how many they are."""
    texts, source = read_texts(options.input), (config, options.place, options.checkpoint)
    probe(options.place)  # before the work whose counts go there
    with (
        writer(options.output) as write,
        # The backbone alone: heads are neither built nor, from a foreign model, looked for.
        open_run(*source, devices=jax.local_devices()[:1], heads={}, say=say) as opened,
    ):
        foreign = options.checkpoint == INIT
        trained = "" if foreign else getattr(config.objective, "pooling", "")
        vectors = embedding.embed(opened.model, texts, options, trained, say)
        write(vectors)
    counts = {"embed/texts": len(vectors), "embed/width": vectors.shape[1]}
    report(options.place, counts, f"embed: {options.output}")


def read_texts(path: str) -> list[str]:
    """Return the field `text` of every line of a JSONL file; the errors name file and line."""
    texts, held = [], files.Held(path)
    for row in records.read_table(path):
        # An empty text is one; anything else that is no text is named.
        texts.append("" if row.columns.get("text") == "" else row.text("text"))
        held.add(texts[-1])
    if not texts:
        raise DataError(f"{path} holds no line to embed")
    return texts


@contextlib.contextmanager
def writer(path: str):
    """Yield a function that writes an array as a NumPy file, whole or not at all.

    The place is tried first: MissingInput or StorageError where nothing can be written there.
    """
    target = pathlib.Path(path)
    if not target.parent.exists():
        raise MissingInput(
            f"--output={path}: there is no folder {target.parent}; make it with "
            f"mkdir -p {shlex.quote(str(target.parent))}"
        )
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(files.replacing(target))
        except OSError as error:
            raise StorageError(
                f"--output={path} cannot be written: {cause_of(error, path)}"
            ) from None
        yield lambda array: np.save(file, array)
