"""Cleaning, each step a named option: NFC, control characters, short and duplicate documents."""

import collections
import hashlib
import unicodedata

# Everything of category Cc but tab, newline and carriage return, which are layout.
_CONTROL = {c: None for c in (*range(32), *range(127, 160)) if chr(c) not in "\t\n\r"}


class Cleaner:
    """Cleans one pass over a corpus; `dropped` and `removed` count what it did.

    Duplicates are recognised by 16 bytes of sha-256: about 100 bytes of memory per document.
    """

    def __init__(self, config):
        self._config = config
        self._seen: set[bytes] = set()
        self.dropped: collections.Counter[str] = collections.Counter()
        self.removed: collections.Counter[str] = collections.Counter()

    def __call__(self, text: str) -> str | None:
        """Return the cleaned text, or None where the document is dropped."""
        config = self._config
        if config.strip_control:
            kept = text.translate(_CONTROL)
            self.removed["control_characters"] += len(text) - len(kept)
            text = kept
        if config.nfc and not unicodedata.is_normalized("NFC", text):
            text = unicodedata.normalize("NFC", text)
            self.removed["not_nfc_documents"] += 1
        if not text or text.isspace():
            self.dropped["empty"] += 1
            return None
        if len(text) < config.min_chars:
            self.dropped["short"] += 1
            return None
        if config.dedup:
            digest = hashlib.sha256(text.encode()).digest()[:16]
            if digest in self._seen:
                self.dropped["duplicate"] += 1
                return None
            self._seen.add(digest)
        return text
