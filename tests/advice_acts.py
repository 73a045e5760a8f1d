"""What the trials of `advice.py` do: config, rows, plan, cache or command, in one process."""

import contextlib
import dataclasses
import importlib
import pathlib
import shutil
from collections.abc import Callable

import pytest
import tiny_runs as tiny

from flaxlm import __main__ as command
from flaxlm import sharding
from flaxlm.commands import flags, options, recipe
from flaxlm.data import cache
from flaxlm.data.sources import documents
from flaxlm.data.split import split_documents
from flaxlm.data.tokenizer import ByteTokenizer, train_tokenizer
from flaxlm.training.inputs import Inputs
from flaxlm.training.program import make_program

GOLDEN = pathlib.Path(__file__).parent / "golden"
ROWS = '{"text": "a b", "label": "x"}\n{"text": "b c", "label": "y"}\n'
SQUAD = '{{"id": "{}", "question": "q", "context": "c {}", "answers": {}}}\n'
NO_ANSWER, LOST = ('{"text": [], "answer_start": []}', '{"text": ["z"], "answer_start": [0]}')
CHOICES = '{{"context": "c {}", "choices": ["x", "y"], "gold": 0}}\n'
FILES = {
    "text.txt": "".join(f"Text number {n}. Of two sentences.\n\n" for n in range(20)),
    "other.txt": "Other text.\n",
    "nul.txt": "a\0b\n",
    "long.txt": "a" * 99 + "\n",
    "one.txt": "one paragraph",
    "rows.jsonl": ROWS,
    "one.jsonl": ROWS.splitlines()[0],
    "other.jsonl": ROWS.replace("text", "body"),
    "rows.json.txt": ROWS,
    "many.jsonl": "".join(
        f'{{"text": "t", "label": "l{n}", "kind": "{"ab"[n % 2]}"}}\n' for n in range(101)
    ),
    "many.conll": "".join(f"w{n}\tw\t{'ab'[n % 2]}\n" for n in range(101)),
    "nul.jsonl": '{"text": "a\\u0000b"}\n',
    "headed.csv": "text,label\na b,x\nb c,y\n",
    "bare.tsv": "a b\tx\nb c\ty\n",
    "bio.conll": "w\tO\nw\tB-A\n\nw\tO\nw\tO\n",
    "bmes.conll": "w\tO\nw\tB-A\nw\tM-A\nw\tE-A\nw\tS-A\n",
    "words.txt": "w\nw\n",
    "tokens.txt": '{"tokens": ["w", "w"], "tags": ["O", "B-A"]}\n' * 2,
    "line.txt": "a O\n\nb O\n",
    "scores.jsonl": '{"sentence1": "a", "sentence2": "b", "score": 3}\n' * 2,
    "choices.jsonl": "".join(map(CHOICES.format, "ab")),
    "words.jsonl": '{"context": "one", "last": "word"}\n',
    "none.jsonl": SQUAD.format(1, 1, NO_ANSWER),
    "lost.jsonl": SQUAD.format(1, 1, '{"text": ["c"], "answer_start": [0]}')
    + SQUAD.format(2, 2, LOST),
    "sides.de": "ein Text\n",
    "pair.de": "ein Text\n",
    "pair.en": "a text\n",
    "prompts.txt": "one\ntwo\n",
    "vectors.txt": ROWS,
    "vectors.jsonl": ROWS,
    "sentences.csv": "premise,hypothesis,label\na,b,0\n",
    "config.json": "{}",
}


class Reached(Exception):
    """A command got as far as what would take long."""


def files(place: pathlib.Path) -> None:
    """Write what the trials read."""
    for name, text in FILES.items():
        (place / name).write_text(text)
    (place / "folder").mkdir()
    (place / "folder" / "a.log").write_text("text")
    (place / "plain").mkdir()
    (place / "set").mkdir()
    (place / "set" / "state.json").write_text("{}")
    (place / "run").symlink_to(GOLDEN / "decoder")
    (place / "labelled").symlink_to(GOLDEN / "encoder")


