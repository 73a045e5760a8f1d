"""Making or reusing the tokenizer and the token cache of a run.

Both are reused as long as what decides them is the same: the config that matters, the tokenizer's
hash, and the digests of the source files.

A cache is built from parts, encoded in parallel. They are cut by characters alone, so that neither
the number of workers nor a `kill -9` changes a byte of the result: finished parts are reused, the
shards are assembled aside, and one rename makes the cache appear.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from flaxlm import files
from flaxlm.data import shards, unknown, verified
from flaxlm.data.encode import Encoder, Job, Workers
from flaxlm.data.sources import DataConfig, source_files
from flaxlm.data.split import Cleaner, passes, split_documents
from flaxlm.data.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer, train_tokenizer
from flaxlm.errors import DataError, MissingInput, StorageError, Unsafe, cause_of, raise_scarce
from flaxlm.progress import Progress, note, pulse
from flaxlm.untrusted import file_bytes, parse_json

PART_CHARS = 2_000_000
# For so few parts a worker process would cost more than it saves (0.3 s to start one).
PARTS_IN_PROCESS = 2
# What does not change the cache's contents: where it lies, how fast it is made and read.
_IRRELEVANT = ("cache_dir", "verify", "workers", "threads", "prefetch", "weights")
_IRRELEVANT += ("max_line_bytes",)


def prepare(
    config: DataConfig,
    tokenizer_config: TokenizerConfig,
    workdir: str | os.PathLike,
    report: Callable[[str], None] = note,
    build: bool = True,
) -> tuple[Tokenizer, list[pathlib.Path]]:
    """Return the tokenizer and the cache directory of each corpus, made where not there.

    There is one corpus, or with `data.weights` one for each path. Without `build` another process
    has just made them, and Unsafe says which file is not the same here. DataError for a cache that
    is not what was written, see `verified.verify`.
    """
    tokenizer = prepare_tokenizer(config, tokenizer_config, workdir, report)
    directories = []
    for corpus in config.corpora():
        directory = cache_directory(corpus, tokenizer, workdir)
        if not build and not _current(directory, corpus, tokenizer):
            raise Unsafe(_other_files(directory, corpus))
        directories.append(build_cache(corpus, tokenizer, directory, report))
        written = shards.read_manifest(directory)["files"]
        verified.verify(directories[-1], written, config.verify)
    return tokenizer, directories


def prepare_tokenizer(
    config: DataConfig,
    tokenizer_config: TokenizerConfig,
    workdir: str | os.PathLike,
    report: Callable[[str], None] = note,
    texts: Callable[[], Iterable[str]] | None = None,
) -> Tokenizer:
    """Return the tokenizer in WORKDIR/tokenizer, loaded or trained where there is none.

    It is trained on `texts`, or on the train split of all corpora (`char` on every split, since it
    has to know all characters).
    """
    directory = pathlib.Path(workdir) / "tokenizer"
    asked = dataclasses.asdict(tokenizer_config)
    if (directory / "tokenizer.json").is_file():
        tokenizer = load_tokenizer(directory)
        _check_tokenizer(directory, asked)
        return tokenizer
    if tokenizer_config.path:
        tokenizer = load_tokenizer(tokenizer_config.path, tokenizer_config.sentinels)
    elif texts:
        tokenizer = train_tokenizer(tokenizer_config, texts())
    else:
        names = [name for corpus in config.corpora() for name in source_files(corpus)]
        todo = sum(map(os.path.getsize, names)) * passes(config)
        title = f"training the {tokenizer_config.kind} tokenizer"
        with Progress(title, todo, unit="MB", scale=1e6) as progress:
            every = tokenizer_config.kind == "char"
            tokenizer = train_tokenizer(tokenizer_config, _texts(config, every, progress.add))
        report(f"tokenizer: {tokenizer.kind}, {tokenizer.vocab_size:,} ids, in {directory}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        files.replace(directory / "config.json", json.dumps(asked, indent=1) + "\n")
    except OSError as error:
        raise StorageError(f"cannot write in {directory}: {cause_of(error, directory)}") from None
    tokenizer.save(directory)
    return tokenizer


def _check_tokenizer(directory: pathlib.Path, asked: dict) -> None:
    """Refuse a config that asks for another tokenizer than the one in `directory`."""
    with contextlib.suppress(OSError, ValueError):
        before = parse_json(file_bytes(directory / "config.json"))
        changed = [k for k in asked if before.get(k, asked[k]) != asked[k]]
        if changed:
            differ = ", ".join(f"tokenizer.{k}={asked[k]!r} (was {before[k]!r})" for k in changed)
            raise Unsafe(
                f"{directory} was made with another config: {differ}; take another directory, or "
                "delete it and what was trained with it"
            )


def _texts(config: DataConfig, every_split: bool, progress) -> Iterator[str]:
    for corpus in config.corpora():
        for split, document in split_documents(corpus, progress=progress):
            if every_split or split == "train":
                yield document.text


def cache_directory(
    config: DataConfig, tokenizer: Tokenizer, workdir: str | os.PathLike
) -> pathlib.Path:
    """Return where one corpus's cache lies: named by the config that matters and the tokenizer."""
    key = hashlib.sha256(json.dumps([_relevant(config), tokenizer.hash]).encode()).hexdigest()
    return pathlib.Path(config.cache_dir or pathlib.Path(workdir) / "cache") / key[:16]


