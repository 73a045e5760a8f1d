"""Text to ids and back: exact round trips, equal training everywhere, ids where they belong."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flaxlm.data import sentence_piece
from flaxlm.data.tokenizer import (
    KINDS,
    ByteTokenizer,
    SentencePieceTokenizer,
    TokenizerConfig,
    load_tokenizer,
    train_tokenizer,
)
from flaxlm.errors import ConfigError, DataError, MissingInput

HARD = "hello  world\n\tx\r\n ▅ 中文\x00 \x01\x7f\u2028 \xa0 \x85\ufeff e\u0301 ⁇ "
HARD += "<s></s><unk> <0x41>\U0001f600 "


@pytest.fixture(scope="module")
def tokenizers(texts):
    config = {"vocab_size": 700, "sentinels": 10}
    return {kind: train_tokenizer(TokenizerConfig(kind=kind, **config), texts) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_is_exact(tokenizers, kind):
    tokenizer = tokenizers[kind]

    @settings(max_examples=150, deadline=None, database=None, derandomize=True)
    @given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")))
    @example(HARD)
    @example(" a  b \n\n c")
    def check(text):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        assert not set(ids) & {0, 2, 3, 4, *tokenizer.sentinel_ids.tolist()}

    check()


def test_u2581_is_the_one_loss_and_is_counted(tokenizers):
    text = "a\u2581b \u2581\u2581"
    assert tokenizers["byte"].unrecoverable(text) == 0
    assert tokenizers["byte"].decode(tokenizers["byte"].encode(text)) == text
    for kind in ("unigram", "bpe", "char"):
        tokenizer = tokenizers[kind]
        assert tokenizer.decode(tokenizer.encode(text)) == text.replace("\u2581", " ")
        assert tokenizer.unrecoverable(text) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_layout_of_the_vocabulary(tokenizers, kind):
    tokenizer = tokenizers[kind]
    v = tokenizer.vocab_size
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id) == (0, 1, 2)
    assert (tokenizer.eos_id, tokenizer.mask_id) == (3, 4)
    assert (tokenizer.cls_id, tokenizer.sep_id) == (2, 3)
    assert tokenizer.sentinel_ids.tolist() == list(range(v - 1, v - 11, -1))
    assert tokenizer.pieces([0, 4, v - 1, v - 10]) == [
        *("<pad>", "<mask>", "<extra_id_0>", "<extra_id_9>")
    ]
    assert tokenizer.decode([2, *tokenizer.encode("ab"), 4, v - 1, 3, 0]) == "ab"
    assert len(tokenizer.word_starts) == v
    if kind in ("unigram", "bpe", "word"):
        assert v == 700
    with pytest.raises(DataError, match=f"id {v} is outside"):
        tokenizer.decode([v])


def test_byte_ids_are_bytes():
    tokenizer = ByteTokenizer(sentinels=0)
    assert tokenizer.vocab_size == 261
    assert tokenizer.encode("aé") == [5 + b for b in "aé".encode()]


@pytest.mark.parametrize("kind", ["unigram", "bpe", "char"])
def test_same_text_same_hash_in_another_process(texts, tokenizers, kind, tmp_path):
    source = tmp_path / "texts.json"
    source.write_text(json.dumps(texts))
    code = (
        "import json, sys; from flaxlm.data.tokenizer import *;"
        f"c = TokenizerConfig(kind={kind!r}, vocab_size=700, sentinels=10);"
        f"print(train_tokenizer(c, json.load(open({str(source)!r}))).hash, 'jax' in sys.modules)"
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    env = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.split() == [tokenizers[kind].hash, "False"], done.stderr


def test_hash_knows_every_choice(texts, tokenizers):
    hashes = {tokenizers[kind].hash for kind in KINDS}
    more = [
        TokenizerConfig(kind="bpe", vocab_size=700, sentinels=11),
        TokenizerConfig(kind="bpe", vocab_size=701, sentinels=10),
        TokenizerConfig(kind="bpe", vocab_size=700, sentinels=10, train_chars=20_000),
        TokenizerConfig(kind="bpe", vocab_size=700, sentinels=10, train_chars=20_000, seed=1),
    ]
    hashes |= {train_tokenizer(config, texts).hash for config in more}
    hashes |= {ByteTokenizer(sentinels=11).hash}
    assert len(hashes) == len(KINDS) + len(more) + 1


def test_frequent_words_are_one_id_each(tokenizers):
    tokenizer = tokenizers["word"]
    assert tokenizer.pieces(tokenizer.encode("if the  if\n\tif")) == [
        *("if", "▁the", "▁", "▁if", "\n", "\t", "if")
    ]


def test_char_covers_what_the_sample_missed(texts):
    rare = ["x" * 50_000 + "\n", "only here: Ω"]
    for fallback in (True, False):
        config = TokenizerConfig(
            kind="char", byte_fallback=fallback, sentinels=0, train_chars=1_000
        )
        tokenizer = train_tokenizer(config, [*texts, *rare])
        characters = set("".join([*texts, *rare]))
        assert tokenizer.vocab_size == 5 + 256 * fallback + len(characters)
        for text in (*rare, texts[0]):
            ids = tokenizer.encode(text)
            assert len(ids) == len(text) and tokenizer.unk_id not in ids
            assert tokenizer.decode(ids) == text


def test_shakespeare_has_65_characters(shared):
    text = shared("data/tinyshakespeare/input.txt").read_text()
    config = TokenizerConfig(kind="char", byte_fallback=False, sentinels=0)
    tokenizer = train_tokenizer(config, [text])
    assert tokenizer.vocab_size == 70 == 5 + len(set(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("kind", ["unigram", "bpe", "char"])
def test_long_text_in_chunks_equals_whole(tokenizers, texts, kind, monkeypatch):
    tokenizer = tokenizers[kind]
    whole = tokenizer.encode(texts[0])
    monkeypatch.setattr(sentence_piece, "ENCODE_CHUNK", 100)
    chunked = tokenizer.encode(texts[0])
    if kind == "unigram":  # pieces of one score in two orders (> >> or >> >) are a tie
        assert sorted(chunked) == sorted(whole) and tokenizer.decode(chunked) == texts[0]
    else:
        assert chunked == whole


@pytest.mark.parametrize("kind", KINDS)
def test_saved_equals_loaded(tokenizers, kind, tmp_path):
    tokenizer = tokenizers[kind]
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.hash == tokenizer.hash and loaded.vocab_size == tokenizer.vocab_size
    assert loaded.encode(HARD) == tokenizer.encode(HARD)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["tokenizer.json"] + ["tokenizer.model"] * (kind != "byte")
    )


def test_damage_is_named(tokenizers, tmp_path):
    tokenizers["bpe"].save(tmp_path)
    model = tmp_path / "tokenizer.model"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    with pytest.raises(DataError, match=r"tokenizer\.model|damaged"):
        load_tokenizer(tmp_path)
    model.unlink()
    with pytest.raises(MissingInput, match=r"tokenizer\.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer\.json is damaged"):
        load_tokenizer(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingInput, match=r"spiece\.model"):
        load_tokenizer(tmp_path / "empty")
    with pytest.raises(MissingInput, match="absent"):
        load_tokenizer(tmp_path / "absent.model")


def test_another_projects_model_keeps_its_ids(tokenizers, tmp_path):
    """Like T5's: pad, eos and unk in other places, no bos, no mask."""
    import io

    out = io.BytesIO()
    lines = [f"word{i} and more" for i in range(200)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, vocab_size=60, model_type="bpe",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "spiece.model").write_bytes(out.getvalue())
    tokenizer = load_tokenizer(tmp_path, sentinels=100)
    reference = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    assert tokenizer.encode("word7 more") == reference.encode("word7 more")
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2)
    assert tokenizer.sentinel_ids[0] == 159 and tokenizer.sentinel_ids[-1] == 60
    assert (tokenizer.bos_id, tokenizer.mask_id, tokenizer.vocab_size) == (160, 161, 162)
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").hash == tokenizer.hash


