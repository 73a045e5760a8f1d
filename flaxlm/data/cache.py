"""Making or reusing the tokenizer and the token cache of a run.

Both are reused as long as what decides them is the same: the config that matters, the tokenizer's
hash, and the digests of the source files.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator

from flaxlm import files
from flaxlm.data.build import all_sources, build, relevant, stat
from flaxlm.data.shards import (
    MANIFEST,
    SHARD_TOKENS,
    read_manifest,
)
from flaxlm.data.sources import DataConfig
from flaxlm.data.split import passes, split_documents
from flaxlm.data.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer, train_tokenizer
from flaxlm.errors import StorageError, Unsafe
from flaxlm.progress import Progress


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def prepare(
    config: DataConfig,
    tokenizer_config: TokenizerConfig,
    workdir: str | os.PathLike,
    report: Callable[[str], None] = _report,
) -> tuple[Tokenizer, list[pathlib.Path]]:
    """Return the tokenizer and the cache directory of each corpus, made where not there.

    There is one corpus, or with `data.weights` one for each path. When everything is there this
    takes milliseconds.
    """
    tokenizer = prepare_tokenizer(config, tokenizer_config, workdir, report)
    directories = []
    for corpus in config.corpora():
        directory = cache_directory(corpus, tokenizer, workdir)
        directories.append(build_cache(corpus, tokenizer, directory, report))
    return tokenizer, directories


def cache_directory(
    config: DataConfig, tokenizer: Tokenizer, workdir: str | os.PathLike
) -> pathlib.Path:
    """Return where one corpus's cache lies: named by the config that matters and the tokenizer."""
    key = hashlib.sha256(json.dumps([relevant(config), tokenizer.hash]).encode()).hexdigest()
    return pathlib.Path(config.cache_dir or pathlib.Path(workdir) / "cache") / key[:16]


def prepare_tokenizer(
    config: DataConfig,
    tokenizer_config: TokenizerConfig,
    workdir: str | os.PathLike,
    report: Callable[[str], None] = _report,
) -> Tokenizer:
    """Return the tokenizer in WORKDIR/tokenizer, loaded or trained where there is none.

    It is trained on the train split of all corpora (`char` on every split, since it has to know
    all characters).
    """
    directory = pathlib.Path(workdir) / "tokenizer"
    asked = dataclasses.asdict(tokenizer_config)
    if (directory / "tokenizer.json").is_file():
        tokenizer = load_tokenizer(directory)
        _check_tokenizer(directory, asked)
        return tokenizer
    if tokenizer_config.path:
        tokenizer = load_tokenizer(tokenizer_config.path, tokenizer_config.sentinels)
    else:
        texts = [s for corpus in config.corpora() for s in all_sources(corpus)]
        size = sum(os.path.getsize(part) for source in texts for part in source.parts())
        title = f"training the {tokenizer_config.kind} tokenizer"
        with Progress(title, size * passes(config), unit="MB", scale=1e6) as progress:
            texts = _texts(config, tokenizer_config.kind == "char", progress.add)
            tokenizer = train_tokenizer(tokenizer_config, texts)
        report(f"tokenizer: {tokenizer.kind}, {tokenizer.vocab_size:,} ids, in {directory}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        files.replace(directory / "config.json", json.dumps(asked, indent=1) + "\n")
    except OSError as error:
        raise StorageError(f"cannot write in {directory}: {error.strerror}") from None
    tokenizer.save(directory)
    return tokenizer


def _check_tokenizer(directory: pathlib.Path, asked: dict) -> None:
    """Refuse a config that asks for another tokenizer than the one in `directory`."""
    with contextlib.suppress(OSError, ValueError):
        made = json.loads((directory / "config.json").read_bytes())
        changed = [k for k in asked if made.get(k, asked[k]) != asked[k]]
        if changed:
            differ = ", ".join(f"tokenizer.{k}={asked[k]!r} (was {made[k]!r})" for k in changed)
            raise Unsafe(
                f"{directory} was made with another config: {differ}; take another directory, or "
                f"delete it and what was trained with it"
            )


def _texts(config: DataConfig, every_split: bool, progress) -> Iterator[str]:
    for corpus in config.corpora():
        for split, document in split_documents(corpus, progress=progress):
            if every_split or split == "train":
                yield document.text


def build_cache(
    config: DataConfig,
    tokenizer: Tokenizer,
    directory: str | os.PathLike,
    report: Callable[[str], None] = _report,
    shard_tokens: int = SHARD_TOKENS,
) -> pathlib.Path:
    """Return `directory` with the cache of one corpus in it, built where missing or outdated.

    An interrupted build goes on where it stopped; two builds of one cache wait for each other. An
    empty split is a DataError.
    """
    directory = pathlib.Path(directory).absolute()
    if _current(directory, config, tokenizer):
        return directory
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _locked(directory.with_name(f".{directory.name}.lock"), report):
            if not _current(directory, config, tokenizer):
                build(config, tokenizer, directory, report, shard_tokens)
    except OSError as error:
        raise StorageError(
            f"cannot write the token cache {directory}: {error.strerror or error}; free some "
            "space or set data.cache_dir"
        ) from None
    return directory


@contextlib.contextmanager
def _locked(path: pathlib.Path, report) -> Iterator[None]:
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"waiting for another process that builds {path.name[1:-5]}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # the lock goes with the file, and with the process if it dies


def _current(directory: pathlib.Path, config: DataConfig, tokenizer: Tokenizer) -> bool:
    """Return whether the cache is there and made with this config, this tokenizer and these files.

    A file of the same size and time is taken as unchanged; else its digest decides.
    """
    current = all_sources(config)  # raises for what is missing
    if not (directory / MANIFEST).is_file():
        return False
    manifest = read_manifest(directory)
    if manifest["tokenizer"] != tokenizer.hash or manifest["config"] != relevant(config):
        return False
    names = [part for source in current for part in source.parts()]
    known = manifest["source"]["files"]
    if names != [facts["path"] for facts in known]:
        return False
    return all(
        stat(facts["path"]) == (facts["bytes"], facts["mtime_ns"])
        or files.sha256(facts["path"]) == facts["sha256"]
        for facts in known
    )
