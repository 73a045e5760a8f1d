"""Where text comes from: files, globs, folders, `datasets` directories, the standard library.

Documents are read a few at a time; every refusal names the file and the line, row or byte.
"""

import contextlib
import contextvars
import dataclasses
import fnmatch
import glob
import os
import pathlib
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from flaxlm import files
from flaxlm.data import tables
from flaxlm.data.tables import SUFFIXES, TABLES, format_of, stem_of
from flaxlm.errors import ConfigError, DataError, MissingInput, check_range, choose

FORMATS = ("auto", "text", *TABLES, "conll", "conllu")
SPLITS = ("train", "valid", "test")
# What a folder is searched for; CSV and TSV files are named by a path.
SOUGHT = tuple(end for end, form in SUFFIXES.items() if form in ("text", "jsonl", "parquet"))
STDLIB = "stdlib"
# Tests and vendored wheels are not library text; the build's own settings name the machine.
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo"}
SKIPPED_FOLDERS |= {"site-packages", "dist-packages", "ensurepip", "lib-dynload", "__pycache__"}
SKIPPED_FILES = ("_sysconfigdata_*", "_sysconfig_vars_*")
_SOUGHT: contextvars.ContextVar[dict | None] = contextvars.ContextVar("sought", default=None)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which text is read, what is cleaned and held out, and where its token cache lies.

    `path` is a file, a glob, a folder, a `datasets` directory or `stdlib`, or a tuple of these.
    A tuple is one corpus, unless `weights` are given: then each path is a corpus, and a cache, of
    its own. `include` and `exclude` are patterns on file names (for `stdlib` and folders on the
    name below them, such as `json/*`).

    Splits: `hash` sends a document to a split by the hash of its text, so that equal documents
    are never on both sides; `tail` cuts the last share of all characters off, through the
    document it falls in; `file` takes them from `valid_path` and `test_path`; with `whole` every
    split is all of it, for sets that nothing is trained on.
    """

    path: str | tuple[str, ...] = STDLIB  # file, glob, folder, 'stdlib'; or a tuple
    weights: tuple[float, ...] = ()  # share of the training rows that each of several paths gets
    format: str = "auto"  # text, jsonl, csv, tsv, parquet, datasets, conll, conllu; auto: by ending
    field: str = "text"  # column of a table that holds the text
    document: str = "file"  # what a document of plain text is: file, line, paragraph
    include: tuple[str, ...] = ()  # patterns of file names to read; empty: all
    exclude: tuple[str, ...] = ()  # patterns of file names to leave out
    nfc: bool = False  # bring text to Unicode's normal form C
    strip_control: bool = False  # remove control characters
    dedup: bool = False  # drop documents that were seen before
    min_chars: int = 0  # drop shorter documents
    split: str = "hash"  # hash, tail, file, whole: see above
    valid_fraction: float = 0.01  # share held out by hash and tail
    test_fraction: float = 0.0  # likewise, to be tested on
    valid_path: str = ""  # held-out file of split=file
    test_path: str = ""  # likewise, to be tested on
    sentences: bool = False  # keep sentence boundaries, for next-sentence prediction
    append_eos: bool = True  # end every document with EOS
    cache_dir: str = ""  # default: WORKDIR/cache
    verify: bool = False  # read token caches whole at every start; else once on each machine
    workers: int = 0  # encoding processes; 0 is one a core
    threads: int = 2  # of the batch loader
    prefetch: int = 8  # batches made ahead
    max_line_bytes: int = 64 << 20  # a longer line is refused

    def __post_init__(self):
        for name in ("path", "weights", "include", "exclude"):  # json and flags give lists
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        choose("data.format", self.format, FORMATS)
        choose("data.document", self.document, ("file", "line", "paragraph"))
        choose("data.split", self.split, ("hash", "file", "tail", "whole"))
        if not self.path or not all(self.paths):
            raise ConfigError("data.path is empty; name a file, a glob, a folder or 'stdlib'")
        if self.weights and (len(self.weights) != len(self.paths) or min(self.weights) <= 0):
            raise ConfigError(
                f"data.weights={self.weights} must be one positive number for each of several "
                f"paths, and data.path has {len(self.paths)}"
            )
        valid, test = self.valid_fraction, self.test_fraction
        if min(valid, test) < 0 or valid + test >= 1:
            raise ConfigError(
                f"data.valid_fraction={valid} and data.test_fraction={test} must be 0 or more and "
                "leave something to train on"
            )
        if self.split == "file" and not self.valid_path:
            raise ConfigError("data.split='file' needs data.valid_path, the held-out file")
        if self.split != "file" and (self.valid_path or self.test_path):
            both = {"valid_path": self.valid_path, "test_path": self.test_path}
            given = " and ".join(f"data.{key}={path!r}" for key, path in both.items() if path)
            raise ConfigError(
                f"data.valid_path and data.test_path need data.split='file', not {self.split!r}; "
                f"set that, or leave {given} out"
            )
        check_range("data", self, "threads", "prefetch", "workers", "min_chars")
        check_range("data", self, "max_line_bytes", low=1)

    @property
    def paths(self) -> tuple[str, ...]:
        """`path` as a tuple."""
        return (self.path,) if isinstance(self.path, str) else self.path

    def corpora(self) -> list["DataConfig"]:
        """Return one config a corpus: itself, or with `weights` one for each path."""
        if not self.weights:
            return [self]
        return [dataclasses.replace(self, path=path, weights=()) for path in self.paths]

    def cached_splits(self) -> list[str]:
        """Return the splits that a token cache holds; with `whole` one that stands for them all."""
        return ["train"] if self.split == "whole" else self.split_names()

    def split_names(self) -> list[str]:
        """Return the splits that this config makes, train first."""
        if self.split == "whole":
            return list(SPLITS)
        valid = bool(self.valid_path if self.split == "file" else self.valid_fraction)
        test = bool(self.test_path if self.split == "file" else self.test_fraction)
        return ["train", *["valid"] * valid, *["test"] * test]

    def lacks(self, split: str) -> str:
        """Return what an error says of a split that this config does not make."""
        key, value = ("path", "empty") if self.split == "file" else ("fraction", "0")
        return (
            f"there is no {split} split, data.{split}_{key} is {value}: set it, or choose one of: "
            f"{', '.join(self.split_names())}; eval.split='' trains without evaluation, and "
            "data.split='whole' evaluates a task on all of its rows"
        )


@dataclasses.dataclass(frozen=True)
class Source:
    """One file, or one `datasets` directory, and how to read it."""

    path: str
    format: str  # a row of FORMATS but auto
    document: str


class Document(NamedTuple):
    """A unit of text; `id` is its file, with `:` and line or row where a file holds several."""

    id: str
    text: str


def sources(config: DataConfig, split: str = "train") -> list[Source]:
    """Return what `config` reads for `split`, files in sorted order within a path.

    Only `split='file'` has other files for other splits. A path that names nothing raises
    MissingInput.
    """
    key, paths = "path", config.paths
    if config.split == "file" and split != "train":
        key = f"{split}_path"
        paths = (getattr(config, key),)
    resolved = [source for path in paths for source in _resolve(path, config, f"data.{key}")]
    if not resolved:
        raise MissingInput(
            f"data.include={config.include} and data.exclude={config.exclude} leave no file of "
            f"{', '.join(paths)}"
        )
    if (sought := _SOUGHT.get()) is not None:
        sought |= dict.fromkeys(resolved)
    return resolved


@contextlib.contextmanager
def recorded() -> Iterator[dict[Source, None]]:
    """Yield a dict whose keys are, in order, all that `sources` finds within.

    Whatever a corpus or a task reads, it finds there.
    """
    token = _SOUGHT.set({})
    try:
        yield _SOUGHT.get()
    finally:
        _SOUGHT.reset(token)


def files_of(found: Iterable[Source]) -> list[str]:
    """Return the files on disk of sources, in order."""
    names: list[str] = []
    for source in found:
        if source.format == "datasets" or os.path.isdir(source.path):
            members = (path for path in pathlib.Path(source.path).iterdir() if path.is_file())
            # What the `datasets` library keeps there of what was computed elsewhere is no data.
            names += sorted(str(path) for path in members if not path.match("cache-*.arrow"))
        else:
            names.append(source.path)
    return names


def source_files(config: DataConfig) -> list[str]:
    """Return the files on disk that any split reads, in order."""
    splits = config.split_names() if config.split == "file" else ["train"]
    return [name for split in splits for name in files_of(sources(config, split))]


def _resolve(path: str, config: DataConfig, key: str) -> list[Source]:
    if path == STDLIB:
        names = stdlib_files(config.include, config.exclude)
        return [Source(str(name), "text", "file") for name in names]
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        if is_datasets := _datasets_directory(path):
            choose("data.format", config.format, ("auto", "datasets"))
        if is_datasets or config.format == "datasets":
            return [Source(path, "datasets", "")]
        root = pathlib.Path(path)
        names = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
        if config.format == "auto":
            names = [n for n in names if os.path.splitext(stem_of(n))[1] in SOUGHT]
        if not names:
            raise MissingInput(
                f"the folder {path} holds no file with a known ending ({', '.join(SOUGHT)}, "
                "plain, .gz or .zst); use a glob with data.format"
            )
        names = [str(root / n) for n in names if _included(n, config.include, config.exclude)]
    else:
        names = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
        names = [n for n in names if not os.path.isdir(n)]
        if not names:
            raise MissingInput(f"{key}: {path} does not exist, nor matches a file as a glob")
        names = [n for n in names if _included(n, config.include, config.exclude)]
        for name in names:
            if os.path.exists(name) and not os.path.isfile(name):
                raise DataError(
                    f"{name} is a pipe or a device, and text is read more than once; write it to "
                    "a file, and name that"
                )
    if config.format == "auto":
        formats = [form if (form := format_of(n)) in TABLES else "text" for n in names]
        return [Source(*both, config.document) for both in zip(names, formats, strict=True)]
    if others := [n for n in names if format_of(n) not in ("", "text", config.format)]:
        warnings.warn(
            f"{others[0]} is read as {config.format}, as data.format says and its name does not",
            stacklevel=1,
        )
    return [Source(name, config.format, config.document) for name in names]


def _datasets_directory(path: str) -> bool:
    if os.path.isfile(os.path.join(path, "dataset_dict.json")):
        parts = sorted(p.name for p in pathlib.Path(path).iterdir() if p.is_dir())
        raise ConfigError(
            f"data.path: {path} is a dictionary of data sets; name one of them, such as "
            f"{os.path.join(path, parts[0]) if parts else path}"
        )
    return os.path.isfile(os.path.join(path, "state.json"))


def _included(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Say whether `name` matches one of `include`, if there are any, and none of `exclude`."""
    if include and not any(fnmatch.fnmatchcase(name, pattern) for pattern in include):
        return False
    return not any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude)


