"""Tokens know where they stand in the text, whatever script it is in and whoever split it."""

import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flaxlm.data import long, offsets, sentence_piece
from flaxlm.data.hugging_face import load_hugging_face
from flaxlm.data.sources import stdlib_files
from flaxlm.data.tokenizer import KINDS, ByteTokenizer, TokenizerConfig, train_tokenizer
from flaxlm.data.vocabulary import ByT5Tokenizer
from flaxlm.errors import DataError
from flaxlm.interop.tokenizer import export_tokenizer

LINES = ["the cat sat on the mat, the dog ran", "中文没有空格，也一样。", "naïve café 12 e\u0301"]
TEXT = "  The café,  cafe\u0301 naïve! 🙂👩\u200d👧 中文分词。 ½ 12\n\thi\u0327\u0323 …  "
REAL = {
    "bert": "vocab/bert-base-uncased",
    "bert_chinese": "vocab/bert-base-chinese",
    "gpt2": "vocab/gpt2",
    "albert": "vocab/albert-v2",
    "llama": "stories260K/hf",
}
TRAINED = [*KINDS, "nfkc", "unigram_hf", "bpe_hf"]
NORMALISED = ("bert", "bert_chinese", "albert", "nfkc")
UNICODE = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=12
)
MIXED = st.text("aZé\u0301\u0327 \n\t中文。🙂½ﬁ'`\"İΣς\u200d￼", max_size=12)


@pytest.fixture(scope="module")
def make(shared, tmp_path_factory):
    """Return a function from a name to its tokenizer, each made once."""
    made = {}

    def trained(name):
        kind, _, foreign = name.partition("_")
        config = {"kind": kind, "vocab_size": 420, "sentinels": 2}
        (file,) = stdlib_files(include=["textwrap.py"])
        if name == "nfkc":
            config |= {"kind": "unigram", "normalization": "nmt_nfkc"}
        tokenizer = train_tokenizer(TokenizerConfig(**config), [*LINES * 9, file.read_text()])
        if not foreign:
            return tokenizer
        path = tmp_path_factory.mktemp(name)
        export_tokenizer(tokenizer, path)
        return load_hugging_face(path)

    def find(name):
        if name not in made:
            if name == "byt5":
                made[name] = ByT5Tokenizer()
            elif name in REAL:
                facts = {"model_type": name} if name == "albert" else None
                made[name] = load_hugging_face(shared(f"weights/{REAL[name]}"), facts)
            else:
                made[name] = trained(name)
        return made[name]

    return find


@pytest.mark.parametrize("name", [*TRAINED, *REAL, "byt5"])
def test_ids_are_those_of_encode_and_their_places_cover_the_text(name, make):
    tokenizer = make(name)
    kept = {}

    def keeps(character):
        if character not in kept:
            text = tokenizer.decode(tokenizer.encode(character))
            kept[character] = bool(text.strip())
        return kept[character]

    @settings(max_examples=60, deadline=None, database=None, derandomize=True)
    @given(st.one_of(UNICODE, MIXED))
    @example(TEXT)
    @example("")
    @example(" \n ")
    @example("``a'' b")
    def check(text):
        ids, spans = tokenizer.encode_with_offsets(text)
        assert ids == tokenizer.encode(text)
        assert spans.shape == (len(ids), 2) and spans.dtype == np.int32
        assert (np.diff(spans, axis=0) >= 0).all() and (spans[:, 0] <= spans[:, 1]).all()
        covered = np.zeros(len(text) + 1, bool)
        for index, (begin, end) in zip(ids, spans.tolist(), strict=True):
            covered[begin:end] = True
            said = text[begin:end]
            assert said == said.strip()
            piece = tokenizer.decode([index])
            # A part of a character, and what is not in the vocabulary, have no text of their own.
            if name not in NORMALISED and index != tokenizer.unk_id and "\ufffd" not in piece:
                assert piece.strip() == said, (piece, said)
        for place, character in enumerate(text):
            assert covered[place] or character.isspace() or not keeps(character), (place, character)

    check()


