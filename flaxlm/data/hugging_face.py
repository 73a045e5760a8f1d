"""Hugging Face tokenizers: `tokenizer.json` through the `tokenizers` library.

A directory's older files (`vocab.txt`, `vocab.json` with `merges.txt`) are converted to what the
library would have saved, so that a checkpoint carries one self-contained file. No code from a
directory is ever executed.
"""

import functools
import json
import os
import pathlib
from collections.abc import Mapping

from flaxlm.data import hugging_face_files as hub
from flaxlm.data import offsets, vetted
from flaxlm.data.sentence_piece import MODEL_FILES
from flaxlm.data.template import Frame, Template
from flaxlm.data.vocabulary import SPACE, SPECIALS, ByT5Tokenizer, Tokenizer, find_sentinels
from flaxlm.errors import ConfigError, DataError, MissingInput, Unsafe
from flaxlm.untrusted import panics, parse_json

# Spellings of the roles where no file names them.
KNOWN = {
    "bos": ("<s>", "<bos>", "<|begin_of_text|>"),
    "eos": ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
    "unk": ("<unk>", "[UNK]"),
    "sep": ("[SEP]", "<sep>"),
    "pad": ("<pad>", "[PAD]", "<|pad|>"),
    "cls": ("[CLS]", "<cls>"),
    "mask": ("<mask>", "[MASK]"),
}


