"""Checkpoints: one atomic commit a step, verified when read, opened on any mesh.

    WORKDIR/checkpoints/step_00001000/
        state/             the arrays, an Orbax PyTree
        config.json, …     the files that make the checkpoint open by itself
        manifest.json      written last: shape, dtype and digest of every leaf, hashes, fingerprint

A save is written in `.writing-step_N` and renamed once everything in it is on the disk, so a
`step_N` was committed: if its manifest is missing it was damaged, and that is never taken for a
fresh start. A step is deleted by renaming it first, so none is ever half there. Orbax by itself
restored a flipped bit silently, and listed a half-deleted step as valid.
"""

import contextlib
import dataclasses
import datetime
import functools
import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from flaxlm import files, tree
from flaxlm.errors import MissingInput, StorageError, Unsafe, cause_of, choose
from flaxlm.processes import signals
from flaxlm.training import arrays, manifest, workdir
from flaxlm.training.manifest import Damaged, Leaf, Manifest
from flaxlm.training.store import SKIPPED, CheckpointConfig, Store, ranked

log = logging.getLogger("flaxlm")
PART = 1 << 30  # bytes of a state that are read at once to verify it


class Checkpointer(Store):
    """Saves and restores the states of one run.

    Under `jax.distributed` every process makes one and calls it at the same steps, on a directory
    that all of them see; the first process commits.

    Args:
      directory: the run's directory, or one step's directory to read only that.
      config: when to save and what to keep.
      extra: JSON values for the manifest, as hashes of config, tokenizer and data.
      files: `{name: contents, or a path to copy (a file or a directory)}` saved with each step.
      metric: the name in `metrics` by which the best steps are kept.
      mode: `min` or `max`.
      read_only: for a reader beside the run that holds the lock: nothing is cleaned or moved.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        config: CheckpointConfig | None = None,
        extra: Mapping[str, Any] | None = None,
        files: Mapping[str, bytes | str | os.PathLike] | None = None,
        *,
        metric: str = "valid/loss",
        mode: str = "min",
        read_only: bool = False,
    ):
        super().__init__(directory)
        self.config = config or CheckpointConfig()
        self.metric, self.mode = metric, choose("eval.mode", mode, ("min", "max"))
        self.extra, self.files = dict(extra or {}), dict(files or {})
        # One line for each damaged step that a restore met.
        self.damage: list[str] = []
        self.read_only = read_only or self.single is not None
        self._primary = jax.process_index() == 0
        self._thread: threading.Thread | None = None
        self._failure: StorageError | None = None
        self._unheard: Callable[[], None]  # with `_failure`: the main thread knows of it
        if not self.read_only and self._primary:
            self.open()

    def steps(self) -> list[int]:
        """Return the committed steps, ascending; their arrays are verified when restored."""
        return list(self.readable())

    def best(self) -> int | None:
        """Return the kept step with the best metric, or None where no step has it."""
        return next(iter(ranked(self.scores(self.metric), self.mode)), None)

    def last_good(self, abstract_state) -> int | None:
        """Return the newest step before any update that was skipped since, None where none is good.

        That is one that verifies, was saved while no updates were skipped, and has finite
        parameters. It is read in parts, for `abstract_state` (see `restore`) lies there already.
        """
        parts: list[dict] = [{}]
        for path, leaf in tree.flatten(abstract_state).items():
            if tree.nbytes([*parts[-1].values(), leaf]) > PART:
                parts.append({})
            parts[-1][path] = leaf
        with contextlib.suppress(StorageError):  # that a save failed is no reason for another
            self.wait()
        for step, record in reversed(self.readable().items()):
            with contextlib.suppress(StorageError, MissingInput, Unsafe):
                read = (self.restore_params(step, "", tree.unflatten(part))[0] for part in parts)
                if not record.metrics.get(SKIPPED) and all(
                    tree.finite(loaded.get("params")) for loaded in read
                ):
                    return step
        return None

    def manifest(self, step: int | None = None) -> Manifest:
        """Return a step's manifest (the newest step's by default) without reading arrays."""
        step = self.latest() if step is None else step
        if step is None or step not in self.committed():
            raise self.missing(step)
        return self.sound(step)

    def probe(self, abstract_state) -> None:
        """Raise StorageError unless the checkpoints that this run keeps will fit on the disk."""
        kept = self.config.keep + self.config.keep_best
        # One more than is kept lies on the disk while it is written.
        new = max(1, kept + 1 - len(self.committed()))
        if self._primary:
            workdir.probe(self.root, new * tree.nbytes(abstract_state))

    def save(
        self, step: int, state, metrics: Mapping[str, Any] | None = None, wait: bool = False
    ) -> None:
        """Start saving a state; when this returns, the state may be donated.

        The save before is joined first. A step that is already saved with the same digests only
        takes the new `metrics`.

        Args:
          step: the number of updates done.
          state: any pytree of arrays (global ones, in a run of several processes).
          metrics: `{name: value}`, by which the best steps are kept.
          wait: return only when the step is committed.

        Raises:
          StorageError: this save cannot start, or the save before failed.
        """
        if self.read_only:
            raise Unsafe(f"{self.root} was opened for reading only")
        self.wait()
        flat = tree.flatten(state)
        nbytes = tree.nbytes(flat)
        record = self._describe(step, flat, metrics or {})
        if arrays.broadcast(self._primary and self._already(record)):
            return
        if self._primary:
            workdir.require_space(self.root, nbytes)
            self.discard(step)
        try:
            response = arrays.begin(self.writing(step) / "state", flat)
        except OSError as error:
            raise self._not_saved(step, nbytes, error) from error
        self._thread = threading.Thread(target=self._finish, args=(response, record, nbytes))
        self._thread.start()
        if wait:
            self.wait()

    def _describe(self, step: int, flat: Mapping[str, Any], metrics) -> Manifest:
        digests = tree.digests(flat)
        return Manifest(
            step=step,
            leaves={p: Leaf(tuple(x.shape), str(x.dtype), digests[p]) for p, x in flat.items()},
            metrics=manifest.finite(metrics),
            extra=self.extra,
            mesh=arrays.mesh_of(flat),
            fingerprint=manifest.fingerprint(),
            versions=manifest.versions(),
            files={},
            saved=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )

    def _already(self, record: Manifest) -> bool:
        """Return whether the step is saved with these digests; add the new metrics to it."""
        try:
            old = Manifest.read(self.path(record.step))
        except Damaged:
            return False
        if old.leaves != record.leaves:
            return False
        if record.metrics:
            merged = dataclasses.replace(old, metrics=old.metrics | record.metrics)
            files.replace(self.path(record.step) / manifest.NAME, merged.to_bytes())
        return True

    def _finish(self, response, record: Manifest, nbytes: int) -> None:
        """Commit a save once every process has written; runs in a thread of its own."""
        try:
            response.result()
            if self._primary:
                log.info("saved %s", self.commit(record, self.files))
        except BaseException as error:
            if self._primary:
                self.discard(record.step)
            self._failure = self._not_saved(record.step, nbytes, error)
            self._unheard = signals.unless_heard(self._failure)
            return
        self.prune(record.step)

    def prune(self, newest: int) -> None:
        """Delete what need not be kept, or say why not; `newest` is a step known to be sound."""
        try:
            if self._primary:
                self.retain(self.config, self.metric, self.mode, newest)
        except OSError as error:
            log.warning("old checkpoints in %s cannot be deleted: %s", self.root, error)

    def _not_saved(self, step: int, nbytes: int, error: BaseException) -> StorageError:
        error = arrays.system_error(error)
        cause = " ".join(str(error).split())[:300] or type(error).__name__
        if isinstance(error, OSError):
            cause = cause_of(error, self.root, nbytes)
        good = self.steps()
        last = f"the last good one is step {good[-1]}" if good else "there is no other"
        return StorageError(f"checkpoint step {step} was not saved in {self.root}: {cause}; {last}")

    def poll(self) -> None:
        """Raise StorageError if a save has failed; never waits."""
        if self._thread and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Join the save that is under way; raises StorageError if it failed."""
        if self._thread:
            self._thread.join()
            self._thread = None
        if failure := self._failure:
            self._failure = None
            self._unheard()
            raise failure

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            self.wait()
        except StorageError as late:
            if error is None:
                raise
            log.error("%s", late)  # what ended the run is raised; this is said besides

    def restore(self, abstract_state, step: int | None = None) -> tuple[Any, Manifest]:
        """Return the newest state that verifies, and its manifest.

        Args:
          abstract_state: pytree of ShapeDtypeStructs with the shardings to restore to, on any
            mesh; a leaf without one goes to the first device.
          step: only this step, and no other in its stead.

        Raises:
          MissingInput: there is no checkpoint.
          Unsafe: the checkpoint is of another state: a path, shape or dtype differs.
          StorageError: every checkpoint is damaged; each is listed.
        """
        asked = {path: arrays.placed(leaf) for path, leaf in tree.flatten(abstract_state).items()}
        request = functools.partial(arrays.check, asked=asked, whole=True)
        arrays_of, record = self._first_good(request, step)
        leaves = [arrays_of[path] for path in asked]
        return jax.tree.unflatten(jax.tree.structure(abstract_state), leaves), record

    def restore_params(
        self, step: int | None = None, prefix: str = "params", abstract=None
    ) -> tuple[dict, Manifest]:
        """Return one branch of a state as a nested dict, and its manifest; see `restore`.

        Args:
          step: as for `restore`.
          prefix: the branch: `params`, `ema`; empty for the whole state.
          abstract: nested dict of ShapeDtypeStructs, all of the branch or a part of it. Without it
            the whole branch comes as numpy arrays, and neither the mesh nor the devices that wrote
            it are needed; Unsafe where it is empty.
        """
        start = f"{prefix}/" if prefix else ""
        flat = tree.flatten(abstract or {})
        asked = {start + path: arrays.placed(leaf) for path, leaf in flat.items()}

        def request(record: Manifest) -> dict:
            if abstract is not None:
                return arrays.check(record, asked, whole=False)
            branch = record.branch(start)
            if not branch:
                raise Unsafe(f"checkpoint {self.path(record.step)} holds no {prefix}")
            return {start + p: arrays.Host(v.shape, np.dtype(v.dtype)) for p, v in branch.items()}

        arrays_of, record = self._first_good(request, step)
        return tree.unflatten({p.removeprefix(start): x for p, x in arrays_of.items()}), record

    def blame(self, step: int, error: Damaged) -> None:
        """Say, once, that a step is damaged."""
        line = f"checkpoint step {step} in {self.root} is damaged: {error}"
        if line not in self.damage:
            self.damage.append(line)
            log.warning("%s", line)

    def blame_unreadable(self) -> None:
        """Say of which steps there is no sound manifest: nobody knows what they are."""
        for step in self.committed():
            try:
                Manifest.read(self.path(step))
            except Damaged as error:
                if step in self.committed():  # else a run beside has deleted it
                    self.blame(step, error)

    def _first_good(self, request: Callable, step: int | None) -> tuple[dict, Manifest]:
        """Return the arrays that `request(manifest)` names of the newest step that verifies."""
        self.wait()
        committed = self.committed()
        steps = committed[::-1] if step is None else [s for s in committed if s == step]
        if not steps:
            raise self.missing(step)
        damaged: dict[int, str] = {}
        for candidate in steps:
            try:
                loaded = self._load(candidate, request)
            except Damaged as error:
                damaged[candidate] = str(error)
                self.blame(candidate, error)
                continue
            if damaged:
                log.warning("using checkpoint step %d instead, the newest that verifies", candidate)
                if self._primary and not self.read_only:
                    for bad in damaged:
                        self.set_aside_damaged(bad)
            return loaded
        if self.committed() != committed:
            # A reader beside a run: the run deleted these while they were read.
            return self._first_good(request, step)
        listing = "; ".join(f"step {s}: {cause}" for s, cause in damaged.items())
        raise StorageError(
            f"no checkpoint in {self.root} can be used: {listing}; restore one from a copy, "
            "or start in another workdir"
        )

    def _load(self, step: int, request: Callable) -> tuple[dict, Manifest]:
        """Return the arrays that `request(manifest)` names, verified; raises Damaged."""
        directory = self.path(step)

        def read() -> tuple[dict, Manifest]:
            record = Manifest.read(directory)
            if record.step != step:
                raise Damaged(f"its {manifest.NAME} is of step {record.step}")
            asked = request(record)
            manifest.verify_files(directory, record.files)
            partial = len(asked) < len(record.leaves)
            return arrays.read(directory / "state", asked, partial), record

        leaves, record = arrays.together(read)
        arrays.verify(record, leaves)
        return leaves, record
