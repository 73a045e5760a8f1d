"""The GLUE benchmark: every task that a folder has, one after the other, from the same weights.

    WORKDIR/
        <task>/       the run of each task, an ordinary run directory
        glue.json     the scores; a task that stands there is finished, and not run again
        submission/   answers to the test files, as gluebenchmark.com takes them

Tasks without a file to train on are listed with the reason.
"""

import contextlib
import copy
import dataclasses
import functools
import glob
import hashlib
import json
import pathlib
import re
import time
import warnings
from collections.abc import Callable, Sequence
from typing import ClassVar

import jax

from flaxlm import files
from flaxlm.commands import recipe
from flaxlm.commands.evaluate import evaluate
from flaxlm.commands.options import FreshOptions, ProcessOptions, RunOptions
from flaxlm.errors import ConfigError, DataError, MissingInput, StorageError, cause_of, choose
from flaxlm.evaluation import compare, report
from flaxlm.processes import Watchdog, barrier
from flaxlm.progress import Progress, clock, say, show
from flaxlm.tasks.glue import GLUE
from flaxlm.train import train
from flaxlm.training import config as run_config
from flaxlm.training.checkpoint import Checkpointer
from flaxlm.training.workdir import Workdir
from flaxlm.untrusted import file_bytes, parse_json, printable, sealed, unsealed

RUNS = {"mnli_mm": "mnli"}  # tasks that are judged with the run of another
STEMS = {"train": "train", "valid": "(dev|valid|validation)", "test": "test"}
# What it says of every task by itself.
OWN = ("init", "task.name", "objective.name", "data.path", "data.split")
OWN += ("data.valid_path", "data.test_path")
ENDINGS = r"\.(tsv|jsonl|csv|parquet)(\.gz|\.zst)?$"
SHARD = r"(-\d+-of-\d+)?"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(RunOptions, FreshOptions, ProcessOptions):
    """What is trained on which tasks.

    Attributes:
      tasks: which: cola,sst2,…; all without it
    """

    joins: ClassVar[bool] = True
    data: str  # folder of the tasks' folders (CoLA, …)
    init: str = ""  # run directory or hf:NAME_OR_DIR to start from
    tasks: tuple[str, ...] = dataclasses.field(default=(), metadata={"commas": True})

    def default_recipe(self) -> dict:
        """Return the recipe of fine-tuning."""
        if not self.init:
            raise ConfigError("--init=RUN or --init=hf:NAME_OR_DIR is required")
        return recipe.load_recipe("finetune")

    def configure(self, nested: dict, overrides: dict[str, str]) -> Callable:
        """Return a function (task's name, its `data` section) -> RunConfig.

        ConfigError where an override says what each task says by itself.
        """
        for key in OWN:
            if key in overrides:
                raise ConfigError(f"--config.{key}: glue decides that for every task by itself")

        def config_of(task: str, data: dict) -> run_config.RunConfig:
            own = copy.deepcopy(nested) | ({"init": self.init} if self.init else {})
            run_config.choose_task(own, task)
            own["data"] = own.get("data", {}) | data
            return recipe.configure(own, overrides)

        config_of.raw = copy.deepcopy(nested) | overrides
        return config_of


@dataclasses.dataclass(frozen=True)
class Job:
    """A task and what there is for it."""

    task: str  # key of GLUE
    place: pathlib.Path  # its run directory
    splits: dict[str, str]  # {split: file, or glob of its parts}
    config: run_config.RunConfig
    train: bool  # else the run that stands at `place` is judged

    @property
    def identity(self) -> str:
        """A hash of the config: another one is another result."""
        return hashlib.sha256(self.config.to_json().encode()).hexdigest()

    @functools.cached_property
    def data(self) -> dict[str, list[str]]:
        """The digests of the files of each split."""
        return {
            split: [files.sha256(name) for name in sorted(glob.glob(pattern))]
            for split, pattern in self.splits.items()
        }


def run(options: Options, config_of: Callable) -> None:
    """Train and score the tasks."""
    data = pathlib.Path(options.data)
    glue(config_of, data, options.place, options.tasks, options.allow_missing)


def glue(
    config_of: Callable[[str, dict], run_config.RunConfig],
    data: pathlib.Path,
    workdir: pathlib.Path,
    tasks: Sequence[str] = (),
    allow_missing: str = "",
) -> dict:
    """Train and score the tasks of a folder, print their table; return what `glue.json` holds.

    Args:
      config_of: see `Options.configure`.
      data: a folder with one for each task: CoLA, cola or glue_cola, with files train, dev, test.
      workdir, allow_missing: see `train`.
      tasks: keys of GLUE; all without it, and those that cannot be run are listed with the reason.

    Raises:
      MissingInput: a task that was asked for, or every one, has no files.
    """
    for name in tasks:
        choose("--tasks", name, GLUE)
    jobs, skipped = find_jobs(config_of, data, workdir, tasks)
    asked = [f"{name}: {skipped[name]}" for name in tasks if name in skipped]
    if asked or not jobs:
        raise MissingInput("; ".join(asked or [f"{n}: {why}" for n, why in skipped.items()]))
    stuck_after = max(job.config.train.stuck_after for job in jobs)
    with Watchdog(stuck_after), Workdir(workdir, lock=jax.process_index() == 0):
        result = run_jobs(jobs, skipped, workdir, allow_missing)
    if jax.process_index() == 0:
        print_table(result)
    return result


