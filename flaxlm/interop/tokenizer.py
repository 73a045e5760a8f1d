"""Our tokenizers as files that `transformers.AutoTokenizer` reads, giving the same ids.

What is written is compared with what wrote it before anything lies in the directory.
"""

import json
import os
import pathlib
import warnings

from flaxlm import files
from flaxlm.data.hugging_face import HuggingFaceTokenizer
from flaxlm.data.hugging_face_files import TOKENIZER
from flaxlm.data.sentence_modules import read_modules
from flaxlm.data.sentence_piece import SentencePieceTokenizer
from flaxlm.data.template import Frame
from flaxlm.data.vocabulary import SPACE, Tokenizer
from flaxlm.errors import ConfigError, DataError, StorageError

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
    tokenizer: Tokenizer,
    directory: str | os.PathLike,
    max_length: int = 0,
    token_types: bool = False,
) -> None:
    """Write tokenizer.json and tokenizer_config.json (and a foreign SentencePiece model).

    What another project's files said besides goes out again: lengths, sides, templates of chats,
    flags of special tokens, and the modules of a sentence encoder.

    Two differences remain. `transformers` finds special tokens spelt out in a text (`</s>`, and
    `<0x41>` where `<` has no piece), which our own tokenizers read as text. And where two
    segmentations by a unigram model score alike, rounding decides (single against double
    precision).

    Args:
      tokenizer: any but of kind `word`.
      directory: made if it is not there.
      max_length: the most tokens that the model reads, 0 for unknown: `model_max_length` is that
        or less.
      token_types: the model tells a second text by them, so `transformers` has to give them.

    Raises:
      ConfigError: a tokenizer of kind `word`, whose ids no Hugging Face model gives.
      DataError: the ids of the two differ on a sample of scripts, code and white space.
    """
    directory = pathlib.Path(directory)
    if tokenizer.kind == "word":
        raise ConfigError(
            "a tokenizer of kind 'word' cannot be exported: its units, words with the space before "
            "them or else bytes, are looked up by flaxlm, and no Hugging Face model does the same; "
            "exported are: unigram, bpe, char, byte and Hugging Face's own"
        )
    original, flags = _original(tokenizer)
    if isinstance(tokenizer, HuggingFaceTokenizer):
        text, config = tokenizer.tokenizer_json, original | _special_tokens(tokenizer)
        if tokenizer.add_bos_token and not tokenizer.has_template:
            config["add_bos_token"] = True
    else:
        library = _converted(tokenizer, flags)
        text, config = library.to_str().encode(), _config(tokenizer, original, flags)
    _verify(tokenizer, text)
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
        written["tokenizer.model" if tokenizer.family == "llama" else "spiece.model"] = (
            tokenizer.model
        )
    try:
        for name, contents in written.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            files.replace(directory / name, contents)
    except OSError as error:
        raise StorageError(f"cannot write in {directory}: {error.strerror}") from None


def _original(tokenizer: Tokenizer) -> tuple[dict, dict[str, dict[str, bool]]]:
    """Return (what files said of it that goes out again, {special token: its flags})."""
    config: dict = {}
    for name in reversed(TOKENIZER):
        config |= json.loads(tokenizer.beside.get(name, "{}"))
    tokens = [config.get("added_tokens_decoder", {}), config]
    flags = {
        token["content"]: {flag: token[flag] for flag in FLAGS if flag in token}
        for token in (value for values in tokens for value in values.values())
        if isinstance(token, dict) and "content" in token
    }
    return {name: value for name, value in config.items() if name not in LEFT}, flags


def _special_tokens(tokenizer: HuggingFaceTokenizer) -> dict:
    """Return the special tokens with their flags, which `transformers` would reset otherwise."""
    import tokenizers

    library = tokenizers.Tokenizer.from_buffer(tokenizer.tokenizer_json)
    added = {token.content: token for token in library.get_added_tokens_decoder().values()}
    config: dict = {}
    for name, content in tokenizer.special_tokens.items():
        config[name] = content
        if content in added:
            values = {flag: getattr(added[content], flag) for flag in FLAGS}
            config[name] = {"__type": "AddedToken", "content": content} | values
    return config


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
    for role, index in roles.items():
        piece = config[f"{role}_token"] = tokenizer.pieces([index])[0]
        if piece in flags:
            values = {"special": True, "normalized": False} | flags[piece]
            config[f"{role}_token"] = {"__type": "AddedToken", "content": piece} | values
    return config


