"""Hugging Face tokenizers: ids and templates of the libraries, in and out, and what is refused."""

import io
import itertools
import json
import re

import numpy as np
import pytest
import sentencepiece
import tokenizers
from fakes import FakeCache
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import (
    AlbertTokenizer,
    AutoTokenizer,
    BertTokenizer,
    ByT5Tokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    RobertaTokenizer,
    T5Tokenizer,
)

from flaxlm import files
from flaxlm.data.hugging_face import load_hugging_face
from flaxlm.data.pipeline import EvalBatches
from flaxlm.data.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from flaxlm.errors import ConfigError, DataError, MissingInput, Unsafe
from flaxlm.interop.tokenizer import export_tokenizer
from flaxlm.objectives import Classification, MaskedLM, TextToText
from flaxlm.objectives.masked_lm import special_tokens

PAIR = "Hello you, dear reader", "the second text"
VOCABULARIES = ("bert-base-uncased", "bert-base-chinese", "gpt2", "albert-v2", "stories260K")


@pytest.fixture(scope="module")
def lines(shared):
    """Return every line of udhr2 and of chinese_poetry's test, and 10,000 of English novels."""

    def read(name):
        with files.opened(shared(f"data/{name}.jsonl.zst")) as file:
            for row in file:
                yield from json.loads(row)["text"].split("\n")

    novels = itertools.islice(read("english_novels_100/test"), 10_000)
    return [*read("udhr2/udhr2"), *read("chinese_poetry/test"), *novels]


def real(shared, name):
    return shared("weights/stories260K/hf" if name == "stories260K" else f"weights/vocab/{name}")


def write(directory, **contents):
    """Write JSON (or bytes) files, `__` in a name for its dot, and return the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, value in contents.items():
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        (directory / name.replace("__", ".")).write_bytes(data)
    return directory


@pytest.fixture(scope="module")
def small(tmp_path_factory, texts):
    """Return directories of small tokenizers of other projects' kinds."""
    root = tmp_path_factory.mktemp("small")
    words = {w for w in re.findall(r"[a-z]+", texts[0].lower()) if len(w) < 9}
    pieces = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words)]
    pieces += [mark + c for c in "abcdefghijklmnopqrstuvwxyz" for mark in ("", "##")]
    write(root / "bert", vocab__txt="\n".join(dict.fromkeys(pieces)).encode())

    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    options = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, **options)
    library.train_from_iterator(texts, trainer)
    mask = {"__type": "AddedToken", "content": "<mask>", "lstrip": True}
    for name in ("roberta", "bart"):
        facts = {"tokenizer_class": f"{name.title()}Tokenizer", "mask_token": mask}
        library.model.save(str(write(root / name, tokenizer_config__json=facts)))
    write(root / "bart", config__json={"model_type": "bart", "decoder_start_token_id": 2})

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(texts).split("\n")), model_writer=out, vocab_size=400,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    t5 = {"tokenizer_class": "T5Tokenizer", "extra_ids": 20}
    write(root / "t5", spiece__model=out.getvalue(), tokenizer_config__json=t5)
    write(root / "byt5", tokenizer_config__json={"tokenizer_class": "ByT5Tokenizer"})
    return {path.name: path for path in root.iterdir()}


# --- the same ids as the libraries


@pytest.mark.parametrize("name", VOCABULARIES)
def test_ids_are_those_of_the_library_on_every_line(name, shared, lines):
    path = real(shared, name)
    ids = load_hugging_face(path).encode_batch(lines)
    assert len(lines) > 99_000
    classes = {"bert-base-uncased": BertTokenizer, "bert-base-chinese": BertTokenizer}
    if oracle := (classes | {"gpt2": GPT2Tokenizer}).get(name):
        library = oracle.from_pretrained(path).backend_tokenizer
        expected = [e.ids for e in library.encode_batch_fast(lines, add_special_tokens=False)]
    else:
        (model,) = path.glob("*.model")
        expected = sentencepiece.SentencePieceProcessor(model_file=str(model)).encode(lines)
    assert ids == expected


