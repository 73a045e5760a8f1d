"""Our tokenizers as files that `transformers.AutoTokenizer` reads, giving the same ids.

What is written is compared with what wrote it before anything lies in the directory.
"""

import json
import pathlib
import warnings

from tokenizers import AddedToken, Regex, decoders, models, normalizers, processors
from tokenizers import Tokenizer as Library

from flaxlm import files
from flaxlm.data.hugging_face import HuggingFaceTokenizer
from flaxlm.data.hugging_face_files import TOKENIZER
from flaxlm.data.sentence_modules import read_modules
from flaxlm.data.sentence_piece import SentencePieceTokenizer
from flaxlm.data.template import Frame, Template
from flaxlm.data.vocabulary import SPACE, Tokenizer
from flaxlm.errors import ConfigError, DataError, StorageError, cause_of
from flaxlm.untrusted import parse_json

# Of another project's tokenizer_config.json: what tokenizer.json says, or was true of files alone.
LEFT = ("tokenizer_class", "added_tokens_decoder", "name_or_path", "tokenizer_file", "vocab_file")
LEFT += ("merges_file", "special_tokens_map_file", "backend", "is_local", "processor_class")
ROLES = {"t5": ("eos", "unk", "pad"), "llama": ("bos", "eos", "unk")}  # of these classes
FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")
NORMAL, UNKNOWN, USER_DEFINED = 1, 2, 4  # types of SentencePiece's pieces
UNIGRAM, BPE, CHAR = 1, 2, 4  # and of its models
# Below any segmentation: `tokenizers` looks for the names of specials and bytes in the text too.
NEVER = -1000.0
SAMPLE = (
    "The quick brown fox jumps over the lazy dog. It's 1,024 metres — isn't it?",
    "Größe, façade, naïve, Łódź, İstanbul; Ελληνικά, Русский язык, հայերեն, ქართული",
    "中文分词没有空格。日本語のテキスト、かな混じり。한국어 문장입니다.",
    "हिन्दी पाठ, বাংলা, தமிழ், ภาษาไทย, العربية من اليمين, עברית, አማርኛ, မြန်မာ",
    "emoji 🙂👩‍👩‍👧 and 𝔪𝔞𝔱𝔥 ∑∫√ ½ ﬁ Ⅳ ² …",
    "  two spaces  before,   three   between, and at the end  ",
    "def f(x):\n\tif x[0] >= 1e-3:\n        return {'a': x, **k}  # note\n\n\nclass A: pass\r\n",
    "\n\t \n",
    "<b>&amp;</b> \x00\x7f\xa0\u200b\u2028\ufeff e\u0301",
    "x",
    "",
)


def export_tokenizer(
    tokenizer: Tokenizer, directory: pathlib.Path, max_length=0, token_types=False, after_bos=False
) -> None:
    """Write tokenizer.json and tokenizer_config.json (and a foreign SentencePiece model).

    What another project's files said besides goes out again. Two differences remain: `transformers`
    finds special tokens spelt out in a text (`</s>`, and `<0x41>` where `<` has no piece), which
    our own tokenizers read as text; and where two segmentations by a unigram model score alike,
    rounding decides (single against double precision).

    Args:
      tokenizer: any but of kind `word`.
      directory: made if it is not there.
      max_length: the most tokens that the model reads, 0 for unknown: `model_max_length` is that
        or less.
      token_types: the model tells a second text by them, so `transformers` has to give them.
      after_bos: the model goes on from a text, as it was trained to: BOS stands before the text
        and nothing behind it, whatever other files said.

    Raises:
      ConfigError: a tokenizer of kind `word`, whose ids no Hugging Face model gives.
      DataError: the ids of the two differ on a sample of scripts, code and white space.
    """
    if tokenizer.kind == "word":
        raise ConfigError(
            "a tokenizer of kind 'word' cannot be exported: its units, words with the space before "
            "them or else bytes, are looked up by flaxlm, and no Hugging Face model does the same; "
            "exported are: unigram, bpe, char, byte and Hugging Face's own"
        )
    original, flags = _original(tokenizer)
    template = Template.of((tokenizer.bos_id,), (), (), 0) if after_bos else tokenizer.template
    if isinstance(tokenizer, HuggingFaceTokenizer):
        text, config = tokenizer.tokenizer_json, original | _special_tokens(tokenizer)
        if [f.specials for f in tokenizer.template] != [f.specials for f in template]:
            library = Library.from_buffer(text)
            _set_template(library, tokenizer, template)
            text = library.to_str().encode()
        if after_bos or (tokenizer.add_bos_token and not tokenizer.has_template):
            config["add_bos_token"] = True
    else:
        library = _converted(tokenizer, flags)
        _set_template(library, tokenizer, template)
        text, config = library.to_str().encode(), _config(tokenizer, original, flags)
    _verify(tokenizer, template, text)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if max_length:
        config["model_max_length"] = min(max_length, config.get("model_max_length") or max_length)
    if token_types:
        config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    modules = read_modules(tokenizer.beside)
    if modules.unsupported:
        warnings.warn(f"not exported with the model: {modules.unsupported[0]}", stacklevel=2)
    written = {
        name: contents.encode()
        for name, contents in tokenizer.beside.items()
        if name.endswith(".jinja") or not (name.startswith(TOKENIZER) or modules.unsupported)
    } | {
        "tokenizer.json": text,
        "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n",
    }
    if tokenizer.kind == "sentencepiece":
        name = "tokenizer.model" if tokenizer.family == "llama" else "spiece.model"
        written[name] = tokenizer.model
    try:
        for name, contents in written.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            files.replace(directory / name, contents)
    except OSError as error:
        raise StorageError(f"cannot write in {directory}: {cause_of(error, directory)}") from None


