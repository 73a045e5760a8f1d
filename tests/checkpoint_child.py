"""Runs for `test_checkpoint`: states that depend on the step alone, saved until killed."""

import os
import sys

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm import tree
from flaxlm.training.checkpoint import CheckpointConfig, Checkpointer
from flaxlm.training.workdir import Workdir


def expected(step: int) -> dict:
    """Return the state of a step, a function of the step alone."""
    rng = np.random.default_rng(step)
    return {
        "params": {"kernel": rng.normal(size=(64, 33)).astype(np.float32)},
        "opt": {"mu": rng.normal(size=(64, 33)).astype(jnp.bfloat16)},
        "step": np.int32(step),
    }


def abstract() -> dict:
    """Return `expected` as ShapeDtypeStructs."""
    return jax.eval_shape(lambda: jax.tree.map(jnp.asarray, expected(0)))


def equal(a, b) -> bool:
    """Return whether two states are the same, bit for bit."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def save_until_killed(directory: str, ready: int) -> None:
    """Resume as a run does, then save step after step; `ready` gets a byte before the first."""
    with Workdir(directory):
        saver = Checkpointer(directory, CheckpointConfig(keep=1), files={"config.json": b"{}"})
        step = 0
        if saver.latest() is not None:
            state, record = saver.restore(abstract())
            assert equal(state, expected(record.step)) and not saver.damage
            step = record.step
        tree.digests(jax.tree.map(jnp.asarray, expected(step)))  # compiled: now saves are quick
        os.write(ready, b"+")
        while True:
            step += 1
            saver.save(step, jax.tree.map(jnp.asarray, expected(step)))


def forks(directory: str) -> None:
    """For each line of input fork a saver and print its process id once it is under way.

    Forked before the backend starts, so that each one spares the imports.
    """
    from orbax.checkpoint import v1  # noqa: F401

    for _ in sys.stdin:
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            save_until_killed(directory, write)
        os.close(write)
        assert os.read(read, 1) == b"+", "the saver ended before its first save"
        os.close(read)
        print(pid, flush=True)
        os.waitpid(pid, 0)


def distributed(directory: str, process: str, port: str) -> None:
    """One of two processes that save together and go back together from damage.

    Step 4 lacks what process 1 alone wrote and reads, and step 3 has a flipped bit.
    """
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(process))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def layout(leaf):
        return split if leaf.ndim else whole

    def put(step):
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, layout(x), lambda i: x[i]),
            jax.tree.map(np.asarray, expected(step)),
        )

    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout(x)), abstract()
    )
    saver = Checkpointer(directory, CheckpointConfig(keep=4))
    for step in (1, 2, 2, 3, 4):
        saver.save(step, put(step))
    saver.wait()
    jax.experimental.multihost_utils.sync_global_devices("saved")
    if process == "0":
        damage_data(saver.path(3))
        for path in (saver.path(4) / "state").rglob("ocdbt.process_1/d/*"):
            path.unlink()
    jax.experimental.multihost_utils.sync_global_devices("damaged")
    state, record = saver.restore(target)
    here = [(s.index, s.data) for s in state["params"]["kernel"].addressable_shards]
    same = all((expected(2)["params"]["kernel"][i] == x).all() for i, x in here)
    print(f"restored {record.step} same {same} damaged {len(saver.damage)}", flush=True)


def damage_data(step_directory) -> None:
    """Flip one bit in the middle of the largest data file of a step."""
    files = [p for p in (step_directory / "state").rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    flip(largest, 8 * (largest.stat().st_size // 2))


def flip(path, bit: int) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


if __name__ == "__main__":
    {"forks": forks, "distributed": distributed}[sys.argv[1]](*sys.argv[2:])