def test_llama_and_albert_are_those_of_transformers_where_these_keep_to_sentencepiece(
    shared, lines
):
    path = real(shared, "stories260K")
    # `transformers` 5 drops one of several spaces at the beginning.
    stripped = [line.strip() for line in lines[::3]]
    library = LlamaTokenizer.from_pretrained(path).backend_tokenizer
    expected = [e.ids for e in library.encode_batch_fast(stripped, add_special_tokens=False)]
    assert load_hugging_face(path).encode_batch(stripped) == expected
    path = real(shared, "albert-v2")
    # It divides a text at brackets before it puts spaces in front of words.
    plain = [line for line in stripped if not re.search(r"[()\-–£€*”\"`'.]", line)]
    library = AlbertTokenizer.from_pretrained(path).backend_tokenizer
    expected = [e.ids for e in library.encode_batch_fast(plain, add_special_tokens=False)]
    assert load_hugging_face(path, {"model_type": "albert"}).encode_batch(plain) == expected
    assert len(plain) > 5_000


@pytest.mark.parametrize(
    "name,roles,size",
    [
        ("bert-base-uncased", {"pad": 0, "unk": 100, "bos": 101, "eos": 102, "mask": 103}, 30522),
        ("gpt2", dict.fromkeys(("pad", "unk", "bos", "eos"), 50256), 50257),
        ("albert-v2", {"pad": 0, "unk": 1, "bos": 2, "eos": 3, "mask": 4}, 30000),
        ("stories260K", {"pad": 2, "unk": 0, "bos": 1, "eos": 2}, 512),
    ],
)
def test_roles_of_real_vocabularies(name, roles, size, shared):
    tokenizer = load_hugging_face(real(shared, name))
    assert tokenizer.special_ids == roles and tokenizer.vocab_size == size
    assert (tokenizer.mask_id < 0) == ("mask" not in roles)
    assert (tokenizer.cls_id, tokenizer.sep_id) == (roles["bos"], roles["eos"])
    assert len(tokenizer.pieces(range(size))) == len(tokenizer.word_starts) == size
    text = "a second text, and more."
    ids = tokenizer.with_specials(tokenizer.encode(text))[0]
    assert tokenizer.decode(ids) == text


def test_words_begin_where_bert_and_gpt2_begin_them(shared):
    bert, gpt2 = (load_hugging_face(real(shared, n)) for n in ("bert-base-uncased", "gpt2"))
    for tokenizer in (bert, gpt2):
        ids = tokenizer.encode("the unaffordability, of embeddings")
        pieces = tokenizer.pieces(ids)
        starts = [p for p, start in zip(pieces, tokenizer.word_starts[ids], strict=True) if start]
        expected = [p for p in pieces if not p.startswith("##")]
        if tokenizer is gpt2:  # the first word has no space before it: its place begins it
            expected = [p for p in pieces if p[0] in "Ġ,"]
        assert starts == expected and len(expected) < len(pieces)
    assert gpt2.spaces_join and not bert.spaces_join


# --- special tokens and templates


CLASSES = {"bert": BertTokenizer, "roberta": RobertaTokenizer, "t5": T5Tokenizer}
CLASSES |= {"byt5": ByT5Tokenizer, "albert-v2": AlbertTokenizer, "stories260K": LlamaTokenizer}


@pytest.mark.parametrize("name", CLASSES)
def test_templates_are_those_of_transformers(name, small, shared):
    path = small.get(name) or real(shared, name)
    options = {"add_bos_token": True} if name == "stories260K" else {}
    oracle = ByT5Tokenizer() if name == "byt5" else CLASSES[name].from_pretrained(path, **options)
    tokenizer = load_hugging_face(path, {"model_type": "albert"} if name == "albert-v2" else None)
    first, second = tokenizer.encode_batch(PAIR)
    for found, given in (((first,), PAIR[:1]), ((first, second), PAIR)):
        expected = oracle(*given, return_token_type_ids=True)
        ids, types = tokenizer.with_specials(*found)
        assert ids == expected["input_ids"]
        assert types == expected["token_type_ids"]
    ids = {role: getattr(oracle, f"{role}_token_id") for role in ("pad", "unk", "eos", "mask")}
    assert {r: i for r, i in ids.items() if i is not None}.items() <= tokenizer.special_ids.items()
    ids = oracle.convert_tokens_to_ids([f"<extra_id_{n}>" for n in range(200)])
    ids = [i for i in ids if i not in (None, oracle.unk_token_id)]
    assert tokenizer.sentinel_ids.tolist() == ids


