"""A checkpoint gives back what was written, on any mesh, and keeps what it was asked to keep."""

import random
import shutil

import checkpoint_child as child
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs as tiny
from checkpoint_cases import (
    abstract_of,
    host_digest,
    make_state,
    mesh_of,
    over,
)
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from flaxlm import tree
from flaxlm.errors import ConfigError, MissingInput, StorageError, Unsafe
from flaxlm.training import history, manifest
from flaxlm.training.checkpoint import CheckpointConfig, Checkpointer
from flaxlm.training.config import from_dict


@pytest.fixture(params=[0, 2**20], ids=["compiled", "fetched"])
def host_bytes(request, monkeypatch):
    monkeypatch.setattr(tree, "HOST_BYTES", request.param)


def test_digest_is_the_same_on_every_layout_and_the_host(host_bytes):
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(16, 8, 3))
    dtypes = (jnp.float32, jnp.bfloat16, jnp.float16, jnp.int32, jnp.uint8, jnp.bool_)
    arrays = {str(jnp.dtype(d)): np.asarray(jnp.asarray(normal * 9, d)) for d in dtypes}
    arrays |= {"scalar": np.float32(3), "empty": np.zeros((0, 4), np.float32)}
    host = {name: host_digest(x) for name, x in arrays.items()}
    assert len(set(host.values())) == len(host)

    def rows(mesh, *axes):
        return lambda x: NamedSharding(
            mesh, PartitionSpec(*axes) if x.ndim > 2 else PartitionSpec()
        )

    for layout in (
        lambda x: SingleDeviceSharding(jax.devices()[5]),
        rows(mesh_of(2), "data"),
        rows(mesh_of(8), "data"),
        rows(mesh_of(4, 2), "data", "fsdp"),
        rows(mesh_of(2, 4), ("data", "fsdp")),
        rows(mesh_of(8)),
    ):
        placed = {name: jax.device_put(x, layout(x)) for name, x in arrays.items()}
        assert tree.digests(placed) == host


def test_digest_misses_none_of_300_flips_and_100_swaps(host_bytes):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(37, 53)).astype(np.float32)
    whole = tree.digests({"x": x})["x"]
    for _ in range(300):
        bits = x.copy().view(np.uint32)
        bits.reshape(-1)[rng.integers(x.size)] ^= np.uint32(1 << int(rng.integers(32)))
        assert tree.digests({"x": bits.view(np.float32)})["x"] != whole
    for _ in range(100):
        swapped = x.copy().reshape(-1)
        i, j = rng.choice(x.size, 2, replace=False)
        swapped[[i, j]] = swapped[[j, i]]
        assert tree.digests({"x": swapped.reshape(x.shape)})["x"] != whole


# What was written comes back.


@pytest.mark.parametrize(
    ("write", "read"), [((8,), (1,)), ((2,), (8,)), ((4, 2), (2, 4)), ((1,), (4, 2))], ids=str
)
def test_restores_onto_any_mesh_bit_for_bit(tmp_path, write, read):
    state = make_state(7)
    source, target = mesh_of(*write), mesh_of(*read)
    laid = jax.device_put(state, jax.tree.map(over(source, source.axis_names), state))
    saver = Checkpointer(tmp_path)
    saver.save(7, laid, wait=True)
    wanted = abstract_of(state, over(target, target.axis_names))
    for _ in range(2):
        got, record = saver.restore(wanted)
        assert child.equal(got, state)
        assert jax.tree.structure(got) == jax.tree.structure(state)
        assert jax.tree.map(lambda x: x.dtype, got) == jax.tree.map(lambda x: x.dtype, state)
        assert all(
            x.sharding == y.sharding
            for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
        )
    assert record.mesh == dict(zip(source.axis_names, write, strict=True))


@pytest.mark.parametrize("sizes", [(1,), (8,)], ids=str)
def test_a_donated_state_is_saved_as_it_was(tmp_path, sizes):
    mesh = mesh_of(*sizes)
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    step = jax.jit(lambda t: jax.tree.map(lambda x: x * 0.5 - 7, t), donate_argnums=0)
    values = {f"l{i}": np.random.default_rng(i).normal(size=(512, 512)) for i in range(4)}
    values = {name: x.astype(np.float32) for name, x in values.items()}
    saver = Checkpointer(tmp_path)
    fresh = jax.jit(lambda t: jax.tree.map(jnp.copy, t), out_shardings=sharding)
    given = fresh(values)
    state = step(given)
    assert all(x.is_deleted() for x in jax.tree.leaves(given)), "the step does donate"
    state = fresh(values)
    saver.save(1, state)
    for _ in range(10):
        state = step(state)
    jax.block_until_ready(state)
    saver.wait()
    got, _ = saver.restore(abstract_of(values))
    assert child.equal(got, values)