def _relevant(config: DataConfig) -> dict:
    """Return what decides the cache's contents, as JSON gives it back."""
    facts = {k: v for k, v in dataclasses.asdict(config).items() if k not in _IRRELEVANT}
    return json.loads(json.dumps(facts | {"path": config.paths}))


def build_cache(
    config: DataConfig,
    tokenizer: Tokenizer,
    directory: str | os.PathLike,
    report: Callable[[str], None] = note,
    shard_tokens: int = shards.SHARD_TOKENS,
) -> pathlib.Path:
    """Return `directory` with the cache of one corpus in it, built where missing or outdated.

    An interrupted build goes on where it stopped; two builds of one cache wait for each other. An
    empty split is a DataError.
    """
    directory = pathlib.Path(directory).absolute()
    if _current(directory, config, tokenizer):
        for kind in ("parts", "new", "old"):  # of a build that was killed when the cache was there
            shutil.rmtree(directory.with_name(f".{directory.name}.{kind}"), ignore_errors=True)
        return directory
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        path = directory.with_name(f".{directory.name}.lock")
        with open(files.handle(path, os.O_WRONLY | os.O_CREAT), "wb") as lock:
            # The lock goes with the file, and with the process if it dies.
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                report(f"waiting for another process that builds {directory.name}")
                with pulse.waiting(f"the wait for another process that builds {directory.name}"):
                    fcntl.flock(lock, fcntl.LOCK_EX)
            if not _current(directory, config, tokenizer):
                _build(config, tokenizer, directory, report, shard_tokens)
    except OSError as error:
        # At most an id of two bytes for each byte, in the parts and in the shards.
        needed = 4 * sum(map(os.path.getsize, source_files(config)))
        raise StorageError(
            f"cannot write the token cache {directory}: {cause_of(error, directory, needed)}; free "
            "some space or set data.cache_dir"
        ) from None
    return directory


def _current(directory: pathlib.Path, config: DataConfig, tokenizer: Tokenizer) -> bool:
    """Return whether the cache is there and made with this config, this tokenizer and these files.

    A file that nobody has touched since it was read on this machine is taken as unchanged; else
    its digest decides.
    """
    names = source_files(config)  # raises for what is missing
    if not (directory / shards.MANIFEST).is_file():
        return False
    manifest = shards.read_manifest(directory)
    if manifest["tokenizer"] != tokenizer.hash or manifest["config"] != _relevant(config):
        return False
    facts = manifest["source"]["files"]
    if names != [fact["path"] for fact in facts]:
        return False
    with _reading(directory) as known:
        return all(
            known.blocks(fact["path"], fact["sha256"]) is not None
            or known.read(fact["path"]) == fact["sha256"]
            for fact in facts
        )


