"""The mesh, and where arrays lie on it.

Parameters and activations are named by logical axes (`vocab`, `embed`, `heads`, …); `RULES` sends
logical axes to mesh axes (`data`, `fsdp`, `tensor`). A mesh axis is used at most once per array, by
the first dimension that asks for it: `embed` is split over `fsdp` in a weight matrix, but not in an
activation whose batch is split over it already.
"""

import contextlib
import contextvars
import dataclasses
import itertools
import math
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flaxlm import tree
from flaxlm.errors import ConfigError, choose

MESH_AXES = ("data", "fsdp", "tensor")
RULES = {
    "batch": ("data", "fsdp"),
    "length": (),
    "vocab": ("tensor", "fsdp"),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
}


# Threads for each of several devices of a CPU: collectives that may wait at once, and kernels.
DEVICE_THREADS = 8


def xla_flags() -> str:
    """Return the flags that XLA_FLAGS gives, or the file that it names."""
    given = os.environ.get("XLA_FLAGS", "").strip()
    if given.startswith("-") or not os.path.isfile(given):
        return given
    with open(given, encoding="utf-8", errors="replace") as file:
        return file.read()


def make_room_for_collectives(several_processes: bool = False) -> None:
    """Have XLA start enough threads for collectives between CPU devices; called before it starts.

    XLA runs kernels of all CPU devices in one pool, of as many threads as there are cores or
    devices, and a collective waits for the other devices in one of these threads. Where a layer
    loop and what stands outside it are independent, a device waits in two at once, and where
    all threads wait, each for a collective that has none, they do so until XLA ends the process.
    XLA reads the number of threads from NPROC, which is raised here where it is lower.
    """
    counts = re.findall(r"host_platform_device_count=(\d+)", xla_flags())
    devices = max(1, jax.config.jax_num_cpu_devices, int([1, *counts][-1]))
    given = os.environ.get("NPROC", "")
    threads = int(given) if given.isdecimal() else os.cpu_count() or 1
    if (devices > 1 or several_processes) and threads < DEVICE_THREADS * devices:
        os.environ["NPROC"] = str(DEVICE_THREADS * devices)


@dataclasses.dataclass(frozen=True)
class ShardingConfig:
    """Sizes of the mesh axes (−1, once, for all remaining devices) and changed rules.

    `rules` overrides rows of `RULES`, as `("mlp=tensor,fsdp", "heads=")`.
    """

    data: int = -1  # devices along the batch; -1: all that are left
    fsdp: int = 1  # devices that parameters and batch are split over
    tensor: int = 1  # devices that heads and hidden units are split over
    rules: tuple[str, ...] = ()  # changed rows of RULES: ('mlp=tensor,fsdp',)

    def __post_init__(self):
        sizes = (self.data, self.fsdp, self.tensor)
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise ConfigError(
                f"sharding sizes data, fsdp, tensor = {sizes}: each is 1 or more, and -1 "
                "(all remaining devices) may be given once"
            )
        for rule in self.rules:
            name, equals, axes = rule.partition("=")
            if not equals:
                raise ConfigError(f"sharding.rules: {rule!r} is not of the form logical=mesh,mesh")
            choose("sharding.rules", name, RULES)
            for axis in filter(None, axes.split(",")):
                choose(f"sharding.rules {name}", axis, MESH_AXES)

    def table(self) -> dict[str, tuple[str, ...]]:
        """Return `RULES` with the overrides of this config."""
        changed = (rule.partition("=")[::2] for rule in self.rules)
        return RULES | {name: tuple(filter(None, axes.split(","))) for name, axes in changed}


def make_mesh(config: ShardingConfig, devices=None) -> Mesh:
    """Return the (data, fsdp, tensor) mesh over all devices; ConfigError if sizes do not fit."""
    devices = jax.devices() if devices is None else devices
    stated = dict(zip(MESH_AXES, (config.data, config.fsdp, config.tensor), strict=True))
    left = len(devices) // math.prod(size for size in stated.values() if size > 0)
    sizes = [left if size == -1 else size for size in stated.values()]
    if math.prod(sizes) != len(devices):
        # One size is to be all that the others leave, which are 1 where they do not divide.
        rests = [axis for axis, size in stated.items() if size == -1] or list(stated)
        others = {
            rest: math.prod(n for axis, n in stated.items() if axis != rest) for rest in rests
        }
        whole = [rest for rest in rests if len(devices) % others[rest] == 0]
        rest = (whole or rests)[0]
        fitting = {axis: size if whole else 1 for axis, size in stated.items()} | {rest: -1}
        changes = [
            f"sharding.{axis}={size}" + " (all that the others leave)" * (size == -1)
            for axis, size in fitting.items()
            if size != stated[axis]
        ]
        raise ConfigError(
            f"sharding {stated} does not divide the {len(devices)} "
            f"device{'s' * (len(devices) != 1)}; set {' and '.join(changes)}"
        )
    # jax.make_mesh defaults to Explicit axes, under which Linen modules break.
    return jax.make_mesh(
        tuple(sizes), MESH_AXES, devices=devices, axis_types=(AxisType.Auto,) * len(MESH_AXES)
    )


_rules: contextvars.ContextVar[dict | None] = contextvars.ContextVar("rules", default=None)


def connect(mesh: Mesh) -> None:
    """Sum something along each set of mesh axes, so that all groups of devices are connected.

    Gloo, which connects CPU devices of several processes, waits 30 s for the last one to come to a
    group's first collective; processes that compile before it, or read, may be further apart.
    """
    axes = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
    for count in range(1, len(axes) + 1):
        for group in itertools.combinations(axes, count):
            ones = np.ones(_devices(mesh.shape, group), np.float32)
            place = NamedSharding(mesh, PartitionSpec(group))
            spread = jax.make_array_from_callback(ones.shape, place, ones.__getitem__)
            whole = NamedSharding(mesh, PartitionSpec())
            jax.jit(jnp.sum, out_shardings=whole)(spread).block_until_ready()


