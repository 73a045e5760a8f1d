"""Training tokenizers, and loading them, our own ones and other projects'.

Layout of a vocabulary made here: five specials (pad 0, unk 1, bos 2, eos 3, mask 4), then the
pieces, then the sentinels of span corruption, the first sentinel last (T5's order). A loaded
SentencePiece model keeps its own ids; sentinels follow its pieces, and the specials that it
lacks follow the sentinels, so that T5's published model keeps its 32,100 ids.
"""

import dataclasses
import heapq
import io
import os
import pathlib
import random
import re
from collections.abc import Iterable, Iterator

from flaxlm.data import hugging_face
from flaxlm.data.hugging_face_files import extra_ids, read_bytes, read_json
from flaxlm.data.sentence_piece import MODEL_FILES, SentencePieceTokenizer
from flaxlm.data.vocabulary import BESIDE, SPACE, SPECIALS, ByT5Tokenizer, ByteTokenizer, Tokenizer
from flaxlm.errors import ConfigError, DataError, check_range, choose
from flaxlm.untrusted import parse_json

KINDS = ("unigram", "bpe", "word", "char", "byte")
READY = "huggingface"  # a kind that is read from `path`, or with the model of `init`; never trained
NORMALIZATIONS = ("identity", "nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf")
BREAKS = "\n\t\r"
# The EM sums of unigram training depend on the number of threads, so it must not be the machine's.
TRAIN_THREADS = 4
TRAIN_LINE = 4096  # characters; longer lines are cut into several training sentences


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes ids.

    With `path` only `sentinels` is used besides. Round trips are exact with `normalization`
    'identity' (and, for `char`, on the characters seen or with `byte_fallback`).
    """

    kind: str = "unigram"  # unigram, bpe, word, char, byte; huggingface: of a Hugging Face model
    vocab_size: int = 8192  # with specials and sentinels; of no use for char and byte
    path: str = ""  # model to load, a file or a directory; empty: train one
    byte_fallback: bool = True  # spell what has no id in bytes
    sentinels: int = 100  # ids for span corruption
    normalization: str = "identity"  # or nmt_nfkc, nfkc, nmt_nfkc_cf, nfkc_cf
    character_coverage: float = 0.9995  # share of the characters that get ids, but for char: all
    train_chars: int = 10_000_000  # training text is sampled down to this
    seed: int = 0  # of the sample of train_chars

    def __post_init__(self):
        choose("tokenizer.kind", self.kind, (*KINDS, READY))
        choose("tokenizer.normalization", self.normalization, NORMALIZATIONS)
        check_range("tokenizer", self, "sentinels")
        check_range("tokenizer", self, "train_chars", low=1)
        check_range("tokenizer", self, "character_coverage", low=0.98, high=1)
        if self.kind not in ("char", "byte", READY) and self.vocab_size <= self.sentinels + 5:
            raise ConfigError(
                f"tokenizer.vocab_size={self.vocab_size} leaves no room for pieces beside "
                f"5 specials and tokenizer.sentinels={self.sentinels}"
            )


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Train on `texts` in one pass; the same texts and config give the same hash anywhere.

    `kind='byte'` reads nothing.
    """
    if config.kind == "byte":
        return ByteTokenizer(config.sentinels)
    if config.kind == READY:
        raise ConfigError(f"tokenizer.kind={READY!r} is not trained; name one with tokenizer.path")
    characters: set[str] = set()

    def watched() -> Iterator[str]:
        for text in texts:
            if config.kind == "char":
                characters.update(text)
            yield text

    lines = _sample_lines(watched(), config.train_chars, config.seed)
    if not lines:
        raise DataError("there is no text to train the tokenizer on: the corpus is empty")
    options = {"character_coverage": config.character_coverage}
    breaks = list(BREAKS)
    if config.kind == "char":  # every character gets an id, those outside the sample as well
        options = {"required_chars": "".join(sorted(characters - set(BREAKS + " " + SPACE)))}
        options |= {"use_all_vocab": True, "character_coverage": 1.0}
        breaks = [c for c in BREAKS if c in characters]
    model = _train_sentencepiece(config, lines, breaks, options)
    return SentencePieceTokenizer(model, config.kind, config.sentinels, exact_breaks=True)


