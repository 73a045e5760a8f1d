"""Cleaning documents, each step a named option, and splitting them into train, valid and test."""

import collections
import hashlib
import unicodedata
from collections.abc import Callable, Iterator

from flaxlm.data.sources import DataConfig, Document, documents

# Everything of category Cc but tab, newline and carriage return, which are layout.
_CONTROL = {c: None for c in (*range(32), *range(127, 160)) if chr(c) not in "\t\n\r"}


class Cleaner:
    """Cleans one pass over a corpus; `dropped` and `removed` count what it did.

    Duplicates are recognised by 16 bytes of sha-256: about 100 bytes of memory per document.
    """

    def __init__(self, config: DataConfig):
        self._config = config
        self._seen: set[bytes] = set()
        self.dropped: collections.Counter[str] = collections.Counter()
        self.removed: collections.Counter[str] = collections.Counter()

    def __call__(self, text: str) -> str | None:
        """Return the cleaned text, or None where the document is dropped."""
        config = self._config
        if config.strip_control:
            stripped = text.translate(_CONTROL)
            self.removed["control_characters"] += len(text) - len(stripped)
            text = stripped
        if config.nfc and not unicodedata.is_normalized("NFC", text):
            text = unicodedata.normalize("NFC", text)
            self.removed["not_nfc_documents"] += 1
        fault = ""
        if not text or text.isspace():
            fault = "empty"
        elif len(text) < config.min_chars:
            fault = "short"
        elif config.dedup:
            digest = hashlib.sha256(text.encode()).digest()[:16]
            fault = "duplicate" if digest in self._seen else ""
            self._seen.add(digest)
        if fault:
            self.dropped[fault] += 1
        return None if fault else text


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

    def cleaned(split: str, cleaner: Cleaner) -> Iterator[Document]:
        for document in documents(config, split, progress):
            if (text := cleaner(document.text)) is not None:
                yield Document(document.id, text)

    cleaner = cleaner or Cleaner(config)
    if config.split == "file":
        # Held-out files first: of two equal documents, deduplication drops the one in train.
        for split in reversed(config.split_names()):
            yield from ((split, document) for document in cleaned(split, cleaner))
    elif config.split == "tail":
        total = sum(len(document.text) for document in cleaned("train", Cleaner(config)))
        yield from _cut(cleaned("train", cleaner), total, config)
    else:
        whole = config.split == "whole"
        for document in cleaned("train", cleaner):
            yield "train" if whole else split_by_hash(document.text, config), document


def split_by_hash(text: str, config: DataConfig) -> str:
    """Return the split of a cleaned text: its sha-256 as a number in [0, 1) against the shares."""
    share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    if share < config.test_fraction:
        return "test"
    return "valid" if share < config.test_fraction + config.valid_fraction else "train"


def _cut(documents: Iterator[Document], total: int, config) -> Iterator[tuple[str, Document]]:
    """Cut `total` characters at the two borders, through the documents in which they fall."""
    borders = {
        "train": int(total * (1 - (config.valid_fraction + config.test_fraction))),
        "valid": int(total * (1 - config.test_fraction)),
        "test": total,
    }
    at = 0
    for document in documents:
        start, length = 0, len(document.text)
        for split, border in borders.items():
            end = min(border - at, length)
            if end > start:
                yield split, Document(document.id, document.text[start:end])
                start = end
        at += length
