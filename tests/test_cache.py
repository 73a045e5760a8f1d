"""The token cache: what a naive encoding gives, the same bytes whatever happens on the way."""

import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from fakes import document

from flaxlm.data import cache as building
from flaxlm.data import encode
from flaxlm.data.cache import build_cache, prepare
from flaxlm.data.encode import split_sentences
from flaxlm.data.shards import open_cache
from flaxlm.data.sources import DataConfig
from flaxlm.data.split import split_documents
from flaxlm.data.tokenizer import ByteTokenizer, TokenizerConfig
from flaxlm.errors import DataError, MissingInput, Preempted, StorageError, Unsafe

ROOT = str(pathlib.Path(__file__).parents[1])
CONFIG = DataConfig(include=("json/*", "email/*"), valid_fraction=0.2, test_fraction=0.2)


def quiet(line):
    pass


def contents(directory):
    """Digest of every file but the manifest, which holds paths and times, and of its hash."""
    found = {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(pathlib.Path(directory).iterdir())
        if p.name != "manifest.json"
    }
    return found | {"hash": json.loads((directory / "manifest.json").read_text())["hash"]}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    config = TokenizerConfig(kind="bpe", vocab_size=600, sentinels=10)
    return prepare(CONFIG, config, directory, quiet)[0]


@pytest.fixture(scope="module")
def plain(tokenizer, tmp_path_factory):
    return build_cache(CONFIG, tokenizer, tmp_path_factory.mktemp("plain") / "cache", quiet)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(building, "PART_CHARS", 20_000)


def test_cache_holds_every_document_in_order(tokenizer, plain):
    """Oracle: encode the documents one by one."""
    expected = {}
    for split, read in split_documents(CONFIG):
        expected.setdefault(split, []).append(read.text)
    for split, texts in expected.items():
        cache = open_cache(plain, split, tokenizer.hash, verify=True)
        ids = [[2, *tokenizer.encode(text), 3] for text in texts]
        assert cache.counts["documents"] == len(texts)
        assert [document(cache, n).tolist() for n in range(len(texts))] == ids
        assert cache.doc_offsets.dtype == np.int64
        assert cache.doc_offsets.tolist() == np.cumsum([0, *map(len, ids)]).tolist()
        assert [tokenizer.decode(document(cache, n)) for n in range(len(texts))] == texts
        whole = "".join(texts)
        assert cache.counts == {
            "documents": len(texts),
            "tokens": cache.num_tokens,
            "bytes": len(whole.encode()),
            "characters": len(whole),
            "words": sum(len(t.split()) for t in texts),
            "sentences": 0,
            "unknown": 0,
            "unrecoverable": 0,
        }
        assert cache.sentence_offsets is None and cache.doc_sentences is None


