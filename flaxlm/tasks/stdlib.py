"""Two tasks on text that every machine has: the running Python's standard library.

A file of the library lies in the same split here as in the pre-training corpus (same `data`
section), so a test file is in no one's pre-training text. A docstring that also stands in a file
of an earlier split (train, valid, test) is left out of the later one.
"""

import ast
import dataclasses
import functools
import itertools
import pathlib
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, NamedTuple

from flaxlm.data.sources import STDLIB, DataConfig, sources, stdlib_root
from flaxlm.data.split import split_documents
from flaxlm.errors import ConfigError, DataError, choose, nearest
from flaxlm.tasks.labels import label_ids
from flaxlm.tasks.task import SPLITS, Example, Examples, LabelTask
from flaxlm.tasks.text_to_text import TextTask

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DOCUMENTED = (ast.Module, ast.ClassDef, *FUNCTIONS)
SENTENCE_END = re.compile(r"(?<=[.!?])\s")


class Documented(NamedTuple):
    """One docstring of a file: where it stands, its text, and a function's code without it."""

    file: str
    line: int
    docstring: str
    code: str


def _definitions(node: ast.AST) -> Iterable[ast.AST]:
    """Yield a module and what is defined in it at any depth; expressions are passed by."""
    if isinstance(node, DOCUMENTED):
        yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _definitions(child)


def documented(source: str, file: str) -> list[Documented]:
    """Return the docstrings of modules, classes and functions in the order of their lines.

    `code` is '' for modules and classes, and for functions of which nothing but the docstring is
    left. A file that the running Python cannot parse has none.
    """
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    lines = source.encode().split(b"\n")
    entries = []
    for node in _definitions(module):
        if docstring := ast.get_docstring(node):
            line = getattr(node, "lineno", 1)
            entries.append(Documented(file, line, docstring.strip(), _code(node, lines)))
    return sorted(entries)


def _code(node: ast.AST, lines: list[bytes]) -> str:
    """Return a function's source without its docstring, unindented."""
    if not isinstance(node, FUNCTIONS) or len(node.body) < 2:
        return ""
    docstring = node.body[0]
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    # Positions of the syntax tree count lines from 1 and bytes of UTF-8 from 0.
    head = lines[first - 1 : docstring.lineno - 1]
    before = lines[docstring.lineno - 1][: docstring.col_offset]
    after = lines[docstring.end_lineno - 1][docstring.end_col_offset :].lstrip(b" \t;")
    between = [(before + after).rstrip()] if (before + after).strip() else []
    tail = lines[docstring.end_lineno : node.end_lineno]
    return textwrap.dedent(b"\n".join([*head, *between, *tail]).decode()).strip()


def summary(docstring: str) -> str:
    """Return the first sentence of the first paragraph, on one line."""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return SENTENCE_END.split(paragraph, maxsplit=1)[0]


def package(file: str) -> str:
    """Return the top-level package or module of a path relative to the library's root."""
    return file.split("/")[0].removesuffix(".py")


def _by_split(data: DataConfig) -> dict[str, list[Documented]]:
    """Return the docstrings of each split, without those that stand in an earlier one.

    Within a split they are in the order of files and lines, repetitions included.
    """
    splits = _read(data)
    sources(data)  # found anew where the docstrings are kept: see `recorded`
    return splits


@functools.lru_cache(maxsize=1)  # the splits of a run are asked for one after the other
def _read(data: DataConfig) -> dict[str, list[Documented]]:
    if data.path != STDLIB:
        raise ConfigError(f"this task reads data.path={STDLIB!r}, not {data.path!r}")
    if data.split != "hash" or data.document != "file":
        raise ConfigError(
            "this task takes whole files: set data.split='hash', data.document='file'"
        )
    splits: dict[str, list[Documented]] = {split: [] for split in SPLITS}
    root = stdlib_root()
    for split, document in split_documents(data):
        file = pathlib.Path(document.id).relative_to(root).as_posix()
        splits[split] += documented(document.text, file)
    seen: set[str] = set()
    for split, entries in splits.items():
        splits[split] = [entry for entry in entries if entry.docstring not in seen]
        seen.update(entry.docstring for entry in entries)
    return splits