def _other_files(directory: pathlib.Path, config: DataConfig) -> str:
    """Return the line about files that are others here than where a cache was made."""
    known = {}
    if (directory / shards.MANIFEST).is_file():
        facts = shards.read_manifest(directory)["source"]["files"]
        known = {file["path"]: file["sha256"] for file in facts}
    names = [name for name in source_files(config) if known.get(name) != files.sha256(name)]
    return (
        f"{', '.join(names[:3]) or directory} is not what process 0 reads there; let all processes "
        "read the same files"
    )


@contextlib.contextmanager
def _reading(directory: pathlib.Path) -> Iterator[verified.Verified]:
    """Yield what is known of a cache's source files, and keep what is read of them within."""
    known = verified.Verified(directory)
    try:
        yield known
    except OSError as error:
        raise_scarce(error)
        raise MissingInput(f"cannot read {error.filename}: {error.strerror}") from None
    finally:
        known.save()


def _build(config: DataConfig, tokenizer, directory: pathlib.Path, report, shard_tokens) -> None:
    """Build the cache at `directory`, from the parts of an interrupted build if there are any."""
    source_facts = []
    with _reading(directory) as known:
        for path in source_files(config):
            entry, digest = os.stat(path), known.read(path)
            size, mtime = entry.st_size, entry.st_mtime_ns
            source_facts.append({"path": path, "bytes": size, "mtime_ns": mtime, "sha256": digest})
    contents = "".join(facts["sha256"] for facts in source_facts)
    source = {"hash": hashlib.sha256(contents.encode()).hexdigest(), "files": source_facts}
    encoder = Encoder(tokenizer, config.sentences, config.append_eos)
    parts_directory = directory.with_name(f".{directory.name}.parts")
    identity = {"source": source["hash"], "tokenizer": tokenizer.hash}
    identity |= {"config": _relevant(config), "part_chars": PART_CHARS}
    _open_parts(parts_directory, identity)
    tokenizer.save(parts_directory / "tokenizer")
    cleaner = Cleaner(config)
    todo = sum(facts["bytes"] for facts in source_facts) * passes(config)
    try:
        with Progress(f"tokenizing into {directory}", todo, unit="MB", scale=1e6) as progress:
            parts, splits = _encode_parts(config, cleaner, encoder, parts_directory, progress.add)
        _check_splits(config, splits)
    except (DataError, MissingInput):
        shutil.rmtree(parts_directory, ignore_errors=True)
        raise
    manifest = {
        "format": shards.FORMAT,
        "tokenizer": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "append_eos": config.append_eos,
        "sentences": config.sentences,
        "dtype": encoder.dtype.newbyteorder("<").str,
        "shard_tokens": shard_tokens,
        "config": identity["config"],
        "source": source,
        "cleaning": {"dropped": dict(cleaner.dropped), "removed": dict(cleaner.removed)},
    }
    _assemble(parts, config, manifest, directory)
    shutil.rmtree(parts_directory)
    _summarize(directory, config, tokenizer, report)


def _open_parts(directory: pathlib.Path, identity: dict) -> None:
    """Keep the parts of an interrupted build of the same cache, drop those of another."""
    marker = directory / "build.json"
    try:
        same = parse_json(file_bytes(marker), whole=False) == identity
    except (OSError, ValueError) as error:
        raise_scarce(error)
        same = False
    if directory.is_symlink():  # none is ever made here
        directory.unlink()
    if not same:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        files.replace(marker, json.dumps(identity))


