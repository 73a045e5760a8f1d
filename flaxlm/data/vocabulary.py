"""The interface of every tokenizer, and the byte-level ones, which need no training."""

import abc
import functools
import hashlib
import json
import os
import pathlib
import re
import types
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from flaxlm import files
from flaxlm.data import long, offsets
from flaxlm.data.template import Template
from flaxlm.errors import ConfigError, DataError, StorageError, cause_of

SPECIALS = {"pad": "<pad>", "unk": "<unk>", "bos": "<s>", "eos": "</s>", "mask": "<mask>"}
BESIDE = "beside.json"  # of a saved tokenizer, see `Tokenizer.beside`
SPACE = "\u2581"  # SentencePiece's visible space, the one character that it cannot give back


class Tokenizer(abc.ABC):
    """Interface of all tokenizers; `encode` adds no specials, `decode` drops them.

    A role that the vocabulary does not have is −1 (GPT-2 has no mask); several roles may share
    an id (GPT-2's BOS is its EOS).
    """

    kind: str
    vocab_size: int
    pad_id: int
    unk_id: int
    bos_id: int
    eos_id: int
    mask_id: int
    sentinel_ids: np.ndarray  # int32 [sentinels] in their order, which need not be that of ids
    model: bytes  # the trained contents; empty for byte
    family: str = ""  # of a model from elsewhere: whose special tokens and template it follows
    add_bos_token: bool | None = None  # what another project's files say of it
    # Texts of files beside it in another project's directory, by name, for exports: {name: text}.
    beside: Mapping[str, str] = types.MappingProxyType({})
    beyond: frozenset[int] = frozenset()  # ids that the model has no rows for, see `restrict`

    @abc.abstractmethod
    def _encode(self, text: str) -> list[int]: ...

    @abc.abstractmethod
    def _encode_with_offsets(self, text: str) -> tuple[list[int], offsets.Spans]: ...

    @abc.abstractmethod
    def _decode(self, ids: list[int]) -> str: ...

    @abc.abstractmethod
    def _piece(self, index: int) -> str | None: ...

    @functools.cached_property
    def cls_id(self) -> int:
        """Id that opens a BERT input: BOS where there is no other."""
        return self.bos_id

    @functools.cached_property
    def sep_id(self) -> int:
        """Id that closes a BERT segment: EOS where there is no other."""
        return self.eos_id

    @functools.cached_property
    def start_id(self) -> int:
        """Id that the decoder of an encoder-decoder starts from: the padding's, as in T5."""
        return self.pad_id

    @property
    def adds_bos(self) -> bool:
        """Whether a text to be continued begins with BOS: as its files say, or its template."""
        return self._begins_with_bos if self.add_bos_token is None else self.add_bos_token

    @functools.cached_property
    def _begins_with_bos(self) -> bool:
        return self.template.single.specials[0][:1] == (self.bos_id,)

    @functools.cached_property
    def template(self) -> Template:
        """Special tokens around what an encoder reads: `[CLS] a [SEP]`, `[CLS] a [SEP] b [SEP]`."""
        return Template.of((self.cls_id,), (self.sep_id,), (self.sep_id,))

    def with_specials(
        self, first: Sequence[int], second: Sequence[int] | None = None
    ) -> tuple[list[int], list[int]]:
        """Return (ids, token types) of one text's ids, or of a pair's, as an encoder reads them."""
        texts = [first] if second is None else [first, second]
        ids, types = self.template[len(texts) - 1].around(*texts)
        return ids.tolist(), types.tolist()

    @functools.cached_property
    def special_ids(self) -> dict[str, int]:
        """Ids by role: pad, unk, bos, eos, mask; without the roles that do not exist."""
        ids = {role: getattr(self, f"{role}_id") for role in SPECIALS}
        return {role: i for role, i in ids.items() if i >= 0}

    @functools.cached_property
    def _silent(self) -> frozenset[int]:
        """Ids that stand for no text; unk is not among them."""
        roles = {i for role, i in self.special_ids.items() if role != "unk"}
        return frozenset(roles | set(self.sentinel_ids.tolist()))

    @functools.cached_property
    def hash(self) -> str:
        """Sha-256 in hexadecimal of everything that decides text to ids."""
        facts = [self.kind, self.vocab_size, self.special_ids, self.sentinel_ids.tolist()]
        if self.family:
            facts.append(self.family)
        head = json.dumps(facts, sort_keys=True).encode()
        return hashlib.sha256(head + b"\n" + self.model).hexdigest()

    def restrict(self, rows: int) -> None:
        """Refuse from now on texts with ids that a model of `rows` rows cannot read; warn of them.

        ConfigError where one is a special token.
        """
        if self.vocab_size <= rows:
            return
        self.beyond = frozenset(range(rows, self.vocab_size))
        names = ", ".join(self.pieces(sorted(self.beyond)[:5]))
        what = f"the tokenizer has {self.vocab_size} ids and the model {rows} rows: {names}"
        self.vocab_size, _ = rows, self.hash  # which stays that of the whole vocabulary
        if self.pad_id in self.beyond:  # nothing reads what stands there
            self.pad_id = self.eos_id
        for cached in ("_all_pieces", "special_ids", "_silent"):
            self.__dict__.pop(cached, None)
        if not self.beyond.isdisjoint(self.special_ids.values()):
            raise ConfigError(f"{what}; special tokens are among them, so nothing can be read")
        warnings.warn(f"{what}; texts that hold one are refused", stacklevel=2)

    def readable(self, ids: list[int]) -> list[int]:
        """Return `ids`; DataError where the model has no row for one."""
        if self.beyond and (beyond := self.beyond.intersection(ids)):
            raise DataError(
                f"a text holds {self._piece(min(beyond))!r}, id {min(beyond)}, and the model has "
                f"{self.vocab_size} rows; fine-tuning (--config.init) starts a row for it"
            )
        return ids

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without specials; DataError on unpaired surrogates."""
        text = _unicode(text)
        if len(text) > 2 * long.PART:
            return self.encode_array(text, np.int32).tolist()
        return self.readable(self._encode(text))

    def encode_array(self, text: str, dtype: np.typing.DTypeLike) -> np.ndarray:
        """Return the ids of `text` as `encode` does, in an array, which takes less memory."""
        parts = long.cuts(_unicode(text), self._encode)
        ids = [np.array(self.readable(self._encode(part)), dtype) for part in parts]
        return ids[0] if len(ids) == 1 else np.concatenate(ids)

    def encode_with_offsets(self, text: str) -> tuple[list[int], np.ndarray]:
        """Return the ids of `text` as `encode` does, and where each stands in it, int32 [n, 2].

        Offsets are ascending, in characters (code points) of `text`, the end exclusive, without
        white space at either end: a token of white space alone, or of none of the text, is empty.
        Parts of one character each have all of it.
        """
        ids, spans, start = [], [], 0
        for part in long.cuts(_unicode(text), self._encode):
            some, places = self._encode_with_offsets(part)
            ids += self.readable(some)
            spans.append(offsets.tidy(part, places) + start)
            start += len(part)
        return ids, np.concatenate(spans)

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the ids of each text."""
        texts = [_unicode(text) for text in texts]
        if max(map(len, texts), default=0) > 2 * long.PART:
            return [self.encode(text) for text in texts]
        return [*map(self.readable, self._encode_batch(texts))]

    def _encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self._encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, specials and sentinels dropped, unknown shown."""
        ids = [int(i) for i in ids]
        if outside := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise DataError(f"id {outside[0]} is outside the vocabulary of {self.vocab_size}")
        return self._decode([i for i in ids if i not in self._silent])

    def decode_after(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """Return the text that `ids` add to that of `before`, the space between the two included.

        A text ends at EOS: only what follows the last one counts.
        """
        # Many a decoder drops a text's first space, or joins a piece to the one before it.
        before = list(before)
        if self.eos_id in before:
            before = before[len(before) - before[::-1].index(self.eos_id) :]
        head, whole = self.decode(before), self.decode([*before, *ids])
        # The end of `head` may be half a character, or be spaced otherwise with more behind it.
        while not whole.startswith(head):
            head = head[:-1]
        return whole[len(head) :]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return each id's piece as the vocabulary spells it, specials included."""
        return [self._all_pieces[int(i)] for i in ids]

    @functools.cached_property
    def _all_pieces(self) -> list[str]:
        names = {i: SPECIALS[role] for role, i in self.special_ids.items()}
        names |= {int(i): f"<extra_id_{n}>" for n, i in enumerate(self.sentinel_ids)}
        # A vocabulary from elsewhere may leave ids unused; such a piece is empty.
        return [self._piece(i) or names.get(i, "") for i in range(self.vocab_size)]

    def unrecoverable(self, text: str) -> int:
        """Count the characters of `text` that no vocabulary of this kind can give back."""
        return 0

    @functools.cached_property
    def word_starts(self) -> np.ndarray:
        """Bool [V]: the piece begins a word by itself (specials do, a mid-word piece does not)."""
        return np.array([not text or not _inside_word(text[0]) for text in self._spellings])

    @functools.cached_property
    def _spellings(self) -> list[str]:
        """Each id's text with SPACE for a space; empty for specials and sentinels."""
        silent = self._silent | {self.unk_id}
        pieces = enumerate(self._all_pieces)
        return ["" if i in silent else self._spell(piece) for i, piece in pieces]

    def _spell(self, piece: str) -> str:
        """Return a piece's text, SPACE for a space."""
        if not _BYTE.fullmatch(piece):
            return piece
        value = int(piece[3:5], 16)
        # A byte of a longer character says nothing about words: it counts as a letter.
        return "x" if value >= 0x80 else chr(value).replace(" ", SPACE)

    @functools.cached_property
    def spaces_join(self) -> bool:
        """Whether a space and the word after it are one piece, which decodes to both."""
        for index, text in enumerate(self._spellings):
            if len(text) > 1 and text[0] == SPACE != text[1]:
                # Some decoders drop a text's first space: then it belongs to what came before.
                return self.decode([index]).startswith(" ")
        return False

    def save(self, directory: str | os.PathLike) -> None:
        """Write `tokenizer.model` (where there is one) and `tokenizer.json`, the latter last."""
        directory = pathlib.Path(directory)
        facts = {"kind": self.kind, "vocab_size": self.vocab_size, "specials": self.special_ids}
        facts |= {"sentinels": len(self.sentinel_ids), "hash": self.hash}
        if self.family:
            facts["family"] = self.family
        if self.start_id != self.pad_id:
            facts["start"] = self.start_id
        if self.add_bos_token is not None:
            facts["add_bos_token"] = self.add_bos_token
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if self.model:
                files.replace(directory / "tokenizer.model", self.model)
            if self.beside:
                files.replace(directory / BESIDE, json.dumps(dict(self.beside)) + "\n")
            files.replace(directory / "tokenizer.json", json.dumps(facts, indent=1) + "\n")
        except OSError as error:
            fault = f"cannot save the tokenizer in {directory}: {cause_of(error, directory)}"
            raise StorageError(fault) from None