def test_the_manifest_describes_the_checkpoint(written):
    record = Checkpointer(written, read_only=True).manifest()
    assert record.step == 3 and record.metrics == {"valid/loss": 1.0}
    assert record.extra == {"hashes": {"config": "c0", "data": "d0"}, "shape": [1, 2]}
    assert set(record.files) == {"config.json", "tokenizer/model"}
    kernel = record.leaves["params/layers/kernel"]
    assert str(kernel) == "float32[8,24,16]"
    assert kernel.digest == host_digest(np.asarray(make_state(3).params["layers"]["kernel"]))
    assert {"device", "devices", "cores", "isa", "xla_flags", "jax"} <= set(record.fingerprint)
    assert record.versions["jax"] == jax.__version__


def test_a_resume_says_which_promise_holds(monkeypatch):
    config = from_dict(tiny.recipe("causal"))

    def said(then, now):
        same = {"code": history.program(), "total_steps": 4, "judged": {}}
        parts = (same | {"machine": part} for part in (then, now))
        return history.promise([[0, next(parts)]], 2, next(parts), config)

    monkeypatch.delenv("NPROC", raising=False)
    now = manifest.fingerprint()
    assert said(now, dict(now)).endswith("the same bits: as if never interrupted")
    changed = said(now, now | {"cores": 999})
    assert "not the same bits" in changed and "999" in changed
    monkeypatch.setenv("NPROC", "16")
    assert "threads None → '16'" in said(now, manifest.fingerprint())
    gpu = now | {"device": "NVIDIA H200"}
    assert "deterministic_ops" in said(gpu, gpu)


def test_params_open_alone_on_the_host(written):
    state = make_state(3)
    reader = Checkpointer(written, read_only=True)
    params, record = reader.restore_params()
    assert record.step == 3 and child.equal(params, state.params)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(params))
    everything, _ = reader.restore_params(prefix="")
    assert len(jax.tree.leaves(everything)) == len(jax.tree.leaves(state))
    with pytest.raises(Unsafe, match="ema"):
        reader.restore_params(prefix="ema")


def test_a_part_of_the_params_opens_on_a_mesh(written):
    state = make_state(2)
    part = abstract_of({"table": state.params["table"]}, over(mesh_of(8), "data"))
    got, record = Checkpointer(written, read_only=True).restore_params(2, abstract=part)
    assert record.step == 2 and child.equal(got, {"table": state.params["table"]})
    assert len(got["table"].sharding.device_set) == 8
    other = {"absent": jax.ShapeDtypeStruct((2,), np.float32)}
    with pytest.raises(Unsafe, match="no params/absent"):
        Checkpointer(written, read_only=True).restore_params(abstract=other)


def test_a_step_opens_wherever_it_was_copied(written, tmp_path, abstract):
    copied = tmp_path / "elsewhere"
    shutil.copytree(Checkpointer(written, read_only=True).path(2), copied)
    reader = Checkpointer(copied)
    assert (reader.steps(), reader.latest()) == ([2], 2)
    assert child.equal(reader.restore(abstract)[0], make_state(2))
    assert (reader.path(2) / "tokenizer" / "model").read_bytes() == b"pieces"
    with pytest.raises(Unsafe, match="reading only"):
        reader.save(4, make_state(4))
    (copied / "manifest.json").write_text("{}")
    with pytest.raises(StorageError, match="damaged"):
        Checkpointer(copied)


# Refusals.


