"""`evaluate`: score a split with a run's checkpoint."""

import contextlib
import dataclasses
import os
import pathlib
import re
import warnings
from collections.abc import Sequence
from typing import ClassVar

from flaxlm.commands import recipe
from flaxlm.commands.options import DATA, TRAINED, ProcessOptions, ReadOptions, Rule
from flaxlm.data.sources import SPLITS, STDLIB, DataConfig, sources
from flaxlm.errors import ConfigError, FlaxlmError, choose
from flaxlm.evaluation.report import examine, place
from flaxlm.files import sha256
from flaxlm.processes import Watchdog
from flaxlm.progress import say
from flaxlm.tasks import TASKS
from flaxlm.training import config as run_config
from flaxlm.training import data_record
from flaxlm.training.checkpoint import Checkpointer
from flaxlm.training.config import task_defaults
from flaxlm.training.manifest import Damaged, verify_files
from flaxlm.training.metrics import report
from flaxlm.training.newest import is_run, newest
from flaxlm.training.opened import INIT, open_run
from flaxlm.training.workdir import probe
from flaxlm.untrusted import parse_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ReadOptions, ProcessOptions):
    """What is scored."""

    reads: ClassVar[str] = rf"(?!{TRAINED})({ReadOptions.reads}|{DATA}|sharding\..*"
    reads += r"|eval\.batch_size|baseline|train\.stuck_after)"
    split: str = "valid"  # train, valid or test

    def configure(self, nested: dict, overrides: dict[str, str]):
        """Return the config of what is scored; see `scored_whole` and `in_buckets`."""
        choose("--split", self.split, SPLITS)
        foreign = self.checkpoint == INIT
        if foreign:
            overrides = in_buckets(nested, overrides)
        stands = not foreign and is_run(self.place)
        run = self.default_recipe() if stands else nested
        overrides = scored_whole(nested, overrides, None if foreign else run, self.split)
        # Its split is --split, also of a run that was not evaluated in training.
        config = recipe.configure(nested, overrides, read=("eval.batch_size",))
        if stands and self.split != "train":
            say_what_was_trained_on(config, run, self.split, self.workdir)
        return config

    def unread(self, config) -> list[Rule]:
        """Return also what the rows of the task do not ask for."""
        task, size = config.task, config.eval.batch_size
        drawn = not (task.objective or task.ranks or config.objective.scores_every_token)
        rows = r"objective\.(?!name|nsp).*|train\.(length|batch_size)|eval\.batch_size"
        return [
            *super().unread(config, bool(config.baseline)),
            (size, r"train\.batch_size", f"eval.batch_size={size} takes its place"),
            (not drawn, "seed", "nothing is drawn"),
            (task.ranks, rows, f"task.name={config.task_name!r} asks how likely texts are"),
        ]


# What says of a file which part of it is scored.
PARTS = ("split", "valid_fraction", "test_fraction", "valid_path", "test_path")
# What decides by its hash where a text falls, and what by its place.
BY_HASH = ("split", "valid_fraction", "test_fraction", "document", "field", "nfc", "strip_control")
BY_PLACE = (*BY_HASH, "path", "weights", "include", "exclude", "dedup", "min_chars")
# The keys of a task that make its texts.
TEXTS = r"name|columns|source|target|set|spaces|prefix|separator|system|user|assistant|end"
TEXTS += r"|every_turn|\w+_columns?"


def say_what_was_trained_on(config, run: dict, split: str, place: str) -> None:
    """Warn where a split has rows that a run may have been trained on; its config is `run`.

    Files are the same that lie in one place, or hold what the newest checkpoint says was read.
    """
    try:
        before = run_config.build(run_config.expand(run))
    except FlaxlmError:  # its data is gone
        return
    now, then = config.data, before.data
    kinds = {"hash": BY_HASH, "tail": BY_PLACE, "file": (f"{split}_path",), "whole": ()}
    keys = kinds[now.split] if now.split == then.split else ("split",)
    pairs = [(f"data.{key}", getattr(then, key), getattr(now, key)) for key in keys]
    if now.split == "hash":
        theirs, ours = before.raw["task"], config.raw["task"]
        pairs += [(f"task.{k}", theirs[k], ours.get(k)) for k in theirs if re.fullmatch(TEXTS, k)]
    differ = [
        f"{key} is {a!r} there and {b!r} here"
        for key, a, b in pairs
        if a != b and not (key.endswith("path") and _places(a) == _places(b))
    ]
    scored, trained = set(), set()
    for data, part, files in ((now, split, scored), (then, "train", trained)):
        for path in data.paths:
            one = dataclasses.replace(data, path=path, weights=())
            with contextlib.suppress(FlaxlmError):  # the others are there
                files |= {os.path.realpath(source.path) for source in sources(one, part)}
    both = scored & trained
    if differ and (read := trained_on(place)):
        sizes = {file["bytes"] for file in read}
        alike = [path for path in scored - both if os.path.getsize(path) in sizes]
        both |= {path for path in alike if sha256(path) in {file["sha256"] for file in read}}
    if differ and both:
        warnings.warn(
            f"{place} was trained on {len(both)} of the {len(scored)} files that are scored, "
            f"and {'; '.join(differ)}: rows of its training may be among those scored",
            stacklevel=2,
        )


