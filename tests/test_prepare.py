"""Preparing a run's data: tokenizer and caches, made once and found again."""

import pytest
from fakes import document

from flaxlm.data.cache import cache_directory, prepare
from flaxlm.data.shards import open_cache
from flaxlm.data.sources import DataConfig
from flaxlm.data.tokenizer import TokenizerConfig, load_tokenizer
from flaxlm.errors import Unsafe

CONFIG = DataConfig(include=("json/*", "email/*"), valid_fraction=0.2, test_fraction=0.2)


def quiet(line):
    pass


def test_prepare_makes_both_once(tmp_path):
    config = TokenizerConfig(kind="bpe", vocab_size=600, sentinels=10)
    said = []
    tokenizer, [directory] = prepare(CONFIG, config, tmp_path, said.append)
    assert said and directory == cache_directory(CONFIG, tokenizer, tmp_path)
    assert load_tokenizer(tmp_path / "tokenizer").hash == tokenizer.hash
    said.clear()
    again, [same] = prepare(CONFIG, config, tmp_path, said.append)
    assert (again.hash, same, said) == (tokenizer.hash, directory, [])
    with pytest.raises(Unsafe, match=r"vocab_size=700 \(was 600\)"):
        prepare(CONFIG, TokenizerConfig(kind="bpe", vocab_size=700, sentinels=10), tmp_path)
    loaded = TokenizerConfig(path=str(tmp_path / "tokenizer"))
    other, [moved] = prepare(CONFIG, loaded, tmp_path / "other", quiet)
    assert other.hash == tokenizer.hash
    assert open_cache(moved, "train").hash == open_cache(directory, "train").hash


def test_tokenizer_never_saw_the_held_out_text(tmp_path):
    """Char alone has to know every character of the corpus."""
    path = tmp_path / "a.txt"
    path.write_text("abcd" * 900 + "ΩΨ")
    config = DataConfig(path=str(path), split="tail", valid_fraction=0.1)
    fields = {"byte_fallback": False, "sentinels": 0}
    word = TokenizerConfig(kind="bpe", vocab_size=14, character_coverage=1.0, **fields)
    seen = prepare(config, word, tmp_path / "bpe", quiet)[0]
    assert "Ω" not in seen.pieces(range(seen.vocab_size))
    seen = prepare(config, TokenizerConfig(kind="char", **fields), tmp_path / "char", quiet)[0]
    assert seen.vocab_size == 5 + 6


def test_mixture_has_one_cache_a_path(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(name * 50)
    paths = tuple(str(tmp_path / f"{name}.txt") for name in ("a", "b"))
    config = DataConfig(path=paths, weights=(1.0, 3.0), split="tail", valid_fraction=0.1)
    tokenizer, directories = prepare(config, TokenizerConfig(kind="byte"), tmp_path, quiet)
    texts = [tokenizer.decode(document(open_cache(d, "train"), 0)) for d in directories]
    assert texts == ["a" * 45, "b" * 45]


def test_shakespeare_cache(shared, tmp_path):
    path = shared("data/tinyshakespeare/input.txt")
    config = DataConfig(path=str(path), split="tail", valid_fraction=0.1, append_eos=False)
    char = TokenizerConfig(kind="char", byte_fallback=False, sentinels=0)
    tokenizer, [directory] = prepare(config, char, tmp_path, quiet)
    text = path.read_text()
    train, valid = (open_cache(directory, split, tokenizer.hash) for split in ("train", "valid"))
    assert (train.num_tokens, valid.num_tokens) == (1003854 + 1, 111540 + 1)
    assert tokenizer.decode(document(train, 0)) + tokenizer.decode(document(valid, 0)) == text