def test_albert_keeps_its_specials(shared):
    path = shared("weights/vocab/albert-v2/spiece.model")
    tokenizer = SentencePieceTokenizer(path.read_bytes(), "sentencepiece")
    assert tokenizer.special_ids == {"pad": 0, "unk": 1, "bos": 2, "eos": 3, "mask": 4}
    assert tokenizer.pieces([2, 3, 4]) == ["[CLS]", "[SEP]", "[MASK]"]


@pytest.mark.parametrize("kind", KINDS)
def test_word_starts_are_where_words_start(tokenizers, kind):
    """Oracle: words found by a regular expression on the characters."""
    tokenizer = tokenizers[kind]
    text = "def parse_line(text, limit):\n    return text.strip()  # a longer remark\n\tend"
    ids = tokenizer.encode(text)
    begins = tokenizer.word_starts[ids]
    ends = np.cumsum([len(tokenizer.decode([i])) for i in ids]).tolist()
    assert ends[-1] == len(text)
    tokens = set(ends) | {0}
    starts = {end for end, begin in zip([0, *ends], begins, strict=False) if begin}
    for word in re.finditer(r"(?<= )[a-z]+", text):  # the spaces before a word belong to it
        spaces = len(text[: word.start()]) - len(text[: word.start()].rstrip(" "))
        assert starts & set(range(word.start() - spaces, word.start() + 1)), word
    for mark in re.finditer(r"[^a-z\s]", text):  # "()" may be one piece
        assert mark.start() in starts or mark.start() not in tokens, mark
    inside = {i for m in re.finditer(r"[a-z]+", text) for i in range(m.start() + 1, m.end())}
    assert not inside & starts


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"kind": "wordpiece"}, "did you mean 'word'|choose one of"),
        ({"normalization": "nfd"}, "identity"),
        ({"vocab_size": 100}, "no room"),
        ({"sentinels": -1}, "sentinels"),
        ({"character_coverage": 0.9}, "0.98"),
        ({"train_chars": 0}, "train_chars"),
    ],
)
def test_config_is_checked(fields, match):
    with pytest.raises(ConfigError, match=match):
        TokenizerConfig(**fields)


def test_impossible_vocabulary_names_the_possible(texts):
    for kind in ("unigram", "bpe", "word"):
        with pytest.raises(ConfigError, match=r"use at most \d+") as raised:
            train_tokenizer(TokenizerConfig(kind=kind, vocab_size=60_000), texts)
        most = int(re.search(r"at most (\d+)", str(raised.value))[1])
        train_tokenizer(TokenizerConfig(kind=kind, vocab_size=most), texts)
    with pytest.raises(ConfigError, match=r"use at least \d+") as raised:
        train_tokenizer(TokenizerConfig(vocab_size=200), texts)
    least = int(re.search(r"at least (\d+)", str(raised.value))[1])
    train_tokenizer(TokenizerConfig(vocab_size=least), texts)


def test_empty_corpus_and_surrogates(tokenizers):
    with pytest.raises(DataError, match="empty"):
        train_tokenizer(TokenizerConfig(), [])
    with pytest.raises(DataError, match="empty"):
        train_tokenizer(TokenizerConfig(kind="char"), ["", "\n\n"])
    for kind in KINDS:
        with pytest.raises(DataError, match="surrogate at character 1"):
            tokenizers[kind].encode("a\ud800")