def _original(tokenizer: Tokenizer) -> tuple[dict, dict[str, dict[str, bool]]]:
    """Return (what files said of it that goes out again, {special token: its flags})."""
    config: dict = {}
    for name in reversed(TOKENIZER):
        config |= parse_json(tokenizer.beside.get(name, "{}"))
    tokens = [config.get("added_tokens_decoder", {}), config]
    flags = {
        token["content"]: {flag: token[flag] for flag in FLAGS if flag in token}
        for token in (value for values in tokens for value in values.values())
        if isinstance(token, dict) and "content" in token
    }
    return {name: value for name, value in config.items() if name not in LEFT}, flags


def _special_tokens(tokenizer: HuggingFaceTokenizer) -> dict:
    """Return the special tokens with their flags, which `transformers` would reset otherwise."""
    added = Library.from_buffer(tokenizer.tokenizer_json).get_added_tokens_decoder().values()
    flags = {token.content: {flag: getattr(token, flag) for flag in FLAGS} for token in added}
    return {name: _token(piece, flags) for name, piece in tokenizer.special_tokens.items()}


def _token(piece: str, flags: dict[str, dict[str, bool]]) -> str | dict:
    """Return a special token as tokenizer_config.json has it."""
    if piece not in flags:
        return piece
    values = {"special": True, "normalized": False} | flags[piece]
    return {"__type": "AddedToken", "content": piece} | values


def _config(tokenizer: Tokenizer, original: dict, flags: dict) -> dict:
    """Return the special tokens of one of our tokenizers by the names of `transformers`."""
    config: dict = {"clean_up_tokenization_spaces": False} | original
    roles = tokenizer.special_ids | {"cls": tokenizer.cls_id, "sep": tokenizer.sep_id}
    if not tokenizer.template.single.specials[0]:  # T5 reads no [CLS]
        del roles["cls"], roles["sep"]
    if tokenizer.family in ROLES:
        own = (*ROLES[tokenizer.family], *(n.removesuffix("_token") for n in original))
        roles = {role: index for role, index in roles.items() if role in own}
    if len(tokenizer.sentinel_ids):
        config["additional_special_tokens"] = tokenizer.pieces(tokenizer.sentinel_ids)
    pieces = zip(roles, tokenizer.pieces(roles.values()), strict=True)
    return config | {f"{role}_token": _token(piece, flags) for role, piece in pieces}