def stdlib_root() -> pathlib.Path:
    """Return the folder of the running Python's library."""
    return pathlib.Path(sysconfig.get_path("stdlib"))


def stdlib_files(include: Sequence[str] = (), exclude: Sequence[str] = ()) -> list[pathlib.Path]:
    """Return the `.py` files of the running Python's standard library, sorted by name.

    `include` and `exclude` are patterns on the name below the library's folder, as in DataConfig.
    """
    root = stdlib_root()
    names = []
    for folder, folders, members in os.walk(root):
        folders[:] = [f for f in folders if f not in SKIPPED_FOLDERS]
        for name in members:
            if name.endswith(".py") and not any(fnmatch.fnmatch(name, s) for s in SKIPPED_FILES):
                names.append(pathlib.Path(folder, name).relative_to(root).as_posix())
    if not names:
        raise MissingInput(f"this Python has no standard library source below {root}")
    return [root / name for name in sorted(names) if _included(name, include, exclude)]


def documents(
    config: DataConfig, split: str = "train", progress: Callable[[int], None] | None = None
) -> Iterator[Document]:
    """Yield the documents of every source behind `split`, neither cleaned nor split yet.

    `progress` is called with the number of bytes just read from disk.
    """
    for source in sources(config, split):
        choose("data.format", source.format, ("text", *TABLES))
        yield from (_texts if source.format == "text" else _rows)(source, config, progress)