def test_real_vocabularies_point_at_the_words(make):
    text = " Caf\u00e9 cafe\u0301s, caf\u00e9\u0327: 東京🙂 ½ cup"

    def words(name):
        _, spans = make(name).encode_with_offsets(text)
        return [text[begin:end] for begin, end in spans]

    bert = ["Café", "cafe\u0301s", ",", "café\u0327", ":", "東", "京", "🙂", "½", "cup"]
    assert words("bert") == bert
    # GPT-2 writes 🙂 in two tokens, and each has all of it.
    assert words("gpt2")[:4] == ["Café", "cafe", "\u0301", "\u0301"]
    assert words("gpt2")[-4:] == ["🙂", "🙂", "½", "cup"]
    assert words("albert")[-4:] == ["½", "½", "½", "cup"]  # NFKD makes it 1⁄2, three pieces
    assert "".join(words("llama")).count("🙂") == 4  # its four bytes


def test_white_space_and_dropped_accents():
    spans = [(0, 3), (3, 5), (5, 6), (6, 8)]
    text = " a  \u0301b e\u0301"
    found = offsets.tidy(text, spans)
    assert found.tolist() == [[1, 2], [4, 5], [5, 6], [7, 9]]
    assert offsets.tidy("", []).shape == (0, 2)


def plain(text, lower):
    """Return text as ALBERT's own code hands it to SentencePiece."""
    text = unicodedata.normalize("NFKD", text.replace("``", '"').replace("''", '"'))
    text = "".join(c for c in text if not unicodedata.combining(c))
    return text.lower() if lower else text


def test_plain_text_is_alberts_and_knows_where_it_was():
    @settings(max_examples=300, deadline=None, database=None, derandomize=True)
    @given(st.one_of(UNICODE, MIXED), st.booleans())
    @example("``a'' '''b", True)
    @example("İSTANBUL ΟΔΟΣ ẞ ﬃ", True)
    def check(text, lower):
        found, places = offsets.plain(text, lower)
        assert found == plain(text, lower) and len(places) == len(found)
        # Alone, what stood there gives the character (but for a sigma, which looks around).
        for character, (begin, end) in zip(found.replace("ς", "σ"), places, strict=True):
            alone = plain(text[begin:end], lower).replace("ς", "σ")
            assert character in alone and 1 <= end - begin <= 2

    check()


def test_long_text_in_chunks_stands_where_the_whole_does(make, monkeypatch):
    tokenizer, text = make("bpe"), "a cat, ein Hütchen\n中文。\n" * 40
    ids, whole = tokenizer.encode_with_offsets(text)
    monkeypatch.setattr(sentence_piece, "ENCODE_CHUNK", 64)
    again, chunks = tokenizer.encode_with_offsets(text)
    assert again == ids and np.array_equal(whole, chunks)


@pytest.mark.parametrize("name", [*TRAINED, *REAL, "byt5"])
def test_a_long_text_in_parts_has_the_ids_and_places_of_the_whole(name, make, monkeypatch):
    tokenizer = make(name)
    (file,) = stdlib_files(include=["textwrap.py"])
    text = "\n".join([file.read_text(), TEXT, *LINES * 9]) * 2
    whole, (ids, places) = tokenizer.encode(text), tokenizer.encode_with_offsets(text)
    monkeypatch.setattr(long, "PART", 3000)
    monkeypatch.setattr(long, "WINDOW", 200)
    cut = list(long.cuts(text, tokenizer._encode))
    assert len(cut) > 10 and max(map(len, cut)) <= 6000 and "".join(cut) == text
    if name == "llama":  # which begins every text with a space
        before = [tokenizer.encode(part) for part in cut]
        assert len(whole) < sum(map(len, before)) < len(whole) + 2 * len(cut)
        return
    assert tokenizer.encode(text) == whole == tokenizer.encode_batch(["a", text])[1]
    assert tokenizer.encode_array(text, np.uint16).tolist() == whole
    again, elsewhere = tokenizer.encode_with_offsets(text)
    assert again == ids and (elsewhere == places).all()
    # Where no word ends it is cut at a length.
    assert [len(part) for part in long.cuts("a" * 9000, tokenizer._encode)] == [3000, 6000]


def test_surrogates_are_refused():
    with pytest.raises(DataError, match="surrogate at character 1"):
        ByteTokenizer().encode_with_offsets("a\ud800")