def _train_sentencepiece(config, lines, breaks, options) -> bytes:
    import sentencepiece

    out = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=out,
            model_type=config.kind,
            vocab_size=config.vocab_size - config.sentinels,
            byte_fallback=config.byte_fallback,
            normalization_rule_name=config.normalization,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            control_symbols=[SPECIALS["mask"]],
            user_defined_symbols=breaks,
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            num_threads=TRAIN_THREADS,
            max_sentence_length=8 * TRAIN_LINE,
            minloglevel=2,
            **options,
        )
    except RuntimeError as error:
        raise _explain(str(error), config) from None
    return out.getvalue()


def _explain(message: str, config: TokenizerConfig) -> Exception:
    if high := re.search(r"set it to a value <= (\d+)", message):
        most = int(high[1]) + config.sentinels
        return ConfigError(
            f"tokenizer.vocab_size={config.vocab_size} is more than this text supports; "
            f"use at most {most}, or more text"
        )
    if low := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        least = int(low[1]) + config.sentinels + 1
        return ConfigError(
            f"tokenizer.vocab_size={config.vocab_size} is too small for the text's characters; "
            f"use at least {least}, or lower tokenizer.character_coverage"
        )
    return DataError(f"SentencePiece cannot train on this text: {message.strip()}")


def load_tokenizer(path: str | os.PathLike, sentinels: int = 100) -> Tokenizer:
    """Load what `save` wrote, or a SentencePiece file or Hugging Face directory.

    `sentinels` counts only for a SentencePiece model by itself; the others know their own.
    """
    path = pathlib.Path(path)
    if _is_saved(path / "tokenizer.json"):
        return _load_saved(path)
    models = [path / name for name in MODEL_FILES if (path / name).is_file()]
    if path.is_dir() and (hugging_face.has_vocabulary(path) or not models):
        return hugging_face.load_hugging_face(path)  # which says what is missing
    path = next(iter(models), path)
    return SentencePieceTokenizer(read_bytes(path), "sentencepiece", sentinels, where=str(path))


def _is_saved(name: pathlib.Path) -> bool:
    """Say whether a tokenizer.json is ours, or damaged; Hugging Face's holds a `model`."""
    if not name.is_file():
        return False
    try:
        return "model" not in parse_json(read_bytes(name))
    except (ValueError, TypeError):
        return True


def _load_saved(directory: pathlib.Path) -> Tokenizer:
    name = directory / "tokenizer.json"
    try:
        facts = parse_json(read_bytes(name))
        kind, sentinels, digest = facts["kind"], facts["sentinels"], facts["hash"]
        family, start = facts.get("family", ""), facts.get("start")
        sentinels = extra_ids({"extra_ids": sentinels}, 0)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{name} is damaged; train the tokenizer again") from None
    path = directory / "tokenizer.model"
    if kind in ("byte", "byt5"):
        tokenizer: Tokenizer = (ByteTokenizer if kind == "byte" else ByT5Tokenizer)(sentinels)
    elif kind == "huggingface":
        tokenizer = hugging_face.HuggingFaceTokenizer(read_bytes(path), str(path))
    else:
        tokenizer = SentencePieceTokenizer(
            read_bytes(path), kind, sentinels, kind in KINDS, family, str(path)
        )
        if family:  # its roles are those that the files beside the model named
            for role in SPECIALS:
                setattr(tokenizer, f"{role}_id", facts["specials"].get(role, -1))
    if tokenizer.hash != digest:
        raise DataError(
            f"{path} does not match its recorded hash: it was changed or damaged; restore it or "
            "train the tokenizer again"
        )
    if start is not None:
        tokenizer.start_id = start
    tokenizer.add_bos_token = facts.get("add_bos_token")
    tokenizer.beside = read_json(directory / BESIDE)
    return tokenizer


def _sample_lines(texts: Iterable[str], most: int, seed: int) -> list[str]:
    """Return a uniform sample of lines of about `most` characters, in their order.

    Each line draws a priority; those of lowest priority are kept, in one pass and bounded memory.
    """
    draw = random.Random(seed).random
    kept: list[tuple[float, int, str]] = []  # a heap by descending priority
    total = order = 0
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), TRAIN_LINE):
                priority, part = draw(), line[start : start + TRAIN_LINE]
                heapq.heappush(kept, (-priority, order, part))
                order, total = order + 1, total + len(part)
                while total > most and len(kept) > 1:
                    total -= len(heapq.heappop(kept)[2])
    return [line for _, _, line in sorted(kept, key=lambda entry: entry[1])]