def run_jobs(
    jobs: Sequence[Job], skipped: dict[str, str], workdir: pathlib.Path, allow_missing: str
) -> dict:
    """Train and score what is not finished; return what `glue.json` holds."""
    known, submission = _read(workdir / "glue.json"), workdir / "submission"
    left = [job for job in jobs if not finished(job, known.get(job.task), submission)]
    check_rows(left)
    for number, job in enumerate(jobs, 1):
        before = "" if job in left else " was finished before"
        say(f"glue {number}/{len(jobs)}: {job.task}{before}")
        if job in left:
            known[job.task] = score(job, allow_missing)
            hand_in(job, submission)
            _write(workdir, known, skipped)
    return _write(workdir, known, skipped)


def check_rows(jobs: Sequence[Job]) -> None:
    """Read every file: a bad row of the last task is found before the first is trained."""
    pairs = [(job, split) for job in jobs for split in job.splits]
    with Progress("read", len(pairs), unit="files", quiet=jax.process_index() != 0) as bar:
        for job, split in pairs:
            labels = getattr(job.config.objective, "labels", ())
            job.config.task.examples(job.config.data, split, labels)
            bar.add(1)


def find_jobs(
    config_of: Callable, data: pathlib.Path, workdir: pathlib.Path, tasks: Sequence[str]
) -> tuple[list[Job], dict[str, str]]:
    """Return what can be run, and {task: why not} of the others."""
    if not data.is_dir():
        raise MissingInput(f"--data={data} is not a folder")
    folders = find_folders(data)
    jobs, skipped = [], {}
    for name in (name for name in GLUE if not tasks or name in tasks):
        try:
            jobs.append(find_job(name, config_of, data, folders, workdir, [j.task for j in jobs]))
        except MissingInput as error:
            skipped[name] = str(error)
    for job in jobs:
        if job.config.seeds > 1 or job.config.baseline:
            raise ConfigError(
                "glue runs each task once: leave seeds and baseline out, and give another seed "
                "another --workdir"
            )
    return jobs, skipped


def find_job(name, config_of, data, folders, workdir, before) -> Job:
    """Return the job of a task; MissingInput says why there is none."""
    task = GLUE[name]
    folder = folders.get(_key(task.folder))
    if folder is None:
        raise MissingInput(f"there is no folder {task.folder} in {data}")
    splits = find_files(folder, task.part)
    if "valid" not in splits:
        raise MissingInput(f"{folder} has no file dev{task.part}")
    section = {
        "path": splits.get("train", splits["valid"]),
        "split": "file",
        "valid_path": splits["valid"],
        "test_path": splits.get("test", ""),
    }
    owner = RUNS.get(name, name)
    place = workdir / owner
    if owner == name and "train" in splits:
        return Job(name, place, splits, config_of(name, section), True)
    splits.pop("train", None)
    if owner in before:
        return Job(name, place, splits, config_of(name, section), False)
    if Checkpointer(place, read_only=True).latest() is None:
        lacks = f"{folder} has no file train" if owner == name else f"it is judged with {owner}'s"
        raise MissingInput(f"{lacks}, and {place} is no run that could be scored")
    recipe = run_config.read_run(str(place))
    if recipe.get("task", {}).get("name") != owner:
        raise MissingInput(f"{place} is a run of another task")
    recipe |= {"task": recipe["task"] | {"name": name}, "data": recipe["data"] | section}
    return Job(name, place, splits, run_config.from_dict(recipe), False)


def _key(name: str) -> str:
    return re.sub(r"^glue|[^a-z0-9]", "", name.lower())


def find_folders(data: pathlib.Path) -> dict[str, pathlib.Path]:
    """Return {letters and digits of a task's name: its folder}; ConfigError where it has two."""
    wanted = {_key(task.folder) for task in GLUE.values()}
    folders: dict[str, pathlib.Path] = {}
    for path in sorted(data.iterdir()):
        key = _key(path.name)
        if path.is_dir() and key in wanted:
            if key in folders:
                raise ConfigError(f"{folders[key]} and {path} are of the same task; move one away")
            folders[key] = path
    return folders