def _unique(entries: Iterable[Documented], key: Callable) -> Iterable[Documented]:
    """Return the first entry of each key."""
    first: dict = {}
    for entry in entries:
        first.setdefault(key(entry), entry)
    return first.values()


def _chosen(
    candidates: list[tuple[Documented, Example]], most: int, data: DataConfig, split: str
) -> Examples:
    """Return the examples, of each file at most `most` (0: all), evenly spaced in it."""
    files: dict[str, list[Example]] = {}
    for entry, example in candidates:
        files.setdefault(entry.file, []).append({"id": f"{entry.file}:{entry.line}"} | example)
    kept = []
    for examples in files.values():
        count = min(most or len(examples), len(examples))
        kept += [examples[i * len(examples) // count] for i in range(count)]
    if not kept:
        share = f"data.{split}_fraction={getattr(data, f'{split}_fraction', 1)}"
        raise DataError(f"the {split} split of the task is empty ({share}); make it larger")
    return Examples(kept, sum(map(len, _by_split(data).values())))


@dataclasses.dataclass(frozen=True)
class StdlibPackage(LabelTask):
    """Which package a docstring comes from.

    `objective.labels` names the packages. Docstrings of other packages, or that stand in two of
    the packages, are left out.
    """

    reads_documents: ClassVar[bool] = True
    min_words: int = 3  # docstrings with fewer words are left out
    max_per_file: int = 100  # most examples of a file, lest one decide the score; 0: all

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, label} for each docstring of a split; see `Task.examples`."""
        choose("split", split, SPLITS)
        ids = label_ids(labels)
        splits = _by_split(data)
        owners: dict[str, set[str]] = {}
        for entry in itertools.chain(*splits.values()):
            owners.setdefault(entry.docstring, set()).add(package(entry.file))
        known = set().union(*owners.values())
        for label in labels:
            if label not in known:
                raise DataError(
                    f"objective.labels: {label!r} is no documented package of this Python's "
                    f"standard library{nearest(label, known)}"
                )
        candidates = [
            (entry, {"text": entry.docstring, "label": ids[package(entry.file)]})
            for entry in _unique(splits[split], lambda entry: entry.docstring)
            if package(entry.file) in ids
            and len(owners[entry.docstring] & ids.keys()) == 1
            and len(entry.docstring.split()) >= self.min_words
        ]
        return _chosen(candidates, self.max_per_file, data, split)


@dataclasses.dataclass(frozen=True)
class StdlibSummary(TextTask):
    """A function's docstring summary from its code without the docstring.

    Functions of which the code or the summary stands in an earlier split are left out.
    """

    reads_documents: ClassVar[bool] = True
    min_words: int = 3  # functions whose summary has fewer words are left out
    max_words: int = 40  # and those whose summary has more
    max_per_file: int = 100  # most examples of a file, lest one decide the score; 0: all

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, target} for each function of a split; see `Task.examples`."""
        choose("split", split, SPLITS)
        splits = _by_split(data)
        earlier = [splits[name] for name in SPLITS[: SPLITS.index(split)]]
        seen: set[str] = set()
        for entry in itertools.chain(*earlier):
            seen |= {entry.code, summary(entry.docstring)}
        candidates = [
            (entry, {"text": entry.code, "target": target})
            for entry in _unique(splits[split], lambda entry: (entry.code, entry.docstring))
            if entry.code
            and entry.code not in seen
            and (target := summary(entry.docstring)) not in seen
            and self.min_words <= len(target.split()) <= self.max_words
        ]
        return _chosen(candidates, self.max_per_file, data, split)
