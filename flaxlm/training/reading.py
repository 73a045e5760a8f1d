"""Reading the model of a run: which of its checkpoints, and each parameter as it is evaluated.

A parameter comes from its average where the run kept one. Low-rank factors that the reader has no
place for are merged into their kernels, so a LoRA run is read as any other.
"""

import dataclasses
import os
from collections.abc import Callable

import jax

from flaxlm import sharding, tree
from flaxlm.errors import ConfigError, MissingInput, StorageError
from flaxlm.models import MODELS
from flaxlm.progress import say
from flaxlm.training import arrays, lora
from flaxlm.training.checkpoint import Checkpointer
from flaxlm.training.config import EvalConfig, read_run
from flaxlm.training.manifest import Manifest
from flaxlm.training.program import Program
from flaxlm.training.store import ranked


@dataclasses.dataclass(frozen=True)
class Source:
    """One checkpoint of a run."""

    saved: Checkpointer  # the run's, to read only
    step: int  # which of them
    why: str  # how it was chosen, for a person
    exact: bool  # False: should it be damaged, the newest that is not will do

    def check(self, wanted: dict, program: Program) -> None:
        """Raise Unsafe unless the checkpoint has `wanted`, see `read`, in these shapes."""
        record = self.saved.manifest(self.step)
        _, asked = _asked(record, wanted, program)
        arrays.check(record, asked, whole=False)

    def verified(self, params) -> Manifest:
        """Return the manifest of this checkpoint, every leaf of which is read and verified.

        Raises:
          Unsafe: its parameters are not of the paths, shapes and dtypes of `params`.
          StorageError: it is damaged.
        """
        record = self.saved.manifest(self.step)
        parameters = dataclasses.replace(record, leaves=record.branch("params/"))
        arrays.check(parameters, tree.flatten(params), whole=True)
        return self.saved.restore_params(self.step, "")[1]

    def read(self, wanted: dict, program: Program) -> tuple[dict, Manifest]:
        """Return {path: array} of the parameters `wanted`, and the manifest that they came with.

        `wanted` is {path: ShapeDtypeStruct with its sharding}, on the mesh of the reader `program`.
        """
        names, asked = _asked(self.saved.manifest(self.step), wanted, program)
        step = self.step if self.exact else None
        loaded, record = self.saved.restore_params(step, "", tree.unflatten(asked))
        leaves = tree.flatten(loaded)
        return _merged({path: leaves[leaf] for path, leaf in names.items()}, wanted), record


def find(run: str | os.PathLike, checkpoint: str, config: EvalConfig | None = None) -> Source:
    """Return the checkpoint of a run directory that a word stands for.

    Args:
      run: the directory.
      checkpoint: `latest`, `best`, a step, or nothing: the best one where the run stops early,
        the latest elsewhere.
      config: how the run is evaluated; None: as its `config.json` says.

    Raises:
      MissingInput: there is no checkpoint, or `best` is asked for and none has a score.
      ConfigError: there is none of that step.
    """
    config = config or EvalConfig(**read_run(os.fspath(run)).get("eval", {}))
    metric = f"{config.split}/{config.metric}"
    saved = Checkpointer(run, metric=metric, mode=config.mode, read_only=True)
    records = saved.records()  # read once: a run beside may delete any of them
    if not records:
        raise MissingInput(f"{run} holds no checkpoint; train there first")
    if not checkpoint.isdecimal():
        saved.blame_unreadable()  # which may be the latest, or the best
    scores, latest = {s: r.metrics.get(metric) for s, r in records.items()}, max(records)
    wanted = checkpoint == "best" or (config.patience and not checkpoint)
    if wanted and (best := next(iter(ranked(scores, config.mode)), None)) is not None:
        score = scores[best]
        return Source(saved, best, f"the best, {metric} {score:.4f}", exact=True)
    if checkpoint == "best":
        raise MissingInput(f"{run}: no checkpoint was saved with an evaluation score")
    if checkpoint in ("", "latest"):
        return Source(saved, latest, "the latest", exact=False)
    steps = [str(step) for step in scores]
    if checkpoint not in steps:
        raise ConfigError(
            f"--checkpoint={checkpoint} is not there; choose latest, best or {', '.join(steps)}"
        )
    return Source(saved, int(checkpoint), "as asked", exact=True)


def read_chosen(run: str | os.PathLike, checkpoint: str, config: EvalConfig | None, use: Callable):
    """Return use(source) of the checkpoint that a word stands for, see `find`.

    A run beside this reader may delete it meanwhile; then the word stands for another one.
    """
    while True:
        source = find(run, checkpoint, config)
        try:
            return use(source)
        except (MissingInput, StorageError):
            if source.step in source.saved.committed():
                raise
            say(f"{run} has deleted its checkpoint step {source.step} while it was read")


def param_leaves(record: Manifest) -> dict[str, str]:
    """Return {parameter: leaf of the checkpoint that it is evaluated with}."""
    # An average counts before what it is an average of.
    return {p: branch + p for branch in ("params/", "ema/") for p in record.branch(branch)}


def _asked(record: Manifest, wanted: dict, program: Program) -> tuple[dict, dict]:
    """Return ({parameter: leaf}, {leaf: ShapeDtypeStruct}) to read `wanted` with.

    Factors beside a wanted kernel that are not wanted themselves come along, to be merged.
    """
    there, config = param_leaves(record), program.config
    factors = {
        path: record.leaves[leaf]
        for path, leaf in there.items()
        if lora.is_adapter(path) and path not in wanted and lora.kernel_of(path) in wanted
    }
    places = sharding.param_shardings(
        MODELS[config.model_name].axes, factors, program.device_mesh, config.sharding
    )
    both = wanted | {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=places[path])
        for path, leaf in factors.items()
    }
    names = {path: there.get(path, f"params/{path}") for path in both}
    return names, {names[path]: leaf for path, leaf in both.items()}


def _merged(params: dict, wanted: dict) -> dict:
    """Return {path: array} of what is wanted, the other factors merged into their kernels."""
    factors = {path: leaf for path, leaf in params.items() if path not in wanted}
    if not factors:
        return params
    kernels = sorted({lora.kernel_of(path) for path in factors})
    part = tree.unflatten(factors | {path: params[path] for path in kernels})
    places = tree.unflatten({path: wanted[path].sharding for path in kernels})
    merged = tree.flatten(jax.jit(lora.merge, out_shardings=places)(part))
    return {path: merged.get(path, params[path]) for path in wanted}