def test_the_decoder_starts_as_the_models_config_says(small):
    bart, t5 = load_hugging_face(small["bart"]), load_hugging_face(small["t5"])
    assert (bart.bos_id, bart.pad_id, bart.eos_id, bart.start_id) == (0, 1, 2, 2)
    assert t5.start_id == t5.pad_id == 0 and t5.bos_id == t5.eos_id and t5.mask_id == -1
    examples = [{"text": "read", "target": "write"}]
    batch = rows(TextToText(target_length=8), examples, bart)
    assert batch["tokens"][0].tolist()[:2] == [2, bart.encode("write")[0]]


def rows(objective, examples, tokenizer, length=16):
    plan = objective.plan(examples, length, tokenizer, seed=0, shuffle=False)
    return EvalBatches(plan, objective, tokenizer, length, 0, plan.num_rows)[0]


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_an_encoder_classifies_its_tokenizers_template_cut_inside(name, small):
    tokenizer = load_hugging_face(small[name])
    examples = [
        {"text": PAIR[0], "text_pair": PAIR[1], "label": 0},
        {"text": "text " * 30, "text_pair": "of", "label": 1},
        {"text": "text " * 30, "text_pair": "of the " * 30, "label": 1},
        {"text": "text", "label": 1},
    ]
    batch = rows(Classification(labels=("no", "yes")), examples, tokenizer, length=24)
    lengths = batch["segment_ids"].sum(1)
    for row, example in enumerate(examples):
        parts = tokenizer.encode_batch([example["text"], example.get("text_pair", "")])
        ids, types = (batch[key][row][: lengths[row]].tolist() for key in ("tokens", "token_types"))
        pair = [parts[0], parts[1]] if parts[1] else [parts[0]]
        size = (tokenizer.template.pair if parts[1] else tokenizer.template.single).size
        if sum(map(len, pair)) + size > 24:
            assert lengths[row] == 24
            long = [24 - size - len(parts[1]), len(parts[1])]
            keep = long if row == 1 else [(25 - size) // 2, (24 - size) // 2]
            pair = [part[:n] for part, n in zip(pair, keep, strict=True)]
        assert (ids, types) == tokenizer.with_specials(*pair)
    assert batch["token_types"].any() == (name == "bert")


def test_id_0_may_be_text(shared):
    """GPT-2's id 0 is `!`: in a label it counts, in the padding it does not."""
    tokenizer = load_hugging_face(real(shared, "gpt2"))
    objective = Classification(labels=("!", "no!!"), model="encoder_decoder")
    batch = rows(objective, [{"text": "a", "label": 0}, {"text": "b", "label": 1}], tokenizer)
    assert tokenizer.encode("!") == [0]
    assert batch["targets"][0][:2].tolist() == [0, tokenizer.eos_id]
    assert batch["weights"].sum(1).tolist() == [2, len(tokenizer.encode("no!!")) + 1]
    assert batch["label_lengths"].tolist() == 2 * [batch["weights"].sum(1).tolist()]


def test_masks_are_needed_and_never_fall_into_the_padding(shared):
    gpt2 = load_hugging_face(real(shared, "gpt2"))
    with pytest.raises(ConfigError, match=r"masked_lm .* this tokenizer has none"):
        MaskedLM(nsp=False).plan(FakeCache([5]), 16, gpt2, seed=0, shuffle=False)
    assert not special_tokens(gpt2)[-2] and special_tokens(gpt2)[-1]

    class Moved:  # as ModernBERT's: id 0 is an ordinary piece, the specials stand last
        pad_id, unk_id, bos_id, eos_id, mask_id = range(95, 100)
        vocab_size, sentinel_ids = 100, np.zeros(0, np.int32)

    batch = rows(MaskedLM(nsp=False, rate=0.9), FakeCache([3, 5]), Moved)
    used = batch["weights"] > 0
    inside = np.take_along_axis(batch["segment_ids"], batch["target_positions"], axis=1)
    assert used.any() and (inside[used] > 0).all() and (batch["segment_ids"] == 0).any()


# --- files in and out


def test_holes_truncation_and_padding_in_the_file_do_no_harm(tmp_path):
    vocabulary = {"<unk>": 0, "a": 3, "b": 7, "</s>": 9, "<extra_id_1>": 11, "<extra_id_0>": 12}
    library = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.decoder = decoders.Fuse()
    library.enable_truncation(2)
    library.enable_padding(length=5)
    library.add_special_tokens(["</s>"])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("a b a b") == [3, 7, 3, 7] == tokenizer.encode_batch(["a b a b"])[0]
    assert tokenizer.special_ids == {"pad": 9, "unk": 0, "bos": 9, "eos": 9}
    assert tokenizer.vocab_size == 13 and tokenizer.pieces([2, 3]) == ["", "a"]
    assert tokenizer.sentinel_ids.tolist() == [12, 11]
    assert tokenizer.decode([2, 3, 9, 7, 12]) == "ab" and len(tokenizer.word_starts) == 13
    with pytest.raises(DataError, match="surrogate at character 1"):
        tokenizer.encode_batch(["a", "a\ud800"])


@pytest.mark.parametrize("name", ["bert", "roberta", "bart", "t5", "byt5", "albert"])
def test_saved_equals_loaded(name, small, shared, tmp_path):
    path = real(shared, "albert-v2") if name == "albert" else small[name]
    tokenizer = load_hugging_face(path, {"model_type": name, "decoder_start_token_id": 2})
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    for key in ("hash", "family", "vocab_size", "template", "start_id", "special_ids", "model"):
        assert getattr(loaded, key) == getattr(tokenizer, key), key
    text = "Hello «wörld» \n\tif x:  pass <extra_id_0>"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.start_id == 2
    if loaded.model:
        model = tmp_path / "tokenizer.model"
        model.write_bytes(model.read_bytes().replace(b"the", b"teh", 1))
        with pytest.raises(DataError, match=r"tokenizer\.model"):
            load_tokenizer(tmp_path)


OURS = ("unigram", "bpe", "char", "byte")
THEIRS = ("bert", "roberta", "t5", "byt5", *VOCABULARIES)


@pytest.mark.parametrize("name", [*OURS, "albert uncased", *THEIRS])
def test_exports_give_the_same_ids_to_transformers(name, small, shared, texts, tmp_path):
    if name in OURS:
        config = TokenizerConfig(kind=name, vocab_size=700, sentinels=10)
        tokenizer = train_tokenizer(config, texts)
    elif name == "albert uncased":
        tokenizer = load_hugging_face(real(shared, "albert-v2"), {"model_type": "albert"})
    else:
        tokenizer = load_hugging_face(small.get(name) or real(shared, name))
    export_tokenizer(tokenizer, tmp_path, max_length=512)
    oracle = AutoTokenizer.from_pretrained(tmp_path)
    assert oracle.model_max_length == 512
    given = [*texts[0].split("\n"), *PAIR, "  \ttab\r\n\n", "Größe 中文  🙂👩‍👩‍👧 ", "हिन्दी", ""]
    given += ["one <mask> two"] * (name == "roberta")  # its mask takes the space before it
    own = tokenizer.encode_batch(given)
    other = oracle(given, add_special_tokens=False)["input_ids"]
    ties = [n for n, (a, b) in enumerate(zip(own, other, strict=True)) if a != b]
    assert not ties or (name == "unigram" and len(ties) < 0.02 * len(given))
    assert all(sorted(own[n]) == sorted(other[n]) for n in ties)  # `> >>` or `>> >`
    expected = oracle(*PAIR, return_token_type_ids=True)
    first, second = tokenizer.encode_batch(PAIR)
    found = tokenizer.with_specials(first, second)
    assert found == (expected["input_ids"], expected["token_type_ids"])
    assert oracle(PAIR[0])["input_ids"] == tokenizer.with_specials(first)[0]
    for role, index in tokenizer.special_ids.items():
        if role != "pad" or name != "gpt2":  # GPT-2 has none: ours shares the id of its EOS
            assert getattr(oracle, f"{role}_token_id") in (index, None), role
    sentinels = [f"<extra_id_{n}>" for n in range(len(tokenizer.sentinel_ids))]
    assert oracle.convert_tokens_to_ids(sentinels) == tokenizer.sentinel_ids.tolist()
    if len(sentinels):
        tail = oracle("x <extra_id_0>", add_special_tokens=False)["input_ids"]
        assert tail[-1] == tokenizer.sentinel_ids[0]
    again = load_tokenizer(tmp_path)
    assert again.template == tokenizer.template and again.encode_batch(given) == other


# --- refusals


def test_what_cannot_be_exported_is_refused(texts, tmp_path, monkeypatch):
    config = TokenizerConfig(kind="word", vocab_size=700)
    with pytest.raises(ConfigError, match=r"kind 'word' cannot be exported.*exported are"):
        export_tokenizer(train_tokenizer(config, texts), tmp_path / "word")
    tokenizer = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=700), texts)
    monkeypatch.setattr("flaxlm.interop.tokenizer._merges", lambda *_: [])
    with pytest.raises(DataError, match=r"kind bpe\) cannot be exported: of .The quick"):
        export_tokenizer(tokenizer, tmp_path / "bpe")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "contents,error,match",
    [
        ({}, MissingInput, r"looked for tokenizer\.json, vocab\.txt, .*spiece\.model"),
        ({"tokenizer__json": b'{"version"'}, DataError, r"tokenizer\.json is damaged"),
        ({"tokenizer__json": {"model": {"type": "New"}}}, DataError, r"tokenizer\.json"),
        ({"vocab__txt": b"a\nb\n"}, DataError, r"vocab\.txt lacks \[UNK\]"),
        ({"vocab__txt": b"\xff\xfe"}, DataError, r"vocab\.txt"),
        ({"vocab__json": b"{", "merges__txt": b""}, DataError, r"vocab\.json is damaged"),
        ({"vocab__json": {"a": 0}, "merges__txt": b""}, DataError, r"vocab\.json.*one of: gpt2"),
        ({"spiece__model": b"no model"}, DataError, r"spiece\.model: .* damaged"),
        ({"tokenizer_config__json": {"auto_map": {}}}, Unsafe, "runs no code"),
        ({"tokenizer_config__json": b"[1"}, DataError, r"tokenizer_config\.json is damaged"),
        ({"tokenizer_config__json": [1]}, DataError, r"tokenizer_config\.json is damaged"),
        (
            {"tokenizer_config__json": {"tokenizer_class": "BertJapaneseTokenizer"},
             "vocab__txt": b"[UNK]\n[CLS]\n[SEP]"}, DataError, "bertjapanese.*one of: bert",
        ),
        (
            {"tokenizer_config__json": {"added_tokens_decoder": 3},
             "vocab__txt": b"[UNK]\n[CLS]\n[SEP]"}, DataError, "does not hold what",
        ),
        (
            {"added_tokens__json": {"new": 7}, "vocab__txt": b"[UNK]\n[CLS]\n[SEP]"},
            DataError, "'new' cannot have id 7",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_is_refused(contents, error, match, tmp_path):
    with pytest.raises(error, match=match):
        load_hugging_face(write(tmp_path, **contents))


def test_shifted_and_oversized_models_are_refused(small, tmp_path, monkeypatch):
    model = (small["t5"] / "spiece.model").read_bytes()
    for facts in ({"tokenizer_class": "XLMRobertaTokenizer"}, {}):
        path = write(tmp_path, sentencepiece__bpe__model=model, tokenizer_config__json=facts)
        with pytest.raises(DataError, match=r"save a tokenizer\.json.*one of: t5"):
            load_hugging_face(path)
    monkeypatch.setattr("flaxlm.data.hugging_face_files.LIMIT", 10)
    with pytest.raises(DataError, match=r"vocab\.txt is larger"):
        load_hugging_face(small["bert"])