FAILED = "the tokenizer's library stopped within a text"


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizers.Tokenizer` as a Tokenizer.

    `model` is a line of JSON, the ids of the `roles` and the spelling of the special `tokens`,
    and behind it the text of tokenizer.json. Truncation and padding stored there are off.

    Attributes:
      tokenizer_json: the text of tokenizer.json.
      special_tokens: {`bos_token`, …: its spelling}.
      has_template: whether tokenizer.json itself puts special tokens around a text.
    """

    kind = "huggingface"

    def __init__(self, model: bytes, where: str = "tokenizer.model"):
        self.model = model
        head, _, self.tokenizer_json = model.partition(b"\n")
        try:
            facts = parse_json(head)
            for role in (*SPECIALS, "start", "cls", "sep"):
                setattr(self, f"{role}_id", int(facts["roles"][role]))
            self.special_tokens: dict[str, str] = dict(facts["tokens"])
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{where} is damaged: its first line names no roles") from None
        self._library = library = _library(self.tokenizer_json, where)
        self.has_template = library.post_processor is not None
        vocabulary = library.get_vocab(with_added_tokens=True)
        self.vocab_size = 1 + max(vocabulary.values())
        self.sentinel_ids = find_sentinels(vocabulary)
        self._prefix = getattr(library.model, "continuing_subword_prefix", None) or ""
        self._words = type(library.model).__name__ == "WordPiece"
        # This model alone lets each byte of a run of unknown characters span the whole run.
        self._fused = type(library.model).__name__ == "Unigram" and "<0x00>" in vocabulary
        stages = str(library.pre_tokenizer) + str(library.decoder)
        self._byte_level = _byte_values() if "ByteLevel" in stages else None

    @functools.cached_property
    def template(self) -> Template:
        """What the library puts around one text and around two."""
        return Template(self._frame(1), self._frame(2))

    def _frame(self, texts: int) -> Frame:
        for probe in ("a", "A", "0", "的"):
            with panics(FAILED):
                encoding = self._library.encode(*[probe] * texts)
            owners = encoding.sequence_ids
            # Every text has tokens, in the texts' order.
            if [o for o in dict.fromkeys(owners) if o is not None] == list(range(texts)):
                break
        else:
            raise DataError("the tokenizer's post_processor does not keep the texts in order")
        specials: list[list[int]] = [[] for _ in range(texts + 1)]
        types: list[list[int]] = [[] for _ in range(texts + 1)]
        text_types, place = [0] * texts, 0
        for index, owner, kind in zip(encoding.ids, owners, encoding.type_ids, strict=True):
            if owner is None:
                specials[place].append(index)
                types[place].append(kind)
            else:
                text_types[owner], place = kind, owner + 1
        return Frame(tuple(map(tuple, specials)), tuple(map(tuple, types)), tuple(text_types))

    @functools.cached_property
    def _begins_with_bos(self) -> bool:
        return self._frame(1).specials[0][:1] == (self.bos_id,)  # pairs may have no template

    @functools.cached_property
    def _silent(self) -> frozenset[int]:
        added = self._library.get_added_tokens_decoder().items()
        return super()._silent | {i for i, token in added if token.special and i != self.unk_id}

    def _encode(self, text: str) -> list[int]:
        with panics(FAILED):
            return self._library.encode(text, add_special_tokens=False).ids

    def _encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        with panics(FAILED):
            encoding = self._library.encode(text, add_special_tokens=False)
        if self._fused:
            return encoding.ids, offsets.part(text, encoding.offsets, encoding.tokens)
        return encoding.ids, encoding.offsets

    def _encode_batch(self, texts: list[str]) -> list[list[int]]:
        with panics(FAILED):
            encodings = self._library.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _decode(self, ids: list[int]) -> str:
        with panics(FAILED):
            return self._library.decode(ids, skip_special_tokens=False)

    def _piece(self, index: int) -> str | None:
        return self._library.id_to_token(index)

    def _spell(self, piece: str) -> str:
        if self._words:  # a piece that continues no word begins one
            inside = piece.startswith(self._prefix)
            return piece.removeprefix(self._prefix) if inside else SPACE + piece
        if self._byte_level is not None and all(c in self._byte_level for c in piece):
            text = bytes(self._byte_level[c] for c in piece).decode(errors="replace")
            # A byte of a longer character says nothing about words: it counts as a letter.
            return text.replace("\ufffd", "x").replace(" ", SPACE)
        return super()._spell(piece)


def has_vocabulary(directory: pathlib.Path) -> bool:
    """Return whether a directory holds Hugging Face's own files, SentencePiece models apart."""
    sets = ("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt")
    if any(all((directory / name).is_file() for name in names) for names in sets):
        return True
    return hub.class_of(hub.read_json(directory / "tokenizer_config.json"), {}) == "byt5"


def load_hugging_face(directory: str | os.PathLike, model_config: dict | None = None) -> Tokenizer:
    """Load the tokenizer of a Hugging Face directory.

    Args:
      directory: with, in this order, tokenizer.json; vocab.txt; vocab.json with merges.txt; a
        SentencePiece model; a tokenizer_config.json of ByT5, which needs no more.
      model_config: the model's config.json, which names the family and the decoder's first
        token; None reads the directory's, if there is one.

    Raises:
      MissingInput: there is none of these files.
      DataError: a file is damaged, or is of a class whose ids are made by code of its own.
      Unsafe: tokenizer_config.json names code to run.
    """
    directory = pathlib.Path(directory)
    path = directory / "tokenizer_config.json"
    try:
        config = hub.read_json(directory / "special_tokens_map.json") | hub.read_json(path)
        if "auto_map" in config:
            raise Unsafe(
                f"{path} names code of its own (auto_map), and flaxlm runs no code of a "
                "checkpoint; save the tokenizer with a class of transformers"
            )
        if model_config is None:
            model_config = hub.read_json(directory / "config.json")
        tokenizer = _load(directory, config, model_config)
        start = model_config.get("decoder_start_token_id")
        if isinstance(start, int) and 0 <= start < tokenizer.vocab_size:
            tokenizer.start_id = start
        tokenizer.add_bos_token = _add_bos_token(tokenizer, config, model_config)
        tokenizer.beside = hub.texts_beside(directory)
        return tokenizer
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}, or a file beside it, does not hold what Hugging Face's does: {error}"
        ) from None


def _add_bos_token(tokenizer: Tokenizer, config: Mapping, model_config: Mapping) -> bool | None:
    """Return whether BOS is added, where that is said by more than the tokenizer's template."""
    if isinstance(stated := config.get("add_bos_token"), bool):
        return stated and hub.token_names(config).get("bos", "") is not None
    family = hub.SENTENCE_PIECE.get(hub.class_of(config, model_config))
    bare = isinstance(tokenizer, HuggingFaceTokenizer) and not tokenizer.has_template
    generic = config.get("tokenizer_class") in hub.GENERIC
    # Llama's classes add it by themselves.
    return True if family == "llama" and bare and not generic else None


def _load(directory: pathlib.Path, config: Mapping, model_config: Mapping) -> Tokenizer:
    if (path := directory / "tokenizer.json").is_file():
        return _wrap(path, hub.read_bytes(path), {}, config, model_config)
    if (path := directory / "vocab.txt").is_file():
        return _wrap(path, *hub.wordpiece(path, config, model_config), config, model_config)
    if (path := directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        return _wrap(path, *hub.byte_pairs(path, config, model_config), config, model_config)
    for name in MODEL_FILES:
        if (directory / name).is_file():
            return hub.sentence_piece(directory / name, config, model_config)
    if hub.class_of(config, model_config) == "byt5":
        return ByT5Tokenizer(hub.extra_ids(config, 125) or 125)
    raise MissingInput(
        f"{directory} holds no tokenizer; looked for tokenizer.json, vocab.txt, vocab.json and "
        f"merges.txt, {', '.join(MODEL_FILES)}"
    )


def _wrap(path, text, names, config, model_config) -> HuggingFaceTokenizer:
    """Return the tokenizer of tokenizer.json's text, its roles as `names` or KNOWN spell them."""
    vocabulary = _library(text, str(path)).get_vocab(with_added_tokens=True)
    spellings = {role: (name,) for role, name in names.items()} or KNOWN
    spellings = spellings | {role: (name,) for role, name in hub.token_names(config).items()}
    spelt = {
        role: name
        for role, known in spellings.items()
        if (name := next((n for n in known if n in vocabulary), None)) is not None
    }
    roles = _roles({role: vocabulary[name] for role, name in spelt.items()}, model_config)
    size = 1 + max(vocabulary.values())
    if not 0 <= roles["eos"] < size or not all(-1 <= i < size for i in roles.values()):
        raise DataError(
            f"{path}: no token of the vocabulary ends a text; name eos_token or sep_token in "
            f"{path.parent / 'tokenizer_config.json'}"
        )
    facts = {"roles": roles, "tokens": {f"{role}_token": spelt[role] for role in sorted(spelt)}}
    head = json.dumps(facts, sort_keys=True).encode()
    return HuggingFaceTokenizer(head + b"\n" + text, str(path))


def _roles(ids: Mapping[str, int], model_config: Mapping) -> dict[str, int]:
    """Return the id of every role, −1 where there is no mask."""

    def configured(key: str) -> int:
        value = model_config.get(key)
        value = value[0] if isinstance(value, list) and value else value
        return value if isinstance(value, int) and value >= 0 else -1

    def first(*candidates: int) -> int:
        return next((i for i in candidates if i >= 0), -1)

    ids = {role: ids.get(role, -1) for role in KNOWN}
    for role in ("bos", "eos", "pad"):
        ids[role] = first(ids[role], configured(f"{role}_token_id"))
    ids["eos"] = first(ids["eos"], ids["sep"])
    ids["bos"] = first(ids["bos"], ids["cls"], ids["eos"])
    ids["cls"], ids["sep"] = first(ids["cls"], ids["bos"]), first(ids["sep"], ids["eos"])
    ids["pad"], ids["unk"] = first(ids["pad"], ids["eos"]), first(ids["unk"], ids["eos"])
    return ids | {"start": first(configured("decoder_start_token_id"), ids["pad"])}


@functools.cache
def _byte_values() -> dict[str, int]:
    """Return {character: byte} of byte-level BPE: printable bytes are themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


def _library(text: bytes, where: str):
    try:
        import tokenizers
    except ImportError:
        raise ConfigError(f"{where} needs the tokenizers library: pip install tokenizers") from None
    vetted.vet(text, where)
    library = hub.of_library(where, tokenizers.Tokenizer.from_buffer, text)
    library.no_truncation()
    library.no_padding()
    # BPE dropout draws other pieces at each call: what a text becomes is a function of the text.
    if getattr(library.model, "dropout", None):
        library.model.dropout = None
    return library