def trained_on(run: str) -> list[dict]:
    """Return path, size and digest of each file of the newest checkpoint's training split."""
    name = data_record.FILE
    with contextlib.suppress(OSError, KeyError, Damaged):
        if own := newest(run):
            verify_files(own[0], {name: own[1].files[name]})
            return parse_json((own[0] / name).read_bytes(), whole=False)["train"]
    return []


def scored_whole(
    nested: dict, overrides: dict[str, str], run: dict | None, split: str = "valid"
) -> dict[str, str]:
    """Return the overrides, with those that score all of a file which was not trained on.

    That is a `data.path` on the command line other than the run's, where nothing is said of
    splits. The directory of a published set has its parts, and `stdlib` is split as in training.
    No file here was held out from a Hugging Face model, for which `run` is None, and for it a
    recipe's own path counts as one on the command line does. ConfigError for the path that a run
    was trained on where its `split` stands in another file.
    """
    data, task = nested.get("data", {}), overrides.get("task.name", "")
    path, typed = data.get("path"), overrides.get("data.path")
    if typed is not None:
        path = recipe.read_value("data.path", DataConfig.__annotations__["path"], typed)
    own = _places(path) == _places(data.get("path"))
    parts = task_defaults(task or nested.get("task", {}).get("name", "text")).get("data", {})
    parts = parts if task else parts | data
    published = bool(parts.get("valid_path")) and all(map(os.path.isdir, _places(path)))
    said = any(f"data.{key}" in overrides or (own and key in data) for key in PARTS)
    trained = run is not None and (
        typed is None or _places(path) == _places(run.get("data", {}).get("path"))
    )
    other = _places(run["data"].get(f"{split}_path")) if trained and typed is not None else []
    asked = f"data.{split}_path" in overrides or overrides.get("data.split", "file") != "file"
    if not (published or asked) and other not in ([], _places(path)):
        raise ConfigError(
            f"--config.data.path={typed} is what the run was trained on, and its {split} split is "
            f"{other[0]}: leave it out to score that, or score what was trained on by --split=train"
        )
    if path in (None, STDLIB) or trained or published or said:
        return overrides
    return overrides | {"data.split": "whole"}


def _places(path: str | Sequence[str] | None) -> list[str]:
    """Return where one path, or several, lead, however they are written."""
    paths = [path] if path and isinstance(path, str) else path or ()
    return [os.path.abspath(os.path.expanduser(path)) for path in paths]


def in_buckets(nested: dict, overrides: dict[str, str]) -> dict[str, str]:
    """Return the overrides, with batches no wider than they need where a task has examples."""
    task = TASKS.get(overrides.get("task.name") or nested.get("task", {}).get("name", "text"))
    said = "train.buckets" in overrides or "buckets" in nested.get("train", {})
    if said or task is None or not task.objective:
        return overrides
    return overrides | {"train.buckets": str(tuple(2**power for power in range(4, 15)))}


def run(options: Options, config) -> None:
    """Score a split and print the table."""
    if options.split not in config.data.split_names():
        fixed = config.task.objective and config.data.path == STDLIB
        raise ConfigError(
            f"--split={options.split}: there is no such split here; choose one of: "
            + ", ".join(config.data.split_names())
            + ("" if fixed else "; --config.data.path=FILE scores all of another file")
        )
    result = evaluate(config, options.place, options.split, options.checkpoint)
    part = "whole" if config.data.split == "whole" else options.split
    of = config.task_name if part == "whole" else part
    report(options.place, result, f"evaluate: {options.place.name}, {part}", of)


UNTIL = "until `train` goes on with the run, "  # which makes its own figures again


def told_apart(run, split: str) -> None:
    """Warn where a split is not what the run was judged by: the report of that is replaced."""
    inputs = run.inputs
    saved = Checkpointer(inputs.workdir, read_only=True)
    # What is scored whole has names of its own.
    if inputs.config.data.split == "whole" or run.step not in saved.committed():
        return
    if differ := inputs.other_data(saved, run.step, [split]):
        name = place(inputs.workdir, inputs.config, split).name
        did, until = ("trained on", "") if split == "train" else ("judged by", UNTIL)
        warnings.warn(
            f"the {split} split is not what the run was {did} ({'; '.join(differ)}): "
            f"{until}result.json and evaluations/{name} are of this one",
            stacklevel=1,
        )


def evaluate(config, workdir: pathlib.Path, split: str, checkpoint: str) -> dict:
    """Return `{split/metric: value}` of a run's checkpoint over a whole split."""
    source = (config, workdir, checkpoint)
    with Watchdog(config.train.stuck_after), open_run(*source, say=say) as run:
        run.inputs.agree([split])
        probe(workdir)  # before the work whose results go there
        told_apart(run, split)
        scores = examine(run.program, run.model.params, run.inputs, split, run.step)
        return scores | {"step": run.step}