def _encode_parts(config, cleaner, encoder, directory, progress):
    """Encode what is not yet encoded; return all part files in order and the splits they hold."""
    parts: list[pathlib.Path] = []
    splits: set[str] = set()
    waiting: list[Job] = []
    affinity = getattr(os, "sched_getaffinity", None)  # not everywhere
    count = config.workers or (len(affinity(0)) if affinity else os.cpu_count() or 1)
    with contextlib.ExitStack() as stack:
        workers = None
        for items in _batches(split_documents(config, cleaner, progress)):
            splits.update(split for split, _ in items)
            parts.append(directory / f"{len(parts):06d}.npz")
            if verified.is_whole(parts[-1]):
                continue
            waiting.append(Job(str(parts[-1]), items))
            if workers is None and len(waiting) > PARTS_IN_PROCESS and count > 1:
                workers = stack.enter_context(Workers(count, encoder, str(directory / "tokenizer")))
            if workers is not None:
                for job in waiting:
                    workers.submit(job)
                waiting.clear()
            elif count == 1:
                encoder(waiting.pop())
        for job in waiting:
            encoder(job)
    return parts, splits


def _batches(documents) -> Iterator[list[tuple[str, str]]]:
    """Group (split, text) pairs to PART_CHARS characters each."""
    items, size = [], 0
    for split, document in documents:
        items.append((split, document.text))
        size += len(document.text)
        if size >= PART_CHARS:
            yield items
            items, size = [], 0
    if items:
        yield items


def _check_splits(config: DataConfig, splits: set[str]) -> None:
    where = ", ".join(config.paths)
    if not splits:
        raise DataError(f"the corpus {where} is empty: no document is left after cleaning")
    for split in config.cached_splits():
        if split not in splits:
            drop = "set it to 0" + ", and eval.split=''" * (split == "valid")
            fix = {
                "hash": f"raise data.{split}_fraction, use data.split='tail', or {drop}",
                "tail": f"raise data.{split}_fraction, or {drop}",
                "file": f"check {getattr(config, f'{split}_path', '') or where}",
            }[config.split]
            if split == "train" and config.split != "file":
                fix = "lower data.valid_fraction and data.test_fraction"
            raise DataError(f"the {split} split of {where} is empty: {fix}")


def _assemble(parts, config, manifest, directory) -> None:
    """Join the parts into shards aside, then put the cache in place with one rename."""
    aside = directory.with_name(f".{directory.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    splits, written = {}, {}
    for split in config.cached_splits():
        arrays = _arrays(parts, f"{split}.")
        splits[split], facts = shards.write_split(aside, split, arrays, manifest["shard_tokens"])
        written |= facts
    files.fsync_tree(aside)
    shards.write_manifest(aside, manifest | {"splits": splits, "files": written})
    old = directory.with_name(f".{directory.name}.old")
    if directory.exists():
        shutil.rmtree(old, ignore_errors=True)
        directory.rename(old)
    files.rename(aside, directory)
    shutil.rmtree(old, ignore_errors=True)


def _arrays(parts: list[pathlib.Path], prefix: str) -> Iterator[dict[str, np.ndarray]]:
    """Yield the arrays of each part whose names begin with `prefix`, without it."""
    for path in parts:
        with np.load(path) as part:
            names = [name for name in part.files if name.startswith(prefix)]
            arrays = {name.removeprefix(prefix): part[name] for name in names}
        if arrays:
            yield arrays


def _summarize(directory: pathlib.Path, config: DataConfig, tokenizer: Tokenizer, report) -> None:
    manifest = shards.read_manifest(directory)
    for split, facts in manifest["splits"].items():
        counts = facts["counts"]
        amounts = ", ".join(f"{counts[n]:,} {n}" for n in ("documents", "tokens", "bytes"))
        report(f"{split}: {amounts}")
        share, examples = counts["unknown"] / counts["tokens"], ""
        if share > unknown.SHARE:
            texts = (document.text for part, document in split_documents(config) if part == split)
            examples = f", such as {unknown.examples_of(tokenizer, texts)}"
        for name, meaning in (
            ("unknown", f"unknown tokens ({share:.1%}{examples}): this text does not round-trip"),
            ("unrecoverable", "characters U+2581, which SentencePiece decodes to spaces"),
        ):
            if counts[name]:
                report(f"{split}: warning: {counts[name]:,} {meaning}")
    for name, count in sorted(manifest["cleaning"]["dropped"].items()):
        report(f"dropped: {count:,} {name} documents")