def find_files(folder: pathlib.Path, part: str = "") -> dict[str, str]:
    """Return {split: file, or glob of its parts} of a task's folder.

    A split is `train`, `dev`, `valid` or `validation`, `test`, the last two followed by `part`
    (`_matched`), in TSV, JSONL, CSV or Parquet; without a `test`, the one file that begins so.
    ConfigError where there are several.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    files_of = {}
    for split, stem in STEMS.items():
        end = "" if split == "train" else part
        patterns = [f"{stem}{end}{SHARD}{ENDINGS}"]
        patterns += [rf"test\w*{ENDINGS}"] * (split == "test" and not part)
        matching = ([name for name in names if re.match(pattern, name)] for pattern in patterns)
        if matches := next(filter(None, matching), []):
            shared = {re.sub(r"-\d+-of-", "-*-of-", name) for name in matches}
            if len(shared) > 1:
                raise ConfigError(
                    f"{folder}: which is the {split} split? Keep one of: {', '.join(matches)}"
                )
            files_of[split] = str(folder / (shared.pop() if len(matches) > 1 else matches[0]))
    return files_of


def finished(job: Job, entry: dict | None, submission: pathlib.Path) -> bool:
    """Return whether `glue.json` has a task's scores, of this config and data, as reported."""
    if not entry or entry["config"] != job.identity:
        return False
    if "test" in job.splits and not (submission / GLUE[job.task].submission).exists():
        return False
    if entry.get("data", job.data) != job.data:  # one of before 2026-11-27 does not say it
        return False
    with contextlib.suppress(OSError, ValueError, DataError):
        told = {split: _scores(job, split) for split in ("valid", "test") if split in entry}
        return json.dumps(told) == json.dumps({split: entry[split] for split in told})
    return False


def _scores(job: Job, split: str) -> dict:
    """Return the scores of a report, compared with its checksums; DataError where they differ."""
    directory = report.place(job.place, job.config, split)
    compare.check(directory)
    return parse_json(compare.read(directory, "scores.json"))


def score(job: Job, allow_missing: str) -> dict:
    """Train and evaluate a task; return its entry of `glue.json`."""
    started = time.monotonic()
    resumed = job.train and Checkpointer(job.place, read_only=True).latest() is not None
    if job.train:
        train(job.config, job.place, allow_missing)
    entry = {"config": job.identity, "data": job.data, "resumed": resumed}
    for split in ("valid", "test"):
        if split in job.splits:
            if split == "test" or not job.train:  # else training has left it
                evaluate(job.config, job.place, split, "")
            barrier(f"{job.task} {split}")  # the first process writes it
            entry[split] = _scores(job, split)
    return entry | {"seconds": round(time.monotonic() - started, 1)}


def hand_in(job: Job, directory: pathlib.Path) -> None:
    """Copy a task's answers to its test file."""
    if "test" not in job.splits or jax.process_index():
        return
    name = GLUE[job.task].submission
    directory.mkdir(parents=True, exist_ok=True)
    answers = compare.read(report.place(job.place, job.config, "test"), name)
    files.replace(directory / name, answers)


def _read(path: pathlib.Path) -> dict:
    try:
        return dict(unsealed(parse_json(file_bytes(path)))["tasks"])
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError) as error:
        # The runs themselves know how far they are.
        warnings.warn(f"{path} is damaged, and made again: {error}", stacklevel=2)
        return {}


def _write(workdir: pathlib.Path, entries: dict, skipped: dict) -> dict:
    """Write `glue.json` and return it: `tasks`, `skipped`, `average` and of `how_many` tasks."""
    order = [name for name in GLUE if name in entries]
    result = {"tasks": {name: entries[name] for name in order}, "skipped": skipped}
    scores = task_scores({name: entries[name]["valid"] for name in order})
    result |= {"average": sum(scores.values()) / len(scores), "how_many": len(scores)}
    if jax.process_index() == 0:
        try:
            files.replace(workdir / "glue.json", f"{json.dumps(sealed(result), indent=2)}\n")
        except OSError as error:
            raise StorageError(
                f"cannot write {workdir}/glue.json: {cause_of(error, workdir)}"
            ) from None
    return result


def task_scores(valid: dict[str, dict]) -> dict[str, float]:
    """Return {task: the mean of its metrics}; both parts of MNLI are one."""
    groups: dict[str, list[float]] = {}
    for name, scores in valid.items():
        means = [scores[metric] for metric in GLUE[name].reported]
        groups.setdefault(RUNS.get(name, name), []).append(sum(means) / len(means))
    return {name: sum(means) / len(means) for name, means in groups.items()}


def print_table(result: dict) -> None:
    """Print the scores of `glue.json`, in hundredths as GLUE has them."""
    from rich.table import Table

    grid = Table("task", "metric", "dev", "95 %", "test", "time", box=None, padding=(0, 2))
    for name, entry in result["tasks"].items():
        spent = clock(entry["seconds"]) + " and before" * entry["resumed"]
        for metric in GLUE[name].reported:
            valid, test = entry["valid"], entry.get("test", {}).get(metric)
            between = f"{100 * valid[f'{metric}_low']:.1f} to {100 * valid[f'{metric}_high']:.1f}"
            tested = "" if test is None else f"{100 * test:.1f}"
            grid.add_row(name, metric, f"{100 * valid[metric]:.1f}", between, tested, spent)
            name = spent = ""
    count, all_ = result["how_many"], len(GLUE) - len(RUNS)
    grid.add_row("average", f"{count} of {all_} tasks", f"{100 * result['average']:.1f}")
    skipped = (f"not run: {name}: {reason}" for name, reason in result["skipped"].items())
    show(grid, *map(printable, skipped))