def _converted(tokenizer: Tokenizer, flags: dict[str, dict[str, bool]]):
    """Return a `tokenizers.Tokenizer` that is meant to give the ids of one of ours.

    Its special tokens have the flags that are given by their spelling.
    """
    from tokenizers import AddedToken, decoders, models

    if isinstance(tokenizer, SentencePieceTokenizer):
        library = _of_sentence_piece(tokenizer)
    else:
        import tokenizers

        vocabulary = _vocabulary(tokenizer)
        library = tokenizers.Tokenizer(
            models.BPE(vocabulary, [], unk_token=_unknown(tokenizer), byte_fallback=True)
        )
        library.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    special = [*tokenizer.special_ids.values(), *tokenizer.sentinel_ids.tolist()]
    library.add_special_tokens(
        [
            AddedToken(piece, **({"normalized": False} | flags.get(piece, {}) | {"special": True}))
            for piece in tokenizer.pieces(sorted(set(special)))
        ]
    )
    _set_template(library, tokenizer)
    return library


def _vocabulary(tokenizer: Tokenizer) -> dict[str, int]:
    pieces = tokenizer.pieces(range(tokenizer.vocab_size))
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    if len(vocabulary) < len(pieces):
        raise DataError("the tokenizer cannot be exported: two of its ids are spelt alike")
    return vocabulary


def _unknown(tokenizer: Tokenizer) -> str:
    return tokenizer.pieces([tokenizer.unk_id])[0]


def _of_sentence_piece(tokenizer: SentencePieceTokenizer):
    """Return a SentencePiece model in the terms of `tokenizers`."""
    import tokenizers
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, Regex, decoders, models, normalizers

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
        made = models.Unigram(scores, unk_id=tokenizer.unk_id, byte_fallback=fallback)
    elif kind in (BPE, CHAR):
        merges = _merges(pieces, vocabulary) if kind == BPE else []
        unknown = _unknown(tokenizer)
        made = models.BPE(
            vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=fallback
        )
    else:
        raise ConfigError("a SentencePiece model of words cannot be exported to Hugging Face")
    library = tokenizers.Tokenizer(made)

    steps: list = []
    if tokenizer.family.startswith("albert"):
        steps += [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
        steps += [normalizers.Lowercase()] * (tokenizer.family == "albert")
    if options.precompiled_charsmap:
        steps.append(normalizers.Precompiled(options.precompiled_charsmap))
    if options.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(r"\A +| +\z"), ""))
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
        found = [(a, b) for a, b in halves if a in normal and b in normal]
        found.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        merges += [(-score, pair) for pair in found]
    return [pair for _, pair in sorted(merges, key=lambda merge: merge[0])]


def _set_template(library, tokenizer: Tokenizer) -> None:
    from tokenizers import processors

    def spelt(frame: Frame) -> list[str]:
        parts: list[str] = []
        for number, ids in enumerate(frame.specials):
            if number:
                parts.append(f"${'AB'[number - 1]}:{frame.text_types[number - 1]}")
            names = zip(tokenizer.pieces(ids), frame.special_types[number], strict=True)
            parts += [f"{piece}:{kind}" for piece, kind in names]
        return parts

    single, pair = tokenizer.template
    used = sorted({i for ids in (*single.specials, *pair.specials) for i in ids})
    library.post_processor = processors.TemplateProcessing(
        single=spelt(single),
        pair=spelt(pair),
        special_tokens=list(zip(tokenizer.pieces(used), used, strict=True)),
    )


def _verify(tokenizer: Tokenizer, text: bytes) -> None:
    """Raise DataError where what `text` gives is not what the tokenizer gives."""
    import tokenizers

    library = tokenizers.Tokenizer.from_buffer(text)
    library.no_truncation()
    library.no_padding()
    ours = tokenizer.encode_batch(SAMPLE)
    theirs = [library.encode(line, add_special_tokens=False).ids for line in SAMPLE]
    expected = tokenizer.with_specials(ours[0], ours[1])
    pair = library.encode(*SAMPLE[:2])
    for line, own, other in zip(
        (*SAMPLE, "a pair of texts"), (*ours, expected[0]), (*theirs, pair.ids), strict=True
    ):
        if own != other and not _tie(tokenizer, own, other):
            raise DataError(
                f"the tokenizer (kind {tokenizer.kind}) cannot be exported: of {line!r} it makes "
                f"{own[:12]}, and what would be written makes {other[:12]}"
            )


def _tie(tokenizer: Tokenizer, own: list[int], other: list[int]) -> bool:
    """Say whether two segmentations score alike: the same pieces in another order.

    SentencePiece sums scores in single and `tokenizers` in double precision, so that rounding
    decides between `> >>` and `>> >`.
    """
    unigram = tokenizer.kind in ("unigram", "sentencepiece") and sorted(own) == sorted(other)
    return unigram and tokenizer.decode(own) == tokenizer.decode(other)
