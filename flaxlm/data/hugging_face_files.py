"""Hugging Face's files other than tokenizer.json: what the library would have made of them.

Some of it their classes do in code, which is known here for a few classes; others are refused.
"""

import pathlib
import re
from collections.abc import Callable, Iterable, Mapping

from flaxlm.data import sentence_modules
from flaxlm.data.sentence_piece import SentencePieceTokenizer
from flaxlm.data.vocabulary import SPECIALS, Tokenizer
from flaxlm.errors import DataError, FlaxlmError, MissingInput, raise_scarce
from flaxlm.untrusted import file_bytes, panics, parse_json

LIMIT = 64 << 20  # bytes; a larger file is no tokenizer, that of Gemma 3 has half as many
MOST_SENTINELS = 10_000
TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json")  # the first one decides
# Patterns of what is kept of a directory besides ids, see `Tokenizer.beside`.
BESIDE = (*TOKENIZER, "chat_template.jinja", "additional_chat_templates/*.jinja")
BESIDE += sentence_modules.TEXTS
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
BERT_NAMES = {role: f"[{role.upper()}]" for role in ("unk", "sep", "pad", "cls", "mask")}
GPT2_NAMES = dict.fromkeys(("unk", "bos", "eos"), "<|endoftext|>")
ROBERTA_NAMES = {"bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>"}
ROBERTA_NAMES |= {role: SPECIALS[role] for role in ("unk", "pad", "mask")}
# Classes (or model types, lower case, without `Tokenizer`) whose files say everything.
WORDPIECE = ("bert", "distilbert", "electra", "mobilebert", "convbert", "squeezebert", "lxmert")
GPT2 = ("gpt2", "gptneo", "gptj", "codegen")
ROBERTA = ("roberta", "bart", "longformer", "led")
SENTENCE_PIECE = dict.fromkeys(("t5", "mt5", "longt5", "switchtransformers"), "t5")
SENTENCE_PIECE |= dict.fromkeys(("llama", "mistral", "mixtral", "gemma"), "llama")
SENTENCE_PIECE |= {"albert": "albert"}
GENERIC = ("PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend")


def token_names(config: Mapping) -> dict[str, str | None]:
    """Return the spelling of each role that the files name; None where they say there is none."""
    values = {role: config[f"{role}_token"] for role in ROLES if f"{role}_token" in config}
    return {r: v.get("content") if isinstance(v, dict) else v for r, v in values.items()}


def class_of(config: Mapping, model_config: Mapping) -> str:
    """Return whose tokenizer it is: the tokenizer's class or else the model's type; '' unknown."""
    name = config.get("tokenizer_class") or model_config.get("tokenizer_class") or ""
    if name in GENERIC:
        name = ""
    name = name.removesuffix("Fast").removesuffix("Tokenizer") or model_config.get("model_type", "")
    return re.sub("[-_]", "", name).lower()


def _check_class(path: pathlib.Path, name: str, known: Iterable[str], usable: bool = True) -> None:
    """Raise DataError for a file whose class is not among the `known`, or is not `usable`."""
    if usable and name in known:
        return
    raise DataError(
        f"{path}: what a tokenizer of class {name or '(unnamed)'!r} makes of this file is not "
        f"known; save a tokenizer.json with transformers, or name in tokenizer_config.json a "
        f"tokenizer_class that it is one of: {', '.join(known)}"
    )


def wordpiece(path: pathlib.Path, config: Mapping, model_config: Mapping) -> tuple[bytes, dict]:
    """Return tokenizer.json of BERT's WordPiece, options from the config, and its roles' names."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    _check_class(path, class_of(config, model_config) or "bert", WORDPIECE)
    read_bytes(path)
    vocabulary = of_library(path, models.WordPiece.read_file, str(path))
    vocabulary = {token.removeprefix("\ufeff"): i for token, i in vocabulary.items()}
    names = BERT_NAMES | token_names(config)
    for role in ("unk", "cls", "sep"):
        if names[role] not in vocabulary:
            raise DataError(
                f"{path} lacks {names[role]}: it is not a WordPiece vocabulary of BERT's kind"
            )
    library = Tokenizer(models.WordPiece(vocabulary, unk_token=names["unk"]))
    library.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece(prefix="##")
    _add(path, library, config, names)
    cls, sep = names["cls"], names["sep"]
    _frame_with(library, f"{cls}:0 $A:0 {sep}:0", f" $B:1 {sep}:1", (cls, sep))
    return library.to_str().encode(), BERT_NAMES


def byte_pairs(path: pathlib.Path, config: Mapping, model_config: Mapping) -> tuple[bytes, dict]:
    """Return tokenizer.json of GPT-2's or RoBERTa's byte-level BPE, and its roles' names."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    paths = [path, path.parent / "merges.txt"]
    for file in paths:
        read_bytes(file)
    vocabulary, merges = of_library(path, models.BPE.read_file, *map(str, paths))
    name = class_of(config, model_config)
    if not name:
        name = "gpt2" if "<|endoftext|>" in vocabulary else "roberta" * ("</s>" in vocabulary)
    _check_class(path, name, (*GPT2, *ROBERTA))
    roberta = name in ROBERTA
    names = (ROBERTA_NAMES if roberta else GPT2_NAMES) | token_names(config)
    model = models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="")
    library = Tokenizer(model)
    prefix = bool(config.get("add_prefix_space", False))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    library.decoder = decoders.ByteLevel()
    _add(path, library, config, names)
    ids = {role: library.token_to_id(token) for role, token in names.items() if token}
    if roberta:
        if ids.get("sep") is None or ids.get("cls") is None:
            raise DataError(f"{path} lacks {names['cls']} or {names['sep']}, RoBERTa's specials")
        ends = (names["sep"], ids["sep"]), (names["cls"], ids["cls"])
        library.post_processor = processors.RobertaProcessing(*ends, add_prefix_space=prefix)
    elif config.get("add_bos_token") and ids.get("bos") is not None:
        bos = names["bos"]
        _frame_with(library, f"{bos}:0 $A:0", f" {bos}:1 $B:1", (bos,))
    return library.to_str().encode(), names