@contextlib.contextmanager
def use(mesh: Mesh, config: ShardingConfig):
    """Enter the mesh and its rules: trace, lower and run inside, or the pins do nothing."""
    token = _rules.set(config.table())
    try:
        with jax.set_mesh(mesh):
            yield mesh
    finally:
        _rules.reset(token)


def _devices(mesh_shape, axes) -> int:
    return math.prod(mesh_shape[axis] for axis in axes)


def spec(names, shape, mesh_shape, table) -> PartitionSpec:
    """Return the PartitionSpec of one array; the longest dividing prefix of axes is used."""
    used: set[str] = set()
    entries = []
    for name, size in zip(names, shape, strict=True):
        axes: tuple[str, ...] = ()
        for axis in table[name] if name else ():
            width = mesh_shape[axis]
            if axis in used or width == 1:
                continue
            if size % (_devices(mesh_shape, axes) * width):
                break
            axes += (axis,)
        used.update(axes)
        entries.append(axes[0] if len(axes) == 1 else axes or None)
    return PartitionSpec(*entries)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Pin an activation's layout by logical names; the identity on one device.

    Raises ConfigError for an unknown name, a mesh without rules, or an indivisible batch.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    table = _rules.get()
    if table is None:
        raise ConfigError("a mesh is set without sharding rules; enter it with sharding.use")
    for name in names:
        if name is not None:
            choose("constrain", name, table)
    if "batch" in names:
        axis = names.index("batch")
        width = _devices(mesh.shape, table["batch"])
        if x.shape[axis] % width:
            raise ConfigError(f"a batch of {x.shape[axis]} does not divide over {width} devices")
    return jax.lax.with_sharding_constraint(x, spec(names, x.shape, mesh.shape, table))


def param_shardings(axes, params, mesh: Mesh, config: ShardingConfig):
    """Return NamedShardings for a tree of (abstract) parameters.

    `axes` are rows of `(regex, logical names)`, of which every path matches one. The names align
    with the trailing dimensions, so that a stack of scanned layers needs no rows of its own.
    """
    table = config.table()

    def sharding(path, leaf):
        names = tree.required_match(axes, path)
        names = (None,) * (len(leaf.shape) - len(names)) + tuple(names)
        return NamedSharding(mesh, spec(names, leaf.shape, mesh.shape, table))

    return tree.map_paths(sharding, params)


def unsplit(axes, params, mesh: Mesh, config: ShardingConfig) -> list[str]:
    """Return a line for each parameter dimension that its mesh axes do not divide."""
    table = config.table()
    lines = []
    for path, leaf in tree.flatten(params).items():
        names = tree.first_match(axes, path)
        for name, size in zip(reversed(names), reversed(leaf.shape), strict=False):
            width = _devices(mesh.shape, table[name]) if name else 1
            if size % width:
                lines.append(f"{path}: {name} {size} does not divide over {width}")
    return lines


def like_params(state, params, shardings, mesh: Mesh):
    """Return shardings for a tree that mirrors parameters (optimizer moments, averages).

    A leaf whose path ends in that of a parameter of the same shape lies as that does; counters and
    factored moments are replicated.
    """
    known, places = tree.flatten(params), tree.flatten(shardings)

    def sharding(path, leaf):
        while path:
            if path in known and known[path].shape == leaf.shape:
                return places[path]
            _, _, path = path.partition("/")
        return NamedSharding(mesh, PartitionSpec())

    return tree.map_paths(sharding, state)


def batch_sharding(mesh: Mesh, config: ShardingConfig) -> NamedSharding:
    """Return the sharding of every batch array: rows over the axes of `batch`."""
    return NamedSharding(mesh, PartitionSpec(config.table()["batch"]))


def host_rows(sharding: NamedSharding, batch_size: int) -> tuple[int, int]:
    """Return the range of global rows that this process's devices ask for."""
    indices = sharding.addressable_devices_indices_map((batch_size,)).values()
    starts, stops, _ = zip(*(rows.indices(batch_size) for (rows,) in indices), strict=True)
    return min(starts), max(stops)


def to_global(batch: dict, start: int, batch_size: int, sharding: NamedSharding) -> dict:
    """Return global arrays from this host's rows, `batch` holding rows start, start + 1, …"""

    def put(array):
        def shard(index) -> np.ndarray:
            first, stop, _ = index[0].indices(batch_size)
            return array[(slice(first - start, stop - start), *index[1:])]

        return jax.make_array_from_callback((batch_size, *array.shape[1:]), sharding, shard)

    return {name: put(array) for name, array in batch.items()}


def batch_width(mesh: Mesh | None = None, config: ShardingConfig | None = None) -> int:
    """Return over how many devices a mesh, by default that in use, spreads the rows of a batch."""
    mesh = mesh or jax.sharding.get_mesh()
    table = config.table() if config else _rules.get() or RULES
    return 1 if mesh.empty or mesh.size == 1 else _devices(mesh.shape, table["batch"])


def spread(batch: dict) -> dict:
    """Return global arrays of a batch that every process holds whole, on the mesh in use.

    Its rows divide over `batch_width`. Without a mesh the batch is returned as it is.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty or mesh.size == 1:
        return batch
    rows = NamedSharding(mesh, PartitionSpec((_rules.get() or RULES)["batch"]))
    return to_global(batch, 0, len(next(iter(batch.values()))), rows)


def replicate(outputs):
    """Pin a tree of outputs to every device, inside jit, so that each process can read it."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return outputs
    return jax.lax.with_sharding_constraint(outputs, PartitionSpec())