def typed(text: str) -> dict[str, str]:
    """Return {key: text} of `key=text key=text`."""
    return dict(part.split("=", 1) for part in text.split())


def base(family: str) -> dict:
    """Return a tiny recipe; `encoder` is one whose objective a task brings."""
    data = {"path": "text.txt", "split": "tail", "valid_fraction": 0.3}
    nested = tiny.recipe({"encoder": "masked"}.get(family, family), data=data)
    if family == "encoder":
        del nested["objective"]
    for section in ("model", "tokenizer"):  # what is left to typing
        nested[section] = {k: v for k, v in nested[section].items() if k != "vocab_size"}
    return nested


@dataclasses.dataclass(frozen=True)
class Act:
    """Makes a config of a tiny recipe and of typed keys, and does something with it."""

    family: str
    then: Callable | None = None

    def __call__(self, keys: dict[str, str]) -> None:
        """Do it."""
        keys = dict(keys)
        split = keys.pop("split", "train")
        config = recipe.configure(base(self.family), keys)
        if self.then is not None:
            self.then(config, split)


def read(config, split: str):
    """Read a task's examples."""
    labels = getattr(config.objective, "labels", ())
    return config.task.examples(config.data, split, labels)


def plan(config, split: str) -> None:
    """Lay out a task's examples in rows."""
    examples = read(config, split)
    config.objective.plan(examples, config.train.length, ByteTokenizer(20), seed=0, shuffle=True)


def text(config, split: str) -> None:
    """Read the documents of plain text."""
    list(documents(config.data, split))


def parted(config, split: str) -> None:
    """Read the documents and see that no split is empty."""
    present = {part for part, _ in split_documents(config.data)}
    cache._check_splits(config.data, present)


def cached(config, split: str) -> None:
    """Lay out a corpus in rows, from its token cache."""
    tokenizer = ByteTokenizer(config.tokenizer.sentinels)
    place = pathlib.Path(config.data.cache_dir or "cache")
    if not place.is_file():
        shutil.rmtree(place, ignore_errors=True)
    built = cache.build_cache(config.data, tokenizer, place / "it", lambda line: None)
    source = cache.shards.open_cache(built, split, tokenizer_hash=tokenizer.hash)
    config.objective.plan(source, config.train.length, tokenizer, seed=0, shuffle=True)


def tokenizer(config, split: str) -> None:
    """Train a tokenizer."""
    text = "One text. Of two sentences.\n\nAnother text. Also of two.\n" * 9
    train_tokenizer(config.tokenizer, [text])


def shapes(config, split: str) -> None:
    """Build a model without computing anything."""
    make_program(config, sharding.make_mesh(config.sharding))


def opened(config, split: str) -> None:
    """Open the inputs of a run and look for its training rows."""
    shutil.rmtree("opened", ignore_errors=True)
    with Inputs.open(config, pathlib.Path("opened").absolute()) as inputs:
        inputs.train(4)


def settled(verb: str) -> Callable:
    """Return an act: a command line that is read and not done."""

    def act(given: dict[str, str]) -> None:
        arguments = [f"--{key}={value}" if key else value for key, value in given.items()]
        plain, spec, overrides = options.apart(arguments)
        cls = importlib.import_module(f"flaxlm.commands.{verb}").Options
        options.settle(verb, flags.parse(cls, plain), spec, overrides)

    return act


def done(verb: str, *long: str) -> Callable:
    """Return an act: a command up to the first call of one of its module's `long` functions."""

    def reached(*args, **kwargs):
        raise Reached

    def act(given: dict[str, str]) -> None:
        module = importlib.import_module(f"flaxlm.commands.{verb}")
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Reached):
            patch.setattr(command, "set_up_jax", lambda options: None)
            for name in long:
                patch.setattr(module, name, reached)
            command.run([verb, *(f"--{key}={value}" for key, value in given.items())])

    return act
