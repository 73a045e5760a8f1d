"""Splitting documents into train, valid and test."""

import hashlib
from collections.abc import Callable, Iterator

from flaxlm.data.clean import Cleaner
from flaxlm.data.read import Document
from flaxlm.data.sources import DataConfig, documents


def passes(config: DataConfig) -> int:
    """Return how often `split_documents` reads the corpus."""
    return 2 if config.split == "tail" else 1


def split_documents(
    config: DataConfig,
    cleaner: Cleaner | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[str, Document]]:
    """Yield (split, cleaned document), always in the same order, a few in memory at a time.

    `cleaner` (a fresh one) holds the counts of the cleaning afterwards; `progress` is called with
    the number of bytes just read. With `data.split='whole'` all of it is `train`.
    """
    cleaner = cleaner or Cleaner(config)
    if config.split == "file":
        # Held-out files first: of two equal documents, deduplication drops the one in train.
        for split in reversed(config.split_names()):
            for document in _cleaned(config, split, cleaner, progress):
                yield split, document
    elif config.split == "tail":
        counted = _cleaned(config, "train", Cleaner(config), progress)
        total = sum(len(document.text) for document in counted)
        yield from _cut(_cleaned(config, "train", cleaner, progress), total, config)
    else:
        for document in _cleaned(config, "train", cleaner, progress):
            whole = config.split == "whole"
            yield "train" if whole else split_by_hash(document.text, config), document


def split_by_hash(text: str, config: DataConfig) -> str:
    """Return the split of a cleaned text: its sha-256 as a number in [0, 1) against the shares."""
    share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    if share < config.test_fraction:
        return "test"
    return "valid" if share < config.test_fraction + config.valid_fraction else "train"


def _cleaned(config, split, cleaner, progress) -> Iterator[Document]:
    for document in documents(config, split, progress):
        text = cleaner(document.text)
        if text is not None:
            yield Document(document.id, text, document.file)


def _cut(documents, total, config) -> Iterator[tuple[str, Document]]:
    """Cut `total` characters at the two borders, through the documents in which they fall."""
    held = config.valid_fraction + config.test_fraction
    borders = {
        "train": int(total * (1 - held)),
        "valid": int(total * (1 - config.test_fraction)),
        "test": total,
    }
    at = 0
    for document in documents:
        start, length = 0, len(document.text)
        for split, border in borders.items():
            end = min(border - at, length)
            if end > start:
                yield split, Document(document.id, document.text[start:end], document.file)
                start = end
        at += length
