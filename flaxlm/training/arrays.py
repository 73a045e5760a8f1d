"""The arrays of one checkpoint on disk: the only module that calls Orbax.

Arrays go in and out as `{path: array}`; on disk they are an Orbax PyTree of nested dicts, which
opens with Orbax alone. Orbax is imported on first use: it costs 0.2 s.
"""

import dataclasses
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxlm import tree
from flaxlm.errors import Unsafe, raise_scarce
from flaxlm.processes import gather
from flaxlm.training.manifest import Damaged, Leaf, Manifest


def _writing_context():
    from orbax.checkpoint import v1 as ocp

    # Its threads log with a traceback what `result` raises, which is told in a line.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    context = ocp.Context()
    saving = context.array.saving
    # Float mantissas hardly compress, and in plain bytes a flipped bit reaches the digest, which
    # names its leaf, where a compressed chunk would only fail to decode.
    saving.use_compression = False
    # The manifest holds these, checked; without them a small save takes 40 ms instead of 54.
    saving.enable_write_sharding_file = False
    saving.enable_post_merge_validation = False
    saving.array_metadata_store = None
    # In the background a directory that cannot be made, as on a full disk, leaves threads that
    # wait five minutes for it, and the process cannot end before them.
    context.asynchronous.create_directories_asynchronously = False
    return context


def _reading_context(partial: bool):
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.pytree.loading.partial_load = partial
    # Each process reads alone. Damage may lie in a part that one process reads, and Orbax would
    # let the others wait for it at a barrier for five minutes; `together` joins them instead.
    process = jax.process_index()
    context.multiprocessing.active_processes = {process}
    context.multiprocessing.primary_host = process
    context.multiprocessing.barrier_sync_key_prefix = f"process{process}"
    return context


def begin(directory: Path, arrays: Mapping[str, Any]):
    """Copy global arrays off their devices, so that they may be donated, and start writing them.

    Returns an object whose `result()` returns when all processes have written, or raises.
    """
    from orbax.checkpoint import v1 as ocp

    with _writing_context():
        return ocp.save_async(str(directory), tree.unflatten(dict(arrays)))


def system_error(error: BaseException) -> BaseException:
    """Return the OSError that an error of the array store tells of, any other error as it is."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return OSError(int(code[1]), os.strerror(int(code[1]))) if code else error


def read(directory: Path, abstract: Mapping[str, Any], partial: bool = False) -> dict[str, Any]:
    """Read arrays; raises Damaged, naming the leaves, where that fails.

    Args:
      directory: what `begin` was given.
      abstract: `{path: leaf}`; a `jax.ShapeDtypeStruct` with a sharding is read to it, anything
        else with a shape and a dtype to numpy.
      partial: whether paths that are on disk may be left out.
    """
    try:
        return _load(directory, abstract, partial)
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise  # the device or the host is too small: the checkpoint is not to blame
    except Exception as error:
        raise_scarce(error)
        raise Damaged(_blame(directory, abstract, error)) from error


def _load(directory, abstract, partial) -> dict[str, Any]:
    from orbax.checkpoint import v1 as ocp

    with _reading_context(partial):
        return tree.flatten(ocp.load(str(directory), tree.unflatten(dict(abstract))))


def _blame(directory: Path, abstract: Mapping[str, Any], error: Exception) -> str:
    """Return which leaves cannot be read, found by reading them one by one."""
    text = " ".join(str(error).split())
    reason = f"{type(error).__name__}: {text.partition('. ')[0][:120]}"
    bad = []
    for path, leaf in abstract.items():
        try:
            _load(directory, {path: leaf}, partial=True)
        except Exception:
            bad.append(path)
    if not bad or len(bad) == len(abstract):
        return f"the arrays cannot be read ({reason})"
    return f"leaf {name_some(bad)} cannot be read ({reason})"


def name_some(paths: list[str], most: int = 3) -> str:
    """Return the first few of some leaf names, and how many more there are."""
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(paths[:most]) + more


@dataclasses.dataclass(frozen=True)
class Host:
    """Asks for a leaf as a numpy array."""

    shape: tuple[int, ...]
    dtype: np.dtype


def placed(leaf) -> jax.ShapeDtypeStruct:
    """Return an abstract leaf with its sharding; where it has none, the first device."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def check(record: Manifest, asked: dict[str, Any], whole: bool) -> dict[str, Any]:
    """Return `asked`; Unsafe unless a checkpoint has these leaves, and no others if `whole`.

    Orbax casts a leaf of another dtype without a word, so equality is demanded here.
    """
    missing = [path for path in asked if path not in record.leaves]
    surplus = [path for path in record.leaves if path not in asked] if whole else []
    lines = [f"it has no {name_some(missing)}"] if missing else []
    lines += [f"only it has {name_some(surplus)}"] if surplus else []
    for path, leaf in asked.items():
        have, want = record.leaves.get(path), Leaf(tuple(leaf.shape), str(leaf.dtype))
        if have and str(want) != str(have):
            lines.append(f"{path} is {have} there and {want} here")
    if lines:
        more = f"; and {len(lines) - 4} more" if len(lines) > 4 else ""
        raise Unsafe(
            f"checkpoint step {record.step} is of another model or optimizer: "
            f"{'; '.join(lines[:4])}{more}; use the config that wrote it, or another workdir"
        )
    return asked


def verify(record: Manifest, arrays: Mapping[str, Any]) -> None:
    """Raise Damaged, naming the leaves, unless arrays have the digests of the manifest."""
    digests = tree.digests(dict(arrays))
    bad = [path for path in arrays if digests[path] != record.leaves[path].digest]
    if bad:
        raise Damaged(f"leaf {name_some(bad)} is not what was written (the digest differs)")


def mesh_of(arrays: Mapping[str, Any]) -> dict[str, int]:
    """Return `{axis: size}` of the mesh that arrays lie on; empty off a mesh."""
    meshes = (getattr(getattr(leaf, "sharding", None), "mesh", None) for leaf in arrays.values())
    mesh = next((mesh for mesh in meshes if mesh is not None), None)
    return {str(name): int(size) for name, size in mesh.shape.items()} if mesh is not None else {}


def broadcast(value: bool) -> bool:
    """Return the first process's value on every process."""
    return gather("what process 0 has saved", value)[0]


def together(read: Callable):
    """Return `read()`; where it raises Damaged on any process, every process raises Damaged.

    Otherwise one process would go back to an older step while the others wait for it.
    """
    contents = damage = None
    try:
        contents = read()
    except Damaged as error:
        damage = error
    failed = gather("a checkpoint that is read", damage is not None)
    if damage:
        raise damage
    if any(failed):
        raise Damaged(f"process {failed.index(True)} could not read it")
    return contents