class ByteTokenizer(Tokenizer):
    """Ids 5..260 are the 256 bytes of UTF-8; needs no training and loses nothing."""

    kind = "byte"
    model = b""
    offset = 5  # the id of byte 0
    pad_id, unk_id, bos_id, eos_id, mask_id = range(5)

    def __init__(self, sentinels: int = 100):
        size = self.vocab_size = self.offset + 256 + sentinels
        self.sentinel_ids = np.arange(size - 1, self.offset + 255, -1, dtype=np.int32)

    def _encode(self, text: str) -> list[int]:
        return (np.frombuffer(text.encode(), np.uint8).astype(np.int32) + self.offset).tolist()

    def _encode_with_offsets(self, text: str) -> tuple[list[int], offsets.Spans]:
        return self._encode(text), offsets.of_bytes(text)

    def _decode(self, ids: list[int]) -> str:
        text = bytes(i - self.offset if i >= self.offset else ord("?") for i in ids)
        return text.decode(errors="replace")

    def _piece(self, index: int) -> str | None:
        byte = index - self.offset
        return f"<0x{byte:02X}>" if 0 <= byte < 256 else None


class ByT5Tokenizer(ByteTokenizer):
    """ByT5's bytes: three specials, no mask, no BOS; sentinels in ascending order behind."""

    kind = "byt5"
    offset = 3
    pad_id, eos_id, unk_id = range(3)
    bos_id, mask_id = eos_id, -1

    def __init__(self, sentinels: int = 125):
        super().__init__(sentinels)
        self.sentinel_ids = np.ascontiguousarray(self.sentinel_ids[::-1])

    @functools.cached_property
    def template(self) -> Template:
        """`a </s>` and `a </s> b </s>`, all of type 0."""
        return Template.of((), (self.eos_id,), (self.eos_id,), second_type=0)


def _unicode(text: str) -> str:
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"text holds an unpaired surrogate at character {error.start}; it is not Unicode "
            "text: clean it first"
        ) from None
    return text


def find_sentinels(vocabulary: Mapping[str, int]) -> np.ndarray:
    """Return the ids of <extra_id_0>, <extra_id_1> … up to the first missing one, int32."""
    ids = {int(m[1]): i for token, i in vocabulary.items() if (m := _SENTINEL.fullmatch(token))}
    count = next(n for n in range(len(ids) + 1) if n not in ids)
    return np.array([ids[n] for n in range(count)], np.int32)


_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SENTINEL = re.compile(r"▁?<extra_id_(\d+)>")  # mT5's model spells its own as words
# Scripts written without spaces: each sign counts as a word, as in BERT's own tokenizer.
_IDEOGRAPH = re.compile(
    "[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f]"
)


def _inside_word(character: str) -> bool:
    if _IDEOGRAPH.match(character):
        return False
    return character.isalnum() or unicodedata.category(character).startswith("M")