def test_another_dtype_shape_or_tree_is_refused_by_name(written, abstract):
    reader = Checkpointer(written, read_only=True)

    def changed(**leaf):
        return abstract.replace(params=abstract.params | {"table": jax.ShapeDtypeStruct(**leaf)})

    with pytest.raises(Unsafe, match=r"params/table is float32\[40,16\] there and int32\[40,16\]"):
        reader.restore(changed(shape=(40, 16), dtype=jnp.int32))
    with pytest.raises(Unsafe, match=r"float32\[40,16\] there and bfloat16\[40,16\] here"):
        reader.restore(changed(shape=(40, 16), dtype=jnp.bfloat16))
    with pytest.raises(Unsafe, match=r"float32\[40,16\] there and float32\[41,16\] here"):
        reader.restore(changed(shape=(41, 16), dtype=jnp.float32))
    with pytest.raises(Unsafe, match="it has no params/new"):
        new = {"new": jax.ShapeDtypeStruct((1,), np.float32)}
        reader.restore(abstract.replace(params=abstract.params | new))
    with pytest.raises(Unsafe, match="only it has params/table"):
        reader.restore(abstract.replace(params={"layers": abstract.params["layers"]}))
    with pytest.raises(Unsafe, match=r"float32\[40,16\] there"):
        reader.restore_params(abstract={"table": jax.ShapeDtypeStruct((40, 8), np.float32)})


def test_what_is_not_there_is_said(tmp_path, written, abstract):
    empty = Checkpointer(tmp_path)
    assert (empty.latest(), empty.best(), empty.steps()) == (None, None, [])
    with pytest.raises(MissingInput, match="no checkpoint"):
        empty.restore(abstract)
    with pytest.raises(MissingInput, match=r"step 9.*there: 1, 2, 3"):
        Checkpointer(written, read_only=True).restore(abstract, step=9)


def test_wrong_settings_are_refused():
    for wrong in ({"keep": 0}, {"every": -1}, {"keep_best": -1}, {"keep_every": -5}):
        with pytest.raises(ConfigError, match=f"checkpoint.{next(iter(wrong))}"):
            CheckpointConfig(**wrong)
    with pytest.raises(ConfigError, match="min, max"):
        Checkpointer("unused", mode="lowest", read_only=True)


# Retention.


def test_kept_is_latest_best_and_every_so_often():
    rng = random.Random(1)
    for _ in range(200):
        config = CheckpointConfig(
            keep=rng.randint(1, 4), keep_best=rng.randint(0, 3), keep_every=rng.choice([0, 3, 10])
        )
        steps = rng.sample(range(1, 60), rng.randint(1, 12))
        scores = {s: rng.choice([None, rng.random(), 0.5]) for s in steps}
        for mode in ("min", "max"):
            kept = config.kept(scores, mode)
            for s in steps:
                newer = sum(o > s for o in steps)
                if scores[s] is None:
                    better = None
                else:
                    gain = {o: (scores[s] - v) for o, v in scores.items() if v is not None}
                    gain = gain if mode == "min" else {o: -g for o, g in gain.items()}
                    better = sum(g > 0 or (g == 0 and o < s) for o, g in gain.items())
                wanted = newer < config.keep or (better is not None and better < config.keep_best)
                wanted |= bool(config.keep_every) and s % config.keep_every == 0
                assert (s in kept) == wanted


def test_retention_on_disk(tmp_path):
    config = CheckpointConfig(keep=2, keep_best=1, keep_every=4)
    scores = [0.1, 0.2, 0.9, 0.3, 0.4, 0.5, float("nan")]
    with Checkpointer(tmp_path, config, metric="valid/accuracy", mode="max") as saver:
        for step, score in enumerate(scores, 1):
            saver.save(step, {"x": jnp.full((4,), step)}, {"valid/accuracy": score})
    assert saver.steps() == [3, 4, 6, 7] and saver.best() == 3
    assert saver.manifest(6).metrics == {"valid/accuracy": 0.5}
    assert saver.manifest(7).metrics == {"valid/accuracy": None}


def test_the_step_just_saved_is_never_deleted(copied):
    saver = Checkpointer(copied, CheckpointConfig(keep=1, keep_best=0))
    saver.save(2, make_state(20), wait=True)  # behind step 3, as after going back to step 1
    assert saver.steps() == [2, 3]
    assert child.equal(saver.restore_params(2)[0], make_state(20).params)


def test_saving_a_step_again_adds_its_metrics_or_replaces_it(copied, abstract):
    saver = Checkpointer(copied, CheckpointConfig(keep=3))
    before = (saver.path(3) / "state").stat().st_ino
    saver.save(3, make_state(3), {"valid/accuracy": 0.5}, wait=True)
    assert (saver.path(3) / "state").stat().st_ino == before
    assert saver.manifest(3).metrics == {"valid/loss": 1.0, "valid/accuracy": 0.5}
    saver.save(3, make_state(30), wait=True)
    got, record = saver.restore(abstract)
    assert record.metrics == {} and child.equal(got, make_state(30))
