"""Sentences as words and tags: CoNLL columns, CoNLL-U, and tables with a list of words a row.

CoNLL: a word a line, its columns parted by tabs or by spaces, a blank line between sentences.
The first line of words says which of the two and how many columns; `-DOCSTART-` lines are no words.
A line such as `# id 7` is a comment, and `#hashtag`, tab, `O` is a word.
CoNLL-U: ten columns, `#` comments, and beside the words ranges (`1-2`) and empty nodes (`1.1`).
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from flaxlm import files
from flaxlm.data.tables import TABLES, format_of, stem_of
from flaxlm.errors import DataError, choose, nearest
from flaxlm.tasks.records import Record, read_table

COLUMNS = "conll"
UNIVERSAL = "conllu"
UNIVERSAL_COLUMNS = ("form", "lemma", "upos", "xpos")
UNIVERSAL_WIDTH = 10
DOCUMENT = "-DOCSTART-"
SPACES = ("auto", "always", "never")
# Thai and Lao, Burmese, Khmer, Chinese and Japanese, with their punctuation and wide forms.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef"
    "\U00020000-\U0003ffff]"
)


class Sentence(NamedTuple):
    """Words with their columns as a file has them."""

    line: int  # of the first word, or the number of the row
    columns: dict[str, list]  # {name: a value for each word}
    lines: Sequence[int] = ()  # of each word; empty in a table
    glued: Sequence[bool] = ()  # whether no space follows the word, where the file says so
    where: str = ""  # of a table's row
    guess: str = ""  # what to say where neither its name nor its tabs tell that a file is CoNLL


def read(
    path: str,
    max_line_bytes: int,
    word_column: str = "",
    tag_column: str = "",
    spaces: str = "auto",
    form: str = "auto",
) -> Iterator[Record]:
    """Yield a Record for each sentence of a file; `.gz` and `.zst` are unpacked.

    Args:
      path, max_line_bytes: the file, and most bytes of a line of it.
      word_column, tag_column: names in CoNLL-U (`form`, `lemma`, `upos`, `xpos`) and in tables,
        numbers in CoNLL (from 0, or −1 for the last). Empty: `form` and `upos`, `tokens` and
        `tags`, 0 and −1.
      spaces: whether a space parts two words: `always`, `never`, or `auto`, as CoNLL-U says, and
        elsewhere unless one of them is of a script that is written without.
      form: `conll`, `conllu`, one of `tables.TABLES`, or `auto`: what the ending of the name says;
        where it says none of these, or is `.tsv`, CoNLL of two columns or more.

    Returns:
      records with `words`, each with the space that stands before it, so that together they are
      the text; `tags`, as many, names or ids; `lines`, those of the words, empty in a table.
      Without a tag column `untagged`, saying so, stands in place of `tags`. `guess` is that of
      `Sentence`.
    """
    choose("spaces", spaces, SPACES)
    choose("data.format", form, ("auto", COLUMNS, UNIVERSAL, *TABLES))
    stated = stem_of(path).endswith(".conll") or form == COLUMNS
    if form == "auto":
        form = format_of(path).replace("tsv", COLUMNS)
    if form in TABLES:
        rows, usual = read_table(path, max_line_bytes, form), ("tokens", "tags")
        sentences = (Sentence(row.line, row.columns, where=row.where) for row in rows)
    elif form == UNIVERSAL:
        sentences, usual = _universal(path, max_line_bytes), ("form", "upos")
    else:
        sentences, usual = _plain(path, max_line_bytes, narrow=stated), ("0", "-1")
    for sentence in sentences:
        yield _record(path, sentence, word_column or usual[0], tag_column or usual[1], spaces)


def place_of(record: Record, index: int) -> str:
    """Return how an error names a word of a record."""
    lines = record.columns["lines"]
    return f"{record.file}, line {lines[index]}" if lines else f"{record.place}, word {index + 1}"


def _record(path: str, sentence: Sentence, word_column: str, tag_column: str, spaces: str):
    """Return the Record of a sentence: the two columns, checked."""
    line, columns, lines, glued, where, guess = sentence
    record = Record(path, line, {"lines": lines}, where)
    if word_column not in columns:
        raise DataError(f"{record.place}: {_absent(word_column, columns, 'word_column')}")
    words = _list(record, word_column, columns[word_column], "words")
    for index, word in enumerate(words):
        if not isinstance(word, str) or not word.strip():
            what = "is empty" if isinstance(word, str) else f"is {word!r}, not a text"
            raise DataError(f"{place_of(record, index)}: the word in column {word_column!r} {what}")
    if not words:
        raise DataError(f"{record.place}: column {word_column!r} holds no words; drop the row")
    spaced = _spaced([word.strip() for word in words], glued, spaces)
    sentence_columns = {"words": spaced, "lines": lines, "guess": guess}
    if tag_column not in columns:
        sentence_columns["untagged"] = _absent(tag_column, columns, "tag_column")
        return dataclasses.replace(record, columns=sentence_columns)
    if columns[tag_column] is columns[word_column]:
        raise DataError(
            f"{record.place}: words and tags are read from the same column, {word_column!r} and "
            f"{tag_column!r}; columns: {', '.join(columns)}"
        )
    tags = _list(record, tag_column, columns[tag_column], "tags")
    if len(tags) != len(words):
        raise DataError(
            f"{record.place}: {len(words)} words in column {word_column!r} and {len(tags)} tags in "
            f"column {tag_column!r}; each word needs one"
        )
    return dataclasses.replace(record, columns=sentence_columns | {"tags": tags})


def _absent(column: str, columns: dict, key: str) -> str:
    return (
        f"there is no column {column!r}{nearest(column, columns)}; columns: {', '.join(columns)}; "
        f"set task.{key} to one of them"
    )


def _list(record: Record, column: str, value, what: str) -> list:
    if not isinstance(value, list | tuple):
        raise DataError(
            f"{record.place}: column {column!r} holds {str(value)[:40]!r}, not a list of {what}"
        )
    return list(value)


def _spaced(words: list[str], glued: Sequence[bool], spaces: str) -> list[str]:
    """Return the words, each with the space before it if there is one."""

    def parted(index: int) -> bool:
        if spaces != "auto":
            return spaces == "always"
        if glued:
            return not glued[index - 1]
        return not (_UNSPACED.match(words[index - 1][-1]) or _UNSPACED.match(words[index]))

    return [word if not i or not parted(i) else f" {word}" for i, word in enumerate(words)]


def _blocks(
    path: str, lines: Iterable[tuple[int, str]], ends: Callable[[str], bool], most: int
) -> Iterator[list[tuple[int, str]]]:
    """Yield the lines between those that end a sentence, where there are any.

    DataError where they would fill the memory: 500 bytes each, in columns, besides their text.
    """
    block: list[tuple[int, str]] = []
    size = 0
    for number, line in lines:
        if not ends(line):
            block.append((number, line))
            size += len(line) + 500
            if size > 4 * (most or files.MOST_LINE_BYTES):
                raise DataError(
                    f"{path}, line {block[0][0]}: a sentence of {len(block):,} lines and more; a "
                    "blank line ends one"
                )
        elif block:
            yield block
            block, size = [], 0
    if block:
        yield block


def _cells(line: str, tabs: bool) -> list[str]:
    # Other white space than these two may be part of a word.
    return line.split("\t") if tabs else re.split(" +", line.strip(" "))


def _plain(path: str, most: int, narrow: bool) -> Iterator[Sentence]:
    """Yield the sentences of CoNLL columns: '0', '1', …, and '-1', '-2', … from the last.

    A file of one column may be any text: it is refused unless it is known to be CoNLL (`narrow`).
    """

    def ends(line: str) -> bool:
        return not line.strip() or line.split(maxsplit=1)[0] == DOCUMENT

    lines = files.bare_lines(path, most)
    shape = next((line for _, line in lines if not ends(line) and line[0] != "#"), "")
    lines = files.bare_lines(path, most)  # from the first one on
    tabs = "\t" in shape
    width = len(_cells(shape, tabs))
    if shape and width == 1 and not narrow:
        raise DataError(
            f"{path} has one column ({shape[:20]!r} …), and CoNLL has a word and its tag on each "
            "line, parted by a tab or spaces; if these are words without tags, set "
            "data.format='conll', and if it is a table, set it to one of: " + ", ".join(TABLES)
        )
    guess = (
        f"{path} is taken for CoNLL, a word and its tag on each line; text has no tags, and if it "
        f"is a table, set data.format to one of: {', '.join(TABLES)}"
    ) * (not narrow and not tabs)
    longest = 0
    for block in _blocks(path, lines, ends, most):
        numbers, rows = [], []
        for number, line in block:
            cells = _cells(line, tabs)
            if len(cells) == width:
                numbers.append(number)
                rows.append(cells)
            elif not line.startswith("#") or " " not in line:
                raise DataError(
                    f"{path}, line {number} has {len(cells)} column{'s' * (len(cells) != 1)} and "
                    f"the first line of words {width}, parted by {'tabs' if tabs else 'spaces'}: "
                    f"{line[:40]!r}" + (guess and f"; {guess}")
                )
        if rows:
            columns = [list(column) for column in zip(*rows, strict=True)]
            named = {str(i): column for i, column in enumerate(columns)}
            if width > 1:
                named |= {str(i - width): column for i, column in enumerate(columns)}
            longest = max(longest, len(rows))
            yield Sentence(numbers[0], named, numbers, guess=guess)
    if longest == 1 and not narrow and not tabs:
        raise DataError(
            f"{path} looks like text: taken for CoNLL, which has a word and its tag on each line, "
            f"it has no sentence of two words ({shape[:20]!r} …); if it is, set data.format='conll'"
        )


def _universal(path: str, most: int) -> Iterator[Sentence]:
    """Yield the sentences of CoNLL-U; a column of nothing but `_` counts as absent."""
    lines = (
        (number, line) for number, line in files.bare_lines(path, most) if not line.startswith("#")
    )
    for block in _blocks(path, lines, lambda line: not line.strip(), most):
        numbers, rows, glued = [], [], []
        whole = None  # the range that is open: its last word, its first one's place, form, glued
        for number, line in block:
            cells = line.split("\t")
            kind = re.fullmatch(r"(\d+)(?:([-.])(\d+))?", cells[0])
            if len(cells) != UNIVERSAL_WIDTH or not kind:
                raise DataError(
                    f"{path}, line {number} is not CoNLL-U, which has a number and "
                    f"{UNIVERSAL_WIDTH - 1} more columns parted by tabs: {line[:40]!r}"
                )
            tight = "SpaceAfter=No" in cells[9].split("|")
            if kind[2] == "-":
                whole = (kind[3], len(rows), cells[1], tight)
            elif kind[2] is None:
                if int(kind[1]) != len(rows) + 1:
                    raise DataError(
                        f"{path}, line {number}: word {kind[1]} where word {len(rows) + 1} of its "
                        "sentence is due; a blank line stands between sentences"
                    )
                numbers.append(number)
                rows.append(cells[1:5])
                glued.append(tight)
                if whole and whole[0] == kind[1]:
                    _, first, form, glued_behind = whole
                    inside = "".join(row[0] for row in rows[first:]) == form
                    glued[first:] = [inside] * (len(rows) - first - 1) + [glued_behind]
                    whole = None
        if not rows:
            raise DataError(f"{path}, line {block[0][0]}: a sentence without a word")
        columns = dict(zip(UNIVERSAL_COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
        named = {k: c for k, c in columns.items() if k == "form" or set(c) != {"_"}}
        yield Sentence(numbers[0], named, numbers, glued)