def _converted(tokenizer: Tokenizer, flags: dict[str, dict[str, bool]]):
    """Return a `tokenizers.Tokenizer` that is meant to give the ids of one of ours.

    `flags` are those of its special tokens, by their spelling.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        library = _of_sentence_piece(tokenizer)
    else:
        vocabulary, (unknown,) = _vocabulary(tokenizer), tokenizer.pieces([tokenizer.unk_id])
        library = Library(models.BPE(vocabulary, [], unk_token=unknown, byte_fallback=True))
        library.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    special = [*tokenizer.special_ids.values(), *tokenizer.sentinel_ids.tolist()]
    library.add_special_tokens(
        [
            AddedToken(piece, **({"normalized": False} | flags.get(piece, {}) | {"special": True}))
            for piece in tokenizer.pieces(sorted(set(special)))
        ]
    )
    return library


def _vocabulary(tokenizer: Tokenizer) -> dict[str, int]:
    pieces = tokenizer.pieces(range(tokenizer.vocab_size))
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    if len(vocabulary) < len(pieces):
        raise DataError("the tokenizer cannot be exported: two of its ids are spelt alike")
    return vocabulary


def _of_sentence_piece(tokenizer: SentencePieceTokenizer):
    """Return a SentencePiece model in the terms of `tokenizers`."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)
    options, pieces = model.normalizer_spec, model.pieces
    vocabulary = _vocabulary(tokenizer)
    kind, fallback = model.trainer_spec.model_type, model.trainer_spec.byte_fallback
    if kind == UNIGRAM:
        scores = [(piece, NEVER) for piece in vocabulary]
        most = max(piece.score for piece in pieces if piece.type == NORMAL)
        for index, piece in enumerate(pieces):
            if piece.type == NORMAL:
                scores[index] = piece.piece, piece.score
            elif piece.type == USER_DEFINED:  # as SentencePiece scores them: before all others
                scores[index] = piece.piece, len(piece.piece.encode()) * most - 0.1
        segments = models.Unigram(scores, unk_id=tokenizer.unk_id, byte_fallback=fallback)
    elif kind in (BPE, CHAR):
        merges = _merges(pieces, vocabulary) if kind == BPE else []
        (unknown,) = tokenizer.pieces([tokenizer.unk_id])
        segments = models.BPE(
            vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=fallback
        )
    else:
        raise ConfigError("a SentencePiece model of words cannot be exported to Hugging Face")
    library = Library(segments)

    steps: list = []
    if tokenizer.family.startswith("albert"):
        steps += [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
        steps += [normalizers.Lowercase()] * (tokenizer.family == "albert")
    if options.precompiled_charsmap:
        steps.append(normalizers.Precompiled(options.precompiled_charsmap))
    if options.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(r"\A +|(?<! ) +\z"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if options.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    library.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])

    back: list = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if options.add_dummy_prefix:
        back.append(decoders.Strip(" ", 1, 0))
    library.decoder = decoders.Sequence(back)
    added = [p.piece for p in pieces if p.type == USER_DEFINED]
    if kind == UNIGRAM and options.add_dummy_prefix:
        added = []  # each part of a text that they divide would get a prefix of its own
    library.add_tokens([AddedToken(piece, normalized=False) for piece in added])
    return library


def _merges(pieces, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Return what `tokenizers` merges: the best piece first, every way to make it of two."""
    normal = {piece.piece: piece.score for piece in pieces if piece.type == NORMAL}
    merges = []
    for piece, score in normal.items():
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        pairs = [(a, b) for a, b in halves if a in normal and b in normal]
        pairs.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        merges += [(-score, pair) for pair in pairs]
    return [pair for _, pair in sorted(merges, key=lambda merge: merge[0])]


def _set_template(library, tokenizer: Tokenizer, template: Template) -> None:
    def spelt(frame: Frame) -> list[str]:
        parts: list[str] = []
        for number, ids in enumerate(frame.specials):
            if number:
                parts.append(f"${'AB'[number - 1]}:{frame.text_types[number - 1]}")
            names = zip(tokenizer.pieces(ids), frame.special_types[number], strict=True)
            parts += [f"{piece}:{kind}" for piece, kind in names]
        return parts

    used = sorted({i for frame in template for ids in frame.specials for i in ids})
    around = processors.TemplateProcessing(
        single=spelt(template.single),
        pair=spelt(template.pair),
        special_tokens=list(zip(tokenizer.pieces(used), used, strict=True)),
    )
    old = library.post_processor
    offsets = isinstance(old, processors.ByteLevel)  # which it decides besides
    library.post_processor = processors.Sequence([old, around]) if offsets else around


def _verify(tokenizer: Tokenizer, template: Template, text: bytes) -> None:
    """Raise DataError where what `text` gives is not what the tokenizer gives."""
    library = Library.from_buffer(text)
    library.no_truncation()
    library.no_padding()
    ours = tokenizer.encode_batch(SAMPLE)
    theirs = [library.encode(line, add_special_tokens=False).ids for line in SAMPLE]
    compared = list(zip(SAMPLE, ours, theirs, strict=True))
    for what, frame, count in (
        ("a text", template.single, 1),
        ("a pair of texts", template.pair, 2),
    ):
        framed, _ = frame.around(*ours[:count])
        compared.append((what, framed.tolist(), library.encode(*SAMPLE[:count]).ids))
    for line, own, other in compared:
        if own != other and not _tie(tokenizer, own, other):
            raise DataError(
                f"the tokenizer (kind {tokenizer.kind}) cannot be exported: of {line!r} it makes "
                f"{own[:12]}, and what would be written makes {other[:12]}"
            )


def _tie(tokenizer: Tokenizer, own: list[int], other: list[int]) -> bool:
    """Return whether two segmentations score alike (`> >>`, `>> >`); see `export_tokenizer`."""
    unigram = tokenizer.kind in ("unigram", "sentencepiece") and sorted(own) == sorted(other)
    return unigram and tokenizer.decode(own) == tokenizer.decode(other)
