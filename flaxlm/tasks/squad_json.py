"""Questions about a text, in SQuAD's JSON or as the rows of a table.

A SQuAD file (v1.1, v2.0, and CMRC 2018's, which follows it) is one object,

    {"data": [{"title": …, "paragraphs": [{"context": …, "qas": [{"id": …, "question": …,
     "answers": [{"text": …, "answer_start": …}], "is_impossible": …}]}]}]}

and becomes a Record a question with the columns that a table of the same name has: id, title,
context, question, answers and, where they are there, is_impossible and plausible_answers.
"""

from collections.abc import Iterator

from flaxlm import files
from flaxlm.data import json_rows, tables
from flaxlm.errors import DataError
from flaxlm.tasks.records import Record, read_table
from flaxlm.untrusted import parse_json

QUESTION = ("id", "question", "answers", "is_impossible", "plausible_answers")


def note_id(places: dict[str, str], name: str, record: Record) -> None:
    """Note where a question stands, in {id: place}; DataError where another has its id."""
    if name in places:  # answers are asked for by id: one of the two would be lost
        raise DataError(
            f"the question id {name!r} stands twice: {places[name]}, and {record.place}"
        )
    places[name] = record.place


def read_questions(path: str, max_line_bytes: int, form: str = "auto") -> Iterator[Record]:
    """Yield a Record for each question of a SQuAD file, or for each row of another kind of table.

    A `.json` file may be of either kind; one of SQuAD's is one line of at most `max_line_bytes`.
    DataError names article, paragraph and question.
    """
    may_be = tables.stem_of(path).endswith(".json") and form in ("auto", "jsonl")
    contents = _contents(path, max_line_bytes) if may_be else None
    if contents is None:
        yield from read_table(path, max_line_bytes, form)
    else:
        yield from _questions(path, contents)


def _contents(path: str, most: int) -> dict | None:
    """Return the object of a SQuAD file, None for one of rows."""
    text = files.read_text(path, most)
    try:
        contents = parse_json(text, most, whole=False)
    except ValueError as error:
        if getattr(error, "msg", "") == "Extra data":  # a second object behind the first: lines
            return None
        contents = json_rows.loads(text, path, most=most)  # says what is wrong
    listed = isinstance(contents, list) and all(isinstance(row, dict) for row in contents)
    if listed or (isinstance(contents, dict) and "data" not in contents):
        return None  # an array, or a table of one line
    if not isinstance(contents, dict) or not isinstance(contents["data"], list):
        raise DataError(
            f"{path} is neither SQuAD's JSON, which is "
            '{"data": [{"paragraphs": [{"context": …, "qas": […]}]}]}, nor JSON lines'
        )
    return contents


def _questions(path: str, contents: dict) -> Iterator[Record]:
    line = 0
    for a, article in enumerate(contents["data"], 1):
        for p, paragraph in enumerate(_list(article, "paragraphs", path, f"article {a}"), 1):
            where = f"article {a}, paragraph {p}"
            for q, question in enumerate(_list(paragraph, "qas", path, where), 1):
                line += 1
                if not isinstance(question, dict):
                    raise DataError(f"{path}, {where}, question {q} is not an object")
                columns = {"title": article["title"]} if article.get("title") is not None else {}
                columns |= {"context": paragraph["context"]} if "context" in paragraph else {}
                columns |= {key: question[key] for key in QUESTION if key in question}
                named = f" ({columns['id']})" if "id" in columns else ""
                yield Record(path, line, columns, where=f"{where}, question {q}{named}")


def _list(parent, key: str, path: str, where: str) -> list:
    """Return a list inside an object of the file."""
    value = parent.get(key) if isinstance(parent, dict) else None
    if not isinstance(value, list):
        has = ", ".join(parent) if isinstance(parent, dict) else type(parent).__name__
        raise DataError(f"{path}, {where} has no list {key!r}; it has: {has}")
    return value


def answers_of(record: Record, column: str) -> list[tuple[str, int]]:
    """Return (text, the character that it begins at) of a question's answers; none: [].

    They are {"text": […], "answer_start": […]}, as `datasets` has them, or a list of such pairs,
    as SQuAD has them; DataError where they are something else, or `is_impossible` says otherwise.
    `plausible_answers` of a question without an answer are none.
    """
    impossible = record.columns.get("is_impossible") is True
    value = record.columns.get(column, [] if impossible else None)
    if value is None:
        record.text(column)  # names what is there
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start")
        lists = isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts)
        value = list(zip(texts, map(tables.integer, starts), strict=True)) if lists else None
    elif isinstance(value, list) and all(isinstance(pair, dict) for pair in value):
        value = [(pair.get("text"), tables.integer(pair.get("answer_start"))) for pair in value]
    else:
        value = None
    good = isinstance(value, list) and all(
        isinstance(text, str) and text.strip() and start is not None for text, start in value
    )
    if not good:
        raise DataError(
            f"{record.place}: column {column!r} must be "
            '{"text": [texts], "answer_start": [numbers]} or a list of '
            '{"text": …, "answer_start": …}, of texts that are not empty; it is '
            f"{tables.shown(record.columns[column])}"
        )
    if impossible and value:
        raise DataError(f"{record.place} has an answer, and is_impossible is true")
    if record.columns.get("is_impossible") is False and not value:
        raise DataError(f"{record.place} has no answer, and is_impossible is false")
    return value
