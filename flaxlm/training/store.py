"""The step directories of one run: what is there, the commit, what is kept, how it is deleted.

Nothing here imports jax or reads arrays.
"""

import contextlib
import dataclasses
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from flaxlm import files, locks
from flaxlm.errors import MissingInput, StorageError, check_range
from flaxlm.training import manifest, workdir
from flaxlm.training.manifest import Damaged, Manifest

log = logging.getLogger("flaxlm")

SKIPPED = "skipped"  # of a step's metrics: updates that were skipped last, not being finite

_STEP = re.compile(r"step_(\d{8,})")
_WRITING, _TRASH, _DAMAGED = ".writing-", ".trash-", "damaged_"


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When to save, and which checkpoints to keep; durations in steps.

    Attributes:
      keep: how many of the latest steps are kept; at least 1, and 2 survive a damaged newest one.
    """

    every: int = 1000  # steps between saves; 0 saves at the end only
    keep: int = 2
    keep_best: int = 1  # how many of the best steps by the evaluation metric are kept besides
    keep_every: int = 0  # every step divisible by this is kept for good; 0 for none

    def __post_init__(self):
        check_range("checkpoint", self, "every", "keep_best", "keep_every")
        check_range("checkpoint", self, "keep", low=1)

    def kept(self, scores: Mapping[int, float | None], mode: str = "min") -> set[int]:
        """Return the steps to keep, of `{step: score or None}`."""
        kept = set(sorted(scores)[-self.keep :]) | set(ranked(scores, mode)[: self.keep_best])
        if self.keep_every:
            kept |= {step for step in scores if step % self.keep_every == 0}
        return kept


def ranked(scores: Mapping[int, float | None], mode: str) -> list[int]:
    """Return the steps that have a score, the best first; of equal scores the earlier first."""
    sign = 1 if mode == "min" else -1
    return [step for _, step in sorted((sign * v, s) for s, v in scores.items() if v is not None)]


class Store:
    """The directory `checkpoints` of a run, or one step's directory anywhere, to read only that."""

    def __init__(self, directory: str | os.PathLike):
        directory = Path(directory).expanduser().absolute()
        # The one step's directory, or None, and where the step directories lie.
        self.single = directory if (directory / manifest.NAME).is_file() else None
        self.root = directory.parent if self.single else directory / "checkpoints"
        self._single_step = self.sound(0).step if self.single else None

    def open(self) -> None:
        """Make the directory, and finish or clean up what a killed run left unfinished."""
        workdir.check_path(self.root)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            for path in self.root.glob(f"{_WRITING}*"):
                target = self.root / path.name.removeprefix(_WRITING)
                with contextlib.suppress(Damaged):
                    # A manifest says that all the rest was on the disk: only the name was missing.
                    if Manifest.read(path) and not target.exists():
                        files.rename(path, target)
                        continue
                locks.remove(path)
            for path in self.root.glob(f"{_TRASH}*"):
                locks.remove(path)
            for path in self.root.glob(f"{workdir.PROBE}*"):
                locks.remove(path)
        except OSError as error:
            raise workdir.unwritable(self.root, error) from error

    def path(self, step: int) -> Path:
        """Return the directory of a step."""
        return self.single or self.root / f"step_{step:08d}"

    def committed(self) -> list[int]:
        """Return every step that has a directory, damaged or not, ascending."""
        if self.single:
            return [self._single_step]
        if not self.root.is_dir():
            return []
        matches = (_STEP.fullmatch(path.name) for path in self.root.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def sound(self, step: int) -> Manifest:
        """Return the manifest of a step that is there; StorageError where it is damaged."""
        try:
            return Manifest.read(self.path(step))
        except Damaged as error:
            raise StorageError(f"checkpoint {self.path(step)} is damaged: {error}") from error

    def readable(self) -> dict[int, Manifest]:
        """Return the manifests that can be read, by step, ascending."""
        while True:
            manifests, committed = {}, self.committed()
            for step in committed:
                with contextlib.suppress(Damaged):
                    manifests[step] = Manifest.read(self.path(step))
            # A run beside this reader may have deleted one meanwhile, and made another.
            if len(manifests) == len(committed) or self.committed() == committed:
                return manifests

    def scores(self, metric: str) -> dict[int, float | None]:
        """Return `{step: its metric, or None}` of the readable steps."""
        return {step: record.metrics.get(metric) for step, record in self.readable().items()}

    def records(self) -> dict[int, Manifest]:
        """Return `readable()`; StorageError where steps were committed and none can be read."""
        committed = self.committed()  # first: what a run beside commits meanwhile is no damage
        records = self.readable()
        if committed and not records:
            raise StorageError(
                f"no checkpoint in {self.root} can be read: there is no sound {manifest.NAME} in "
                f"the steps {', '.join(map(str, committed))}; restore them from a copy, or start "
                "in another workdir"
            )
        return records

    def latest(self) -> int | None:
        """Return the newest step of `records`, or None where nothing was ever committed."""
        return next(reversed(self.records()), None)

    def missing(self, step: int | None) -> MissingInput:
        """Return the error for a step that is not there, None for any step."""
        there = ", ".join(map(str, self.committed())) or "none"
        which = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        return MissingInput(f"there is {which} in {self.root} (steps there: {there})")

    def writing(self, step: int) -> Path:
        """Return where a step is written before it is committed."""
        return self.root / f"{_WRITING}step_{step:08d}"

    def commit(self, record: Manifest, attached: Mapping[str, bytes | str | os.PathLike]) -> Path:
        """Commit what was written in `writing(step)`, with `attached` files and the manifest."""
        writing, target = self.writing(record.step), self.path(record.step)
        for name, contents in attached.items():
            _place(contents, writing / name)
        record = dataclasses.replace(record, files=manifest.file_hashes(writing, attached))
        files.fsync_tree(writing)
        files.replace(writing / manifest.NAME, record.to_bytes())
        # From here on `open` finishes the commit, so the step it replaces may go.
        aside = self._aside(target) if target.exists() else None
        files.rename(writing, target)
        if aside:
            shutil.rmtree(aside)
        return target

    def discard(self, step: int) -> None:
        """Remove what was written of a step that is not committed."""
        shutil.rmtree(self.writing(step), ignore_errors=True)

    def retain(self, config: CheckpointConfig, metric: str, mode: str, newest: int) -> None:
        """Delete what need not be kept; never `newest`, which was just committed or restored.

        Nor the newest that was saved while no updates were skipped; nor a step that cannot be read:
        a newer version may have written it.
        """
        records = self.readable()
        scores = {step: record.metrics.get(metric) for step, record in records.items()}
        good = [step for step, record in records.items() if not record.metrics.get(SKIPPED)]
        for step in scores.keys() - config.kept(scores, mode) - {newest, *good[-1:]}:
            shutil.rmtree(self._aside(self.path(step)))
        for path in self.root.glob(f"{_DAMAGED}*"):
            match = _STEP.fullmatch(path.name.removeprefix(_DAMAGED))
            if match and int(match[1]) <= newest:
                shutil.rmtree(self._aside(path))

    def _aside(self, path: Path) -> Path:
        """Rename a directory that is to be deleted, so that a kill never leaves half a step."""
        aside = self.root / f"{_TRASH}{path.name}"
        if os.path.lexists(aside):
            locks.remove(aside)
        files.rename(path, aside)
        return aside

    def set_aside_damaged(self, step: int) -> None:
        """Rename a damaged step, so that it is not taken again and a new save has its name."""
        target = self.root / f"{_DAMAGED}{self.path(step).name}"
        if os.path.lexists(target):
            locks.remove(self._aside(target))
        files.rename(self.path(step), target)


def _place(contents: bytes | str | os.PathLike, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(contents, bytes):
        target.write_bytes(contents)
    elif Path(contents).is_dir():
        for path in sorted(Path(contents).iterdir()):
            _place(path, target / path.name)
    else:
        shutil.copyfile(contents, target)
