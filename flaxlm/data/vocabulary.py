"""The face that every tokenizer shows, and the byte-level one, which needs no training."""

import abc
import functools
import hashlib
import json
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from flaxlm.data import files
from flaxlm.errors import DataError, StorageError

SPECIALS = {"pad": "<pad>", "unk": "<unk>", "bos": "<s>", "eos": "</s>", "mask": "<mask>"}
SPACE = "\u2581"  # SentencePiece's visible space, the one character that it cannot give back


class Tokenizer(abc.ABC):
    """Shared face of all tokenizers; `encode` adds no specials, `decode` drops them."""

    kind: str
    vocab_size: int
    pad_id: int
    unk_id: int
    bos_id: int
    eos_id: int
    mask_id: int
    sentinel_ids: np.ndarray  # int32 [sentinels]; sentinel 0 has the greatest id
    model: bytes  # the trained contents; empty for byte

    @abc.abstractmethod
    def _encode(self, text: str) -> list[int]: ...

    @abc.abstractmethod
    def _decode(self, ids: list[int]) -> str: ...

    @abc.abstractmethod
    def _piece(self, index: int) -> str | None: ...

    @property
    def cls_id(self) -> int:
        """Id that opens a BERT input: the same as BOS."""
        return self.bos_id

    @property
    def sep_id(self) -> int:
        """Id that closes a BERT segment: the same as EOS."""
        return self.eos_id

    @functools.cached_property
    def special_ids(self) -> dict[str, int]:
        """Ids by role: pad, unk, bos, eos, mask."""
        return {role: getattr(self, f"{role}_id") for role in SPECIALS}

    @functools.cached_property
    def _silent(self) -> frozenset[int]:
        """Ids that stand for no text; unk does stand for some."""
        roles = {i for role, i in self.special_ids.items() if role != "unk"}
        return frozenset(roles | set(self.sentinel_ids.tolist()))

    @functools.cached_property
    def hash(self) -> str:
        """Sha-256 in hexadecimal of everything that decides text to ids."""
        facts = [self.kind, self.vocab_size, self.special_ids, self.sentinel_ids.tolist()]
        head = json.dumps(facts, sort_keys=True).encode()
        return hashlib.sha256(head + b"\n" + self.model).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without specials; DataError on unpaired surrogates."""
        try:
            text.isascii() or text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"text holds an unpaired surrogate at character {error.start}; it is not Unicode "
                "text: clean it first"
            ) from None
        return self._encode(text)

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the ids of each text."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, specials and sentinels dropped, unknown shown."""
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise DataError(f"id {i} is outside the vocabulary of {self.vocab_size}")
        return self._decode([i for i in ids if i not in self._silent])

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return each id's piece as the vocabulary spells it, specials included."""
        return [self._all_pieces[int(i)] for i in ids]

    @functools.cached_property
    def _all_pieces(self) -> list[str]:
        names = {i: SPECIALS[role] for role, i in self.special_ids.items()}
        names |= {int(i): f"<extra_id_{n}>" for n, i in enumerate(self.sentinel_ids)}
        return [self._piece(i) or names[i] for i in range(self.vocab_size)]

    def unrecoverable(self, text: str) -> int:
        """Count the characters of `text` that decode to something else whatever the vocabulary."""
        return 0

    @functools.cached_property
    def word_starts(self) -> np.ndarray:
        """Bool [V]: the piece begins a word by itself (specials do, a mid-word piece does not)."""
        return np.array([_starts_word(piece) for piece in self._spellings])

    @functools.cached_property
    def word_breaks(self) -> np.ndarray:
        """Bool [V]: whatever follows the piece begins a word (newline, bracket, special).

        With `word_starts` this places word boundaries: a token begins a word if its own piece
        does or the piece before it breaks.
        """
        return np.array([_breaks_word(piece) for piece in self._spellings])

    @functools.cached_property
    def _spellings(self) -> list[str]:
        """Each id's text with SPACE for a space; empty for specials and sentinels."""
        silent = self._silent | {self.unk_id}
        spell = ["" if i in silent else piece for i, piece in enumerate(self._all_pieces)]
        return [_byte_text(piece) if _BYTE.fullmatch(piece) else piece for piece in spell]

    def save(self, directory: str | os.PathLike) -> None:
        """Write `tokenizer.model` (where there is one) and `tokenizer.json`, the latter last."""
        directory = pathlib.Path(directory)
        facts = {
            "kind": self.kind,
            "vocab_size": self.vocab_size,
            "specials": self.special_ids,
            "sentinels": len(self.sentinel_ids),
            "hash": self.hash,
        }
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if self.model:
                files.replace(directory / "tokenizer.model", self.model)
            files.replace(
                directory / "tokenizer.json", json.dumps(facts, indent=1).encode() + b"\n"
            )
        except OSError as error:
            raise StorageError(
                f"cannot save the tokenizer in {directory}: {error.strerror}"
            ) from None


class ByteTokenizer(Tokenizer):
    """Ids 5..260 are the 256 bytes of UTF-8; needs no training and loses nothing."""

    kind = "byte"
    model = b""
    pad_id, unk_id, bos_id, eos_id, mask_id = range(5)

    def __init__(self, sentinels: int = 100):
        self.vocab_size = 5 + 256 + sentinels
        self.sentinel_ids = np.arange(self.vocab_size - 1, 260, -1, dtype=np.int32)

    def _encode(self, text: str) -> list[int]:
        return (np.frombuffer(text.encode(), np.uint8).astype(np.int32) + 5).tolist()

    def _decode(self, ids: list[int]) -> str:
        return bytes(i - 5 if i >= 5 else 0x3F for i in ids).decode(errors="replace")

    def _piece(self, index: int) -> str | None:
        return f"<0x{index - 5:02X}>" if 5 <= index < 261 else None


_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# Scripts written without spaces: each sign counts as a word, as in BERT's own tokenizer.
_IDEOGRAPH = re.compile(
    "[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f]"
)


def _byte_text(piece: str) -> str:
    value = int(piece[3:5], 16)
    # A byte of a longer character says nothing about words: it counts as a letter.
    return "x" if value >= 0x80 else chr(value).replace(" ", SPACE)


def _inside_word(character: str) -> bool:
    if _IDEOGRAPH.match(character):
        return False
    return character.isalnum() or unicodedata.category(character).startswith("M")


def _starts_word(spelling: str) -> bool:
    return not spelling or not _inside_word(spelling[0])


def _breaks_word(spelling: str) -> bool:
    return not spelling or (spelling[-1] != SPACE and not _inside_word(spelling[-1]))
