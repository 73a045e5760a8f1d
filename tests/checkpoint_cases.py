"""States, layouts and directories that the checkpoint tests share."""

from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from flaxlm.training.checkpoint import CheckpointConfig, Checkpointer


def mesh_of(*sizes):
    devices = jax.devices()[: int(np.prod(sizes))]
    names = ("data", "fsdp")[: len(sizes)]
    auto = (jax.sharding.AxisType.Auto,) * len(sizes)
    return jax.make_mesh(sizes, names, devices=devices, axis_types=auto)


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt_state: tuple
    empty: dict


def make_state(seed=0) -> State:
    rng = np.random.default_rng(seed)
    params = {
        "layers": {
            "kernel": jnp.asarray(rng.normal(size=(8, 24, 16)), jnp.float32),
            "bias": jnp.asarray(rng.normal(size=(8, 16)), jnp.bfloat16),
        },
        "table": jnp.asarray(rng.normal(size=(40, 16)), jnp.float32),
    }
    opt_state = optax.adamw(1e-3).init(params)
    opt_state = jax.tree.map(lambda x: x + jnp.asarray(seed, x.dtype), opt_state)
    return State(jnp.int32(seed), params, opt_state, {})


def abstract_of(state, sharding=None):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=sharding(x) if sharding else None
        ),
        state,
    )


def over(mesh, axes):
    """Return a rule that splits the first dimension over `axes`, and replicates scalars."""
    return lambda x: NamedSharding(mesh, PartitionSpec(axes) if x.ndim else PartitionSpec())


def leaf_bytes(step_directory: Path, leaf) -> tuple[Path, int]:
    """Return the file, and the offset in it, where the bytes of an array lie."""
    data = np.asarray(leaf).tobytes()
    for path in (step_directory / "state").rglob("*"):
        if path.is_file() and (offset := path.read_bytes().find(data)) >= 0:
            return path, offset
    raise AssertionError("the array is not stored in plain bytes")


def host_digest(x: np.ndarray) -> str:
    """Σ mix(bits, index) mod 2³² in numpy, from the definition: uint64 arithmetic, masked."""
    width = x.dtype.itemsize
    word = {1: np.uint8, 2: np.uint16, 4: np.uint32}[width]
    bits = np.frombuffer(np.ascontiguousarray(x).tobytes(), word).astype(np.uint64)
    mask = np.uint64(0xFFFFFFFF)
    index = np.arange(bits.size, dtype=np.uint64)
    h = bits ^ ((index * np.uint64(0x9E3779B1) + np.uint64(0x7F4A7C15)) & mask)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = ((h ^ (h >> np.uint64(shift))) * np.uint64(factor)) & mask
    h ^= h >> np.uint64(16)
    return f"{int(h.sum()) % 2**32:08x}"


def write_steps(directory: Path) -> Path:
    """Make a run directory with steps 1, 2 and 3, where step n holds `make_state(n)`."""
    (directory / "tokens").mkdir()
    (directory / "tokens" / "model").write_bytes(b"pieces")
    files = {"config.json": b'{"seed": 0}', "tokenizer": directory / "tokens"}
    extra = {"hashes": {"config": "c0", "data": "d0"}, "shape": (1, 2)}
    with Checkpointer(directory, CheckpointConfig(keep=3), extra, files) as saver:
        for step in (1, 2, 3):
            saver.save(step, make_state(step), metrics={"valid/loss": 4.0 - step})
    return directory