def _texts(source: Source, config: DataConfig, progress) -> Iterator[Document]:
    """One document a file, a line or a paragraph (lines between blank ones)."""
    name, unit = source.path, source.document
    block: list[str] = []
    first, held = 1, files.Held(name)
    counted = held.packed and unit != "line"
    for number, line in files.text_lines(
        name, config.max_line_bytes, progress, config.strip_control, whole=unit == "file"
    ):
        if counted:
            held.add(line, len(line))  # they are joined in the end
        if unit == "line":
            yield Document(f"{name}:{number}", line.rstrip("\r\n"))
        elif unit == "file" or line.strip():
            first = first if block else number
            block.append(line)
        elif block:
            yield Document(f"{name}:{first}", "".join(block).rstrip("\r\n"))
            block, held.bytes = [], 0
    if unit == "file":
        yield Document(name, "".join(block))
    elif block:
        yield Document(f"{name}:{first}", "".join(block).rstrip("\r\n"))


def _rows(source: Source, config: DataConfig, progress) -> Iterator[Document]:
    """One document a row, the text of its column `data.field`."""
    name, field = source.path, config.field
    for row in tables.rows(
        name, config.max_line_bytes, source.format, columns=[field], progress=progress
    ):
        if field not in row.columns:
            row.advice = {field: "set data.field to one of them"}
        text = row.string(field)
        if "\0" in text and not config.strip_control:
            raise DataError(
                f"{row.place}: character {text.index(chr(0))} of column {field!r} is NUL; set "
                "data.strip_control=True to drop control characters"
            )
        yield Document(f"{name}:{row.line}", text)