def _frame_with(library, single: str, more: str, tokens) -> None:
    from tokenizers import processors

    library.post_processor = processors.TemplateProcessing(
        single=single,
        pair=single + more,
        special_tokens=[(token, library.token_to_id(token)) for token in dict.fromkeys(tokens)],
    )


def _add(path: pathlib.Path, library, config: Mapping, names: Mapping) -> None:
    """Mark the special tokens in a library, and append those that the directory's files add."""
    from tokenizers import AddedToken

    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    added = {int(i): t for i, t in config.get("added_tokens_decoder", {}).items()}
    legacy = read_json(path.parent / "added_tokens.json")
    added |= {int(i): {"content": token} for token, i in legacy.items() if int(i) not in added}
    tokens = []
    for role, name in names.items():
        value = config.get(f"{role}_token")
        value = value if isinstance(value, dict) else {}
        if name and library.token_to_id(name) is not None:
            tokens.append({"content": name, "normalized": False} | value | {"special": True})
    tokens += [added[i] for i in sorted(added)]
    for token in tokens:
        options = {flag: bool(token[flag]) for flag in flags if flag in token}
        library.add_tokens([AddedToken(token["content"], **options)])
    for index, token in added.items():
        if library.token_to_id(token["content"]) != index:
            raise DataError(
                f"{path}: the added token {token['content']!r} cannot have id {index}, as "
                f"{path.parent} says; save a tokenizer.json with transformers"
            )


def extra_ids(config: Mapping, usual: int) -> int:
    """Return how many sentinels a tokenizer's config names; DataError of a number that is none."""
    count = config.get("extra_ids", usual) or 0
    if type(count) is not int or not 0 <= count <= MOST_SENTINELS:
        raise DataError(f"extra_ids={count!r} is not in 0 … {MOST_SENTINELS:,}")
    return count


def sentence_piece(path: pathlib.Path, config: Mapping, model_config: Mapping) -> Tokenizer:
    """Return a SentencePiece model with the roles and the template of its family."""
    data, name = read_bytes(path), class_of(config, model_config)
    plain = SentencePieceTokenizer(data, "sentencepiece", 0, where=str(path))
    pieces = plain.piece_ids
    if not name:  # the names of the files and pieces tell the families apart
        if "[CLS]" in pieces and "[SEP]" in pieces:
            return plain
        bare = {"tokenizer.model": "<s>" in pieces and "llama", "spiece.model": "t5"}
        name = bare.get(path.name) or ""
        if name == "t5" and [pieces.get(t) for t in ("<pad>", "</s>", "<unk>")] != [0, 1, 2]:
            name = ""
    _check_class(path, name, SENTENCE_PIECE, usable=not config.get("keep_accents"))
    family = SENTENCE_PIECE[name]
    if family == "albert" and not config.get("do_lower_case", True):
        family = "albert_cased"
    sentinels = extra_ids(config, 100) if family == "t5" else 0
    tokenizer = SentencePieceTokenizer(data, "sentencepiece", sentinels, family=family)
    ids = pieces | {f"<extra_id_{n}>": int(i) for n, i in enumerate(tokenizer.sentinel_ids)}
    added = read_json(path.parent / "added_tokens.json")
    for index, token in config.get("added_tokens_decoder", {}).items():
        added[token["content"]] = int(index)
    if strange := [token for token, index in added.items() if ids.get(token) != index]:
        raise DataError(
            f"{path}: {path.parent} adds tokens to the model ({', '.join(strange[:5])}); save a "
            "tokenizer.json with transformers"
        )
    for role, token in token_names(config).items():
        if role in SPECIALS and token in pieces:
            setattr(tokenizer, f"{role}_id", pieces[token])
    return tokenizer


def of_library(where: object, function: Callable, *arguments):
    """Call the library, whose errors have no class of their own, and name the file in them."""
    try:
        with panics(str(where)):
            return function(*arguments)
    except FlaxlmError:
        raise
    except Exception as error:
        raise_scarce(error)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{where} is damaged or of an unknown kind: {reason}") from None


def texts_beside(directory: pathlib.Path) -> dict[str, str]:
    """Return {name: text} of files that are kept for exports, and for making vectors of texts."""
    paths = sorted(path for name in BESIDE for path in directory.glob(name) if path.is_file())
    try:
        return {p.relative_to(directory).as_posix(): read_bytes(p).decode() for p in paths}
    except UnicodeDecodeError as error:
        raise DataError(f"a file of {directory} is no UTF-8: {error}") from None


def read_json(path: pathlib.Path) -> dict:
    """Return a JSON object, {} where there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = parse_json(read_bytes(path), once=True)
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} is damaged: it is not a JSON object")
    return value


def read_bytes(path: pathlib.Path) -> bytes:
    """Return a file of reasonable size; DataError or MissingInput name it otherwise."""
    try:
        if path.stat().st_size > LIMIT:
            raise DataError(f"{path} is larger than {LIMIT / 1e6:.0f} MB: that is no tokenizer")
        return file_bytes(path)
    except OSError as error:
        raise_scarce(error)
        raise MissingInput(f"cannot read the tokenizer file {path}: {error.strerror}") from None
