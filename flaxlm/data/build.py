"""Building a token cache: parts, encoded in parallel, joined into shards and put in place.

Parts are cut by characters alone, so that neither the number of workers nor a `kill -9` changes
a byte of the result: finished parts are reused, the shards are assembled aside, and one rename
makes the cache appear.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

import numpy as np

from flaxlm import files
from flaxlm.data import unknown
from flaxlm.data.clean import Cleaner
from flaxlm.data.encode import COUNTS, Encoder, Job, Workers, whole
from flaxlm.data.shards import FORMAT, SplitWriter, read_manifest, write_manifest
from flaxlm.data.sources import DataConfig, Source, sources
from flaxlm.data.split import passes, split_documents
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.errors import DataError, FlaxlmError, MissingInput
from flaxlm.progress import Progress

PART_CHARS = 2_000_000
# For so few parts a worker process would cost more than it saves (0.3 s to start one).
PARTS_IN_PROCESS = 2
# What does not change the cache's contents: where it lies, how fast it is made and read.
_IRRELEVANT = ("cache_dir", "workers", "threads", "prefetch", "weights", "max_line_bytes")


def relevant(config: DataConfig) -> dict:
    """Return what decides the cache's contents, as JSON gives it back."""
    facts = {k: v for k, v in dataclasses.asdict(config).items() if k not in _IRRELEVANT}
    return json.loads(json.dumps(facts | {"path": config.paths}))


def all_sources(config: DataConfig) -> list[Source]:
    """Return every source that any split reads."""
    splits = config.split_names() if config.split == "file" else ["train"]
    return [source for split in splits for source in sources(config, split)]


def stat(path: str) -> tuple[int, int]:
    """Return a file's size in bytes and its time of change in nanoseconds."""
    try:
        entry = os.stat(path)
    except OSError as error:
        raise MissingInput(f"cannot read {path}: {error.strerror}") from None
    return entry.st_size, entry.st_mtime_ns


def describe(config: DataConfig) -> dict:
    """Size, time and digest of every file, and one hash over the contents in order."""
    facts = []
    for source in all_sources(config):
        for part in source.parts():
            size, mtime = stat(part)
            digest = files.sha256(part)
            facts.append({"path": part, "bytes": size, "mtime_ns": mtime, "sha256": digest})
    contents = "".join(entry["sha256"] for entry in facts)
    return {"hash": hashlib.sha256(contents.encode()).hexdigest(), "files": facts}


def build(
    config: DataConfig,
    tokenizer: Tokenizer,
    directory: pathlib.Path,
    report: Callable[[str], None],
    shard_tokens: int,
) -> None:
    """Build the cache at `directory`, from the parts of an interrupted build if there are any."""
    source = describe(config)
    encoder = Encoder(tokenizer, config.sentences, config.append_eos)
    parts_directory = directory.with_name(f".{directory.name}.parts")
    identity = {
        "source": source["hash"],
        "tokenizer": tokenizer.hash,
        "config": relevant(config),
        "part_chars": PART_CHARS,
    }
    _open_parts(parts_directory, identity)
    tokenizer.save(parts_directory / "tokenizer")
    cleaner = Cleaner(config)
    size = sum(entry["bytes"] for entry in source["files"])
    try:
        todo = size * passes(config)
        with Progress(f"tokenizing into {directory}", todo, unit="MB", scale=1e6) as progress:
            parts, splits = _encode_parts(config, cleaner, encoder, parts_directory, progress.add)
        _check_splits(config, splits)
    except FlaxlmError as error:
        if isinstance(error, DataError | MissingInput):
            shutil.rmtree(parts_directory, ignore_errors=True)
        raise
    manifest = {
        "format": FORMAT,
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


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _open_parts(directory: pathlib.Path, identity: dict) -> None:
    """Keep the parts of an interrupted build of the same cache, drop those of another."""
    marker = directory / "build.json"
    try:
        same = json.loads(marker.read_bytes()) == identity
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        files.replace(marker, json.dumps(identity))


def _encode_parts(config, cleaner, encoder, directory, progress):
    """Encode what is not yet encoded; return all part files in order and the splits they hold."""
    parts: list[pathlib.Path] = []
    splits: set[str] = set()
    waiting: list[Job] = []
    count = config.workers or cores()
    with contextlib.ExitStack() as stack:
        workers = None
        for items in _batches(split_documents(config, cleaner, progress)):
            splits.update(split for split, _ in items)
            parts.append(directory / f"{len(parts):06d}.npz")
            if whole(parts[-1]):
                continue
            waiting.append(Job(str(parts[-1]), items))
            if workers is None and len(waiting) > PARTS_IN_PROCESS and count > 1:
                tokenizer_directory = str(directory / "tokenizer")
                workers = stack.enter_context(Workers(count, encoder, tokenizer_directory))
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
                "hash": f"raise its fraction, use data.split='tail', or {drop}",
                "tail": f"raise its fraction, or {drop}",
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
        writer = SplitWriter(aside, split, config.sentences, manifest["shard_tokens"])
        for path in parts:
            with np.load(path) as part:
                if f"{split}.counts" not in part:
                    continue
                names = [n for n in part.files if n.startswith(f"{split}.")]
                arrays = {n.removeprefix(f"{split}."): part[n] for n in names}
            writer.add(arrays, dict(zip(COUNTS, arrays["counts"].tolist(), strict=True)))
        writer.close()
        splits[split] = {"counts": writer.counts, "shards": writer.shards}
        written |= writer.files
    files.fsync_tree(aside)
    write_manifest(aside, manifest | {"splits": splits, "files": written})
    old = directory.with_name(f".{directory.name}.old")
    if directory.exists():
        shutil.rmtree(old, ignore_errors=True)
        directory.rename(old)
    files.rename(aside, directory)
    shutil.rmtree(old, ignore_errors=True)


def _summarize(directory: pathlib.Path, config: DataConfig, tokenizer: Tokenizer, report) -> None:
    manifest = read_manifest(directory)
    for split, facts in manifest["splits"].items():
        counts = facts["counts"]
        report(
            f"{split}: {counts['documents']:,} documents, {counts['tokens']:,} tokens, "
            f"{counts['bytes']:,} bytes"
        )
        share, such = counts["unknown"] / counts["tokens"], ""
        if share > unknown.SHARE:
            texts = (document.text for part, document in split_documents(config) if part == split)
            such = f", such as {unknown.examples_of(tokenizer, texts)}"
        for name, meaning in (
            ("unknown", f"unknown tokens ({share:.1%}{such}): this text does not round-trip"),
            ("unrecoverable", "characters U+2581, which SentencePiece decodes to spaces"),
        ):
            if counts[name]:
                report(f"{split}: warning: {counts[name]:,} {meaning}")
    for name, count in sorted(manifest["cleaning"]["dropped"].items()):
        report(f"dropped: {count:,} {name} documents")
