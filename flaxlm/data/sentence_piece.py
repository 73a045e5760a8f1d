"""SentencePiece models as tokenizers, with exact round trips."""

import functools
import itertools
import re
from collections.abc import Iterator

import numpy as np

from flaxlm.data import offsets
from flaxlm.data.template import Frame, Template
from flaxlm.data.vetted import check_map
from flaxlm.data.vocabulary import SPACE, SPECIALS, Tokenizer, find_sentinels
from flaxlm.errors import DataError

# Names that models from elsewhere give to the same roles.
ALIASES = {"bos": ("<s>", "[CLS]"), "eos": ("</s>", "[SEP]"), "mask": ("<mask>", "[MASK]")}
# Names of SentencePiece files, and the families whose models can be read by themselves: the others
# renumber the pieces or add to them in code of their own. ALBERT's reads uncased (or cased) text.
MODEL_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model")
FAMILIES = ("t5", "llama", "albert", "albert_cased")
ENCODE_CHUNK = 1 << 16  # characters; bounds SentencePiece's lattice on book-sized documents
# A word-level unit: a line break or tab, a word with the space before it, or spaces to spare.
_UNITS = re.compile(r"[\n\t\r]| ?[^ \n\t\r]+| +(?= )| +")


def _map_of(model: bytes, where: str) -> bytes:
    """Return a model's map of characters."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    try:
        proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    except DecodeError:
        raise DataError(f"{where}: the tokenizer model is damaged") from None
    return proto.normalizer_spec.precompiled_charsmap


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model as a Tokenizer.

    `exact_breaks` says that the newline is a symbol of its own in the model, so that long text
    can be encoded in chunks of lines: the same ids, except where rounding decides a tie. A model
    of one of FAMILIES has that family's ids and no others; other models are given missing roles.
    """

    def __init__(
        self,
        model: bytes,
        kind: str,
        sentinels: int = 100,
        exact_breaks: bool = False,
        family: str = "",
        where: str = "tokenizer.model",
    ):
        import sentencepiece

        self.model, self.kind, self.family = model, kind, family
        try:
            self._processor = sp = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, TypeError):
            raise DataError(
                f"{where}: the tokenizer model is damaged or not a SentencePiece model"
            ) from None
        if kind == "sentencepiece":
            check_map(_map_of(model, where), where)
        self._size = size = sp.get_piece_size()
        self._exact_breaks = exact_breaks
        self.sentinel_ids = np.arange(size + sentinels - 1, size - 1, -1, dtype=np.int32)
        roles = {"pad": sp.pad_id(), "unk": sp.unk_id(), "bos": sp.bos_id(), "eos": sp.eos_id()}
        for role, names in ALIASES.items():
            known = (sp.piece_to_id(name) for name in names)
            if roles.get(role, -1) < 0:
                roles[role] = next((i for i in known if i != sp.unk_id()), -1)
        if family:
            if len(own := find_sentinels(self.piece_ids)):  # mT5's model holds them itself
                sentinels, self.sentinel_ids = 0, own
            roles["eos"] = roles["eos"] if roles["eos"] >= 0 else roles["unk"]
            for role in ("bos", "pad"):
                roles[role] = roles[role] if roles[role] >= 0 else roles["eos"]
            fresh = iter([size + sentinels])
        else:
            fresh = iter(range(size + sentinels, size + sentinels + len(roles)))
            roles |= {role: next(fresh) for role in SPECIALS if roles[role] < 0}
        for role in SPECIALS:
            setattr(self, f"{role}_id", roles[role])
        self.vocab_size = next(fresh)
        self._bytes = [sp.piece_to_id(f"<0x{b:02X}>") for b in range(256)]
        self._words: dict[str, int] | None = None
        if kind == "word":
            plain = (i for i in range(size) if not sp.is_control(i) and not sp.is_byte(i))
            self._words = {sp.id_to_piece(i): i for i in plain if i != sp.unk_id()}

    @functools.cached_property
    def piece_ids(self) -> dict[str, int]:
        """The id of each piece of the model, as it is spelt there."""
        return {self._processor.id_to_piece(i): i for i in range(self._size)}

    @functools.cached_property
    def template(self) -> Template:
        """The family's: T5 reads `a </s>` and `a </s> b </s>`, Llama `<s> a` and `<s> a <s> b`."""
        if self.family == "t5":
            return Template.of((), (self.eos_id,), (self.eos_id,), second_type=0)
        if self.family == "llama":
            bos = (self.bos_id,)
            pair = Frame((bos, bos, ()), ((0,), (1,), ()), (0, 1))
            return Template(Frame((bos, ()), ((0,), ()), (0,)), pair)
        return super().template

    def _encode(self, text: str) -> list[int]:
        if self._words is not None:
            return [i for i, _, _ in self._units(text)]
        if self.family.startswith("albert"):
            text, _ = offsets.plain(text, lower=self.family == "albert")
        return [*itertools.chain.from_iterable(map(self._processor.encode, self._chunks(text)))]

    def _encode_with_offsets(self, text: str) -> tuple[list[int], offsets.Spans]:
        if self._words is not None:
            units = list(self._units(text))
            return [i for i, _, _ in units], [(begin, end) for _, begin, end in units]
        places = None
        if self.family.startswith("albert"):
            text, places = offsets.plain(text, lower=self.family == "albert")
        ids, spans, start = [], [], 0
        for chunk in self._chunks(text):
            encoded = self._processor.encode(chunk, return_type="offset_mapping")
            ids += encoded["ids"]
            chunk_spans = offsets.fill(encoded["offsets"], encoded["pieces"], SPACE)
            spans += [(start + begin, start + end) for begin, end in chunk_spans]
            start += len(chunk)
        return ids, spans if places is None else offsets.back(spans, places)

    def _chunks(self, text: str) -> Iterator[str]:
        """Yield `text`, cut after newlines into chunks of about ENCODE_CHUNK characters."""
        start, size = 0, ENCODE_CHUNK if self._exact_breaks else len(text)
        while start < len(text):
            end = text.find("\n", start + size) + 1 or len(text)
            yield text[start:end]
            start = end

    def _units(self, text: str) -> Iterator[tuple[int, int, int]]:
        """Yield (id, begin, end) of each word, or of its bytes where it is not known."""
        # SentencePiece's own word encoder neither splits at newlines nor preserves spaces once it
        # falls back to bytes, so the vocabulary is looked up here.
        for match in _UNITS.finditer(text):
            unit, begin = match[0], match.start()
            piece = None if SPACE in unit else self._words.get(unit.replace(" ", SPACE))
            if piece is not None or self._bytes[0] == self.unk_id:
                yield self.unk_id if piece is None else piece, begin, match.end()
                continue
            for byte, (first, last) in zip(unit.encode(), offsets.of_bytes(unit), strict=True):
                yield self._bytes[byte], begin + first, begin + last

    def _decode(self, ids: list[int]) -> str:
        return self._processor.decode(ids)

    def _piece(self, index: int) -> str | None:
        return self._processor.id_to_piece(index) if index < self._size else None

    def unrecoverable(self, text: str) -> int:
        """Count U+2581 in `text`: SentencePiece writes spaces so, and gives back a space."""
        return text.count(SPACE)
