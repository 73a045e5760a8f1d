"""Prompts and responses: any file of instructions, and conversations."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from flaxlm.data.sources import DataConfig
from flaxlm.errors import ConfigError, DataError, nearest
from flaxlm.tasks.records import Record, column_advice, read_split, read_table
from flaxlm.tasks.task import Example, TableTask
from flaxlm.tasks.text_to_text import TextTask, learnt, texts_of

# What a long prompt ends with matters more than what it begins with.
DEFAULTS = {"objective": {"keep": "end"}}
ROLES = ("system", "user", "assistant")


@dataclasses.dataclass(frozen=True)
class Instruction(TableTask, TextTask):
    """Rows of a table with a prompt and its response, judged by ROUGE-L and exact match.

    The model reads what a row has of system, prompt and input, with `separator` between them.
    """

    prompt_column: str = "prompt"  # what is asked
    response_column: str = "response"  # what should be answered; a list where several are right
    input_column: str = "input"  # what it is asked about; a row may lack it, or have it empty
    system_column: str = "system"  # what comes before the prompt; in the same way
    separator: str = "\n\n"  # between the parts

    defaults: ClassVar[Mapping] = DEFAULTS

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, target, references?} for each row of a split; see `Task.examples`."""
        seen: set[str] = set()

        def example(record: Record) -> Example:
            seen.update(record.columns)
            parts = [
                self._optional(record, self.system_column),
                record.text(self.prompt_column),
                self._optional(record, self.input_column),
            ]
            text = self.separator.join(filter(None, parts))
            right = learnt(texts_of(record, self.response_column))
            return {"id": record.id, "text": text} | right

        examples = read_split(data, split, example, self.response_column, task=self)
        for key in ("input_column", "system_column"):  # may be absent, unless they were named
            name = getattr(self, key)
            if name and name != getattr(Instruction, key) and name not in seen:
                raise DataError(
                    f"task.{key}={name!r}: no row has this column{nearest(name, seen)}; "
                    f"columns: {', '.join(sorted(seen))}"
                )
        return self.checked(examples)

    @staticmethod
    def _optional(record: Record, column: str) -> str:
        """Return the text of a column, '' where the row has none."""
        blank = record.columns.get(column) is None or not str(record.columns[column]).strip()
        return "" if blank else record.text(column)


@dataclasses.dataclass(frozen=True)
class Chat(TextTask):
    """Conversations, {"messages": [{"role": …, "content": …}, …]} in each row.

    The model reads the messages before an answer of the assistant, each behind its role's marker,
    and the assistant's marker, and learns the answer: the last of a conversation, or each.
    """

    messages_column: str = "messages"  # the list of messages
    every_turn: bool = False  # each answer of a conversation is an example of its own
    system: str = "System: "  # what marks a message of this role
    user: str = "User: "  # what marks a message of this role
    assistant: str = "Assistant: "  # what marks a message of this role
    end: str = "\n"  # what stands behind a message

    defaults: ClassVar[Mapping] = DEFAULTS

    def __post_init__(self):
        super().__post_init__()
        markers = [getattr(self, role) for role in ROLES]
        if len(set(markers)) < len(markers):
            raise ConfigError(f"task.{', task.'.join(ROLES)}={markers} must differ")

    def examples(self, data: DataConfig, split: str, labels: Sequence[str] = ()) -> list[Example]:
        """Return {id, text, target, group} of each answer; see `Task.examples`.

        A test split in which no conversation ends with the assistant is one without right answers.
        """

        def example(record: Record) -> Example:
            columns = record.columns
            if record.graded and "answer" not in columns:
                raise DataError(
                    f"{record.place}: the conversation ends with {columns['last']!r}, so there is "
                    "no answer of the assistant to learn; cut it behind one, or drop it"
                )
            target = {"target": columns["answer"] if record.graded else None}
            return {"id": record.id + columns["which"], **columns["asked"]} | target

        rows = functools.partial(self._read, data=data)
        return self.checked(read_split(data, split, example, "answer", rows, task=self))

    def _read(self, path: str, most: int, data: DataConfig) -> Iterator[Record]:
        """Yield a Record {which, asked, answer?, last} for each answer to learn."""
        advice = column_advice(self, data, path)
        for record in read_table(path, most, data.format):
            turns = self._messages(dataclasses.replace(record, advice=advice))
            last = turns[-1][0]
            answers = [n for n, (role, _) in enumerate(turns) if role == "assistant"]
            wanted = answers if self.every_turn else answers[-1:]
            wanted = wanted if last == "assistant" else [len(turns)]
            # The answers of a conversation stay on one side of a split: `group`.
            group = self._prompt(turns[: wanted[0]])
            for place in wanted:
                which = f"#{place + 1}" if len(wanted) > 1 else ""
                asked = {"text": self._prompt(turns[:place]), "group": group}
                answer = {"answer": turns[place][1]} if place < len(turns) else {}
                columns = {"which": which, "asked": asked, "last": last} | answer
                yield dataclasses.replace(record, columns=columns)

    def _prompt(self, turns: Sequence[tuple[str, str]]) -> str:
        """Return what the model reads before it answers some messages."""
        marked = (getattr(self, role) + content + self.end for role, content in turns)
        return "".join(marked) + self.assistant

    def _messages(self, record: Record) -> list[tuple[str, str]]:
        """Return (role, content) of each message; DataError names the line and the message."""
        if self.messages_column not in record.columns:
            record.text(self.messages_column)  # names the columns that are there
        messages = record.columns[self.messages_column]
        if not isinstance(messages, list) or not messages:
            raise DataError(
                f"{record.place}: column {self.messages_column!r} must be a list of "
                '{"role": …, "content": …}, with at least one message'
            )
        turns = []
        for number, message in enumerate(messages, 1):
            where = f"{record.place}, message {number}"
            if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
                raise DataError(f'{where} is not {{"role": …, "content": …}}')
            role, content = message["role"], message["content"]
            if role not in ROLES:
                raise DataError(
                    f"{where} has the role {role!r}{nearest(str(role), ROLES)}; roles: "
                    f"{', '.join(ROLES)}"
                )
            if not isinstance(content, str) or not content.strip():
                raise DataError(f"{where} ({role}) has no text; drop the conversation or fill it")
            turns.append((role, content))
        return turns