def test_take_gathers_across_shards(tokenizer, plain, tmp_path):
    cut = build_cache(CONFIG, tokenizer, tmp_path / "cut", quiet, shard_tokens=1000)
    whole, cache = open_cache(plain, "train"), open_cache(cut, "train", verify=True)
    assert len(list(cut.glob("train.tokens-*.bin"))) == -(-whole.num_tokens // 1000) > 20
    stream = np.concatenate([document(whole, n) for n in range(whole.counts["documents"])])
    rng = np.random.default_rng(0)
    for index in (
        rng.integers(0, whole.num_tokens, (7, 50)),
        np.arange(995, 1005),
        np.arange(whole.num_tokens),
        np.array([[2500]]),
        np.zeros((0, 3), np.int64),
    ):
        for one in (whole, cache):
            taken = one.take(index)
            assert taken.dtype == np.int32
            np.testing.assert_array_equal(taken, stream[index])
    for bad in (-1, whole.num_tokens):
        with pytest.raises(IndexError, match="outside"):
            cache.take(np.array([0, bad]))


def test_sentences_tile_each_document(tokenizer, tmp_path):
    config = DataConfig(**(vars(CONFIG) | {"sentences": True}))
    cache = open_cache(build_cache(config, tokenizer, tmp_path / "c", quiet), "train", verify=True)
    texts = [d.text for split, d in split_documents(config) if split == "train"]
    assert cache.counts["sentences"] == len(cache.sentence_offsets) - 1
    assert cache.doc_sentences[-1] == cache.counts["sentences"]
    for n, text in enumerate(texts):
        first, last = cache.doc_sentences[n : n + 2]
        starts = cache.sentence_offsets[first:last]
        assert starts[0] == cache.doc_offsets[n] + 1  # after BOS
        ends = [*starts[1:], cache.doc_offsets[n + 1] - 1]  # before EOS
        found = [
            tokenizer.decode(cache.take(np.arange(a, b))) for a, b in zip(starts, ends, strict=True)
        ]
        assert found == split_sentences(text)
    assert cache.sentence_offsets[-1] == cache.num_tokens


def test_wide_vocabulary_and_no_eos(tmp_path):
    tokenizer = ByteTokenizer(sentinels=1 << 16)
    config = DataConfig(include=("json/*",), valid_fraction=0, append_eos=False)
    cache = open_cache(build_cache(config, tokenizer, tmp_path / "c", quiet), "train")
    assert cache.manifest["dtype"] == "<u4" and not cache.append_eos
    assert document(cache, 0)[0] == 2 and 3 not in document(cache, 0)


def test_workers_parts_and_processes_change_no_byte(tokenizer, plain, tmp_path, small_parts):
    started = []

    class Watched(encode.Workers):
        def __enter__(self):
            started.append(self)
            return super().__enter__()

    for workers in (1, 2):
        config = DataConfig(**(vars(CONFIG) | {"workers": workers}))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(building, "Workers", Watched)
            made = build_cache(config, tokenizer, tmp_path / str(workers), quiet)
        assert contents(made) == contents(plain)
    assert len(started) == 1


def test_workers_import_no_jax():
    code = "import sys, flaxlm.data.cache, flaxlm.data.encode; print(sorted(sys.modules))"
    env = os.environ | {"PYTHONPATH": ROOT}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    modules = {name.split(".")[0] for name in eval(done.stdout)}
    slow = {"jax", "flax", "pyarrow", "datasets", "zstandard", "rich", "multiprocessing"}
    assert "numpy" in modules and not modules & slow


SLOW_BUILD = """
import sys, time
from flaxlm.data import cache, encode
from flaxlm.data.sources import DataConfig
from flaxlm.data.tokenizer import load_tokenizer
cache.PART_CHARS = 20_000
workers, tokenizer, directory = int(sys.argv[1]), load_tokenizer(sys.argv[2]), sys.argv[3]
if workers == 1:
    plain = encode.Encoder.__call__
    def slowly(self, job):
        time.sleep(0.05)
        plain(self, job)
    encode.Encoder.__call__ = slowly
config = DataConfig(include=("json/*", "email/*"), valid_fraction=0.2, test_fraction=0.2,
                    workers=workers)
plain_batches = cache._batches
def slow_batches(documents):
    for number, items in enumerate(plain_batches(documents)):
        if workers > 1 and number > 8:
            time.sleep(60)
        yield items
cache._batches = slow_batches
cache.build_cache(config, tokenizer, directory)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_build_goes_on_and_ends_with_the_same_bytes(
    tokenizer, plain, tmp_path, small_parts, monkeypatch, workers
):
    tokenizer.save(tmp_path / "tokenizer")
    target = tmp_path / "made" / "cache"
    command = [sys.executable, "-c", SLOW_BUILD, str(workers), str(tmp_path / "tokenizer")]
    env = os.environ | {"PYTHONPATH": ROOT}
    process = subprocess.Popen([*command, str(target)], env=env, stderr=subprocess.PIPE)
    parts = target.with_name(".cache.parts")
    deadline = time.monotonic() + 30
    enough = 5 if workers == 1 else 9  # then both workers are idle, waiting for the parent
    while len(list(parts.glob("??????.npz"))) < enough:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.01)
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists()
    with pytest.raises(MissingInput, match="no token cache"):
        open_cache(target, "train")
    finished = {p.name: p.stat().st_mtime_ns for p in parts.glob("??????.npz")}
    (parts / "000001.npz").write_bytes(b"half a part")  # as a lost write would leave it
    del finished["000001.npz"]

    encoded = []
    once = encode.Encoder.__call__

    def watched(self, job):
        encoded.append(pathlib.Path(job.path).name)
        once(self, job)

    monkeypatch.setattr(encode.Encoder, "__call__", watched)
    config = DataConfig(**(vars(CONFIG) | {"workers": 1}))
    build_cache(config, tokenizer, target, quiet)
    assert contents(target) == contents(plain)
    assert "000001.npz" in encoded and not set(finished) & set(encoded) and len(finished) >= 4
    aside = (".lock", ".json")  # and what was verified
    assert [p.name for p in target.parent.iterdir() if not p.name.endswith(aside)] == ["cache"]
    while workers == 2 and any(pathlib.Path(f"/proc/{c}").exists() for c in children):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.01)
    assert workers == 1 or len(children) == 2


def test_dead_worker_is_an_error_not_a_hang(tokenizer, tmp_path, small_parts, monkeypatch):
    start = encode._Worker.__init__

    def killed(self, setup):
        start(self, setup)
        self._process.kill()

    monkeypatch.setattr(encode._Worker, "__init__", killed)
    config = DataConfig(**(vars(CONFIG) | {"workers": 2}))
    with pytest.raises(Preempted, match="encoding process died"):
        build_cache(config, tokenizer, tmp_path / "c", quiet)


def test_existing_cache_opens_at_once_and_is_reused(tokenizer, plain):
    before = (plain / "manifest.json").stat().st_mtime_ns
    start = time.process_time()
    for _ in range(10):
        build_cache(CONFIG, tokenizer, plain, quiet)
        open_cache(plain, "train", tokenizer.hash)
    assert (time.process_time() - start) / 10 < 0.05  # measured 0.004
    assert (plain / "manifest.json").stat().st_mtime_ns == before


def test_changed_source_is_tokenized_again_touched_is_not(tmp_path):
    tokenizer = ByteTokenizer()
    source = tmp_path / "a.txt"
    source.write_text("one")
    config = DataConfig(path=str(source), valid_fraction=0)
    made = build_cache(config, tokenizer, tmp_path / "c", quiet)
    first = open_cache(made, "train").hash
    inode = (made / "manifest.json").stat().st_ino
    os.utime(source, (1, 1))
    build_cache(config, tokenizer, made, quiet)
    assert (made / "manifest.json").stat().st_ino == inode
    source.write_text("two")
    build_cache(config, tokenizer, made, quiet)
    assert tokenizer.decode(document(open_cache(made, "train"), 0)) == "two"
    assert open_cache(made, "train").hash != first
    source.write_text("one")
    build_cache(config, tokenizer, made, quiet)
    assert open_cache(made, "train").hash == first
    source.unlink()
    with pytest.raises(MissingInput, match=r"a\.txt does not exist"):
        build_cache(config, tokenizer, made, quiet)


@pytest.mark.parametrize("name", ["train.tokens-00000.bin", "valid.documents.npy", "manifest.json"])
def test_damage_is_found(tokenizer, tmp_path, name):
    made = build_cache(CONFIG, tokenizer, tmp_path / "c", quiet)
    path = made / name
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 4
    for bad in (bytes(flipped), good[:-2], good + b"\0"):
        path.write_bytes(bad)
        with pytest.raises(DataError, match=f"{name} .*(damaged|does not match)"):
            open_cache(made, "train", verify=True)
    path.unlink()
    with pytest.raises((DataError, MissingInput), match=r"tokenize"):
        open_cache(made, "train")
    path.write_bytes(good)
    open_cache(made, "train", verify=True)


def test_other_tokenizer_is_refused(tokenizer, plain):
    with pytest.raises(Unsafe, match="tokenizer"):
        open_cache(plain, "train", ByteTokenizer().hash)
    with pytest.raises(Exception, match="did you mean 'valid'"):
        open_cache(plain, "vaild")


def test_empty_corpus_and_empty_splits(tokenizer, tmp_path):
    path = tmp_path / "a.txt"
    fields = {"path": str(path), "document": "line"}
    path.write_text("\n \n")
    with pytest.raises(DataError, match=r"corpus .* is empty"):
        build_cache(DataConfig(**fields), tokenizer, tmp_path / "c", quiet)
    path.write_text("one\ntwo\n")
    with pytest.raises(DataError, match=r"valid split of .* is empty.*tail"):
        build_cache(DataConfig(**fields), tokenizer, tmp_path / "c", quiet)
    tail = DataConfig(**fields, split="tail", valid_fraction=0.9)
    with pytest.raises(DataError, match=r"train split of .* is empty: lower"):
        build_cache(tail, tokenizer, tmp_path / "c", quiet)
    other = tmp_path / "b.txt"
    other.write_text("")
    with pytest.raises(DataError, match=r"valid split of .* is empty: check .*b\.txt"):
        config = DataConfig(**fields, split="file", valid_path=str(other))
        build_cache(config, tokenizer, tmp_path / "c", quiet)
    assert not list(tmp_path.glob(".*.parts"))


def test_losses_are_counted_and_reported(tokenizer, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a\u2581b\n\u2581\n\nx\nx\ny")
    config = DataConfig(path=str(path), document="line", dedup=True, min_chars=1, valid_fraction=0)
    said = []
    cache = open_cache(build_cache(config, tokenizer, tmp_path / "c", said.append), "train")
    assert cache.counts["unrecoverable"] == 2 and cache.counts["documents"] == 4
    assert cache.manifest["cleaning"]["dropped"] == {"empty": 1, "duplicate": 1}
    assert any("2 characters U+2581" in line for line in said)
    assert any("dropped: 1 duplicate" in line for line in said)


def test_unwritable_place_is_a_storage_error(tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write the token cache"):
        build_cache(CONFIG, tokenizer, tmp_path / "file" / "c", quiet)
    with pytest.raises(StorageError, match="cannot write"):
        prepare(CONFIG, TokenizerConfig(kind="byte"), tmp_path / "file", quiet)


def test_two_builds_of_one_cache_wait_for_each_other(tokenizer, plain, tmp_path):
    code = (
        "import sys; from flaxlm.data import cache, sources, tokenizer;"
        "c = sources.DataConfig(include=('json/*', 'email/*'), valid_fraction=.2,"
        " test_fraction=.2);"
        "cache.build_cache(c, tokenizer.load_tokenizer(sys.argv[1]), sys.argv[2])"
    )
    tokenizer.save(tmp_path / "tokenizer")
    arguments = [str(tmp_path / "tokenizer"), str(tmp_path / "made" / "c")]
    command = [sys.executable, "-c", code, *arguments]
    env = os.environ | {"PYTHONPATH": ROOT}
    both = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0, 0], said
    assert sum("train: " in text for text in said) == 1  # one built
    assert contents(tmp_path / "made" / "c") == contents(plain)
