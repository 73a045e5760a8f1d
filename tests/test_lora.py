"""LoRA: nothing at the start, x · (W + scale · a · b) after it, and the base never touched."""

import json

import hf_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_runs

from flaxlm import from_pretrained, sharding, tree
from flaxlm.commands import convert, evaluate
from flaxlm.models import MODELS
from flaxlm.train import train
from flaxlm.training import config as run_config
from flaxlm.training import lora
from flaxlm.training.checkpoint import Checkpointer
from flaxlm.training.start import init_source
from flaxlm.training.step import make_train_step

ALL = lora.LoraConfig(rank=3, alpha=6.0, targets=(r"kernel$",))
CASES = {
    "encoder": ("encoder", {"norm_position": "post", "embed_width": 8, "share_layers": True}),
    "unrolled": ("decoder", {"first_norm": False, "scan_layers": False}),
    "scanned": ("decoder", {"first_norm": False, "num_layers": 3, "gated": True, "tied": False}),
    "both sides": ("encoder_decoder", {"positions": "relative", "remat": "full"}),
    "recurrent": ("recurrent", {}),
}
pytestmark = pytest.mark.usefixtures("one_device")
HEADS = {"encoder": {"pooled": 0, "classification": 3}}


def adapted(family, params, config=ALL, seed=0):
    return lora.add(params, config, MODELS[family].axes, seed)


def moved(params, seed=1):
    """Return params whose factors b are not zero any more."""
    rng = np.random.default_rng(seed)
    flat = tree.flatten(params)
    for path, leaf in flat.items():
        if path.endswith("lora_b"):
            flat[path] = (0.2 * rng.normal(size=leaf.shape)).astype(np.float32)
    return tree.unflatten(flat)


def merged_by_hand(params):
    """Return kernels with the products of their factors, one layer at a time."""
    flat = {path: np.asarray(leaf) for path, leaf in tree.flatten(params).items()}
    base = {path: leaf.copy() for path, leaf in flat.items() if "lora_" not in path}
    for path in [path for path in flat if path.endswith("lora_a")]:
        place = path.removesuffix("lora_a")
        a, b, scale = flat[path], flat[f"{place}lora_b"], flat[f"{place}lora_scale"]
        kernel = base[f"{place}kernel"]
        for layer in range(len(scale)) if scale.ndim else [...]:
            kernel[layer] += scale[layer] * np.tensordot(a[layer], b[layer], 1)
    return tree.unflatten(base)


@pytest.mark.parametrize("case", CASES)
def test_factors_change_nothing_at_first_and_then_what_their_product_would(case):
    family, fields = CASES[case]
    _, module, params = tiny.model(family, HEADS.get(family, tiny.HEADS), **fields)
    head = "classification" if family == "encoder" else "lm"
    run = jax.jit(lambda p: module.apply({"params": p}, tiny.packed())[head])
    start = adapted(family, params)
    kernels = [path for path in tree.flatten(params) if path.endswith("kernel")]
    assert len(tree.flatten(start)) == len(tree.flatten(params)) + 3 * len(kernels)
    plain = run(params)
    np.testing.assert_array_equal(run(start), plain)
    end = moved(start)
    by_hand = merged_by_hand(end)
    expected = run(by_hand)
    assert np.abs(expected - plain).max() > 1e-2
    np.testing.assert_allclose(run(end), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    for path, leaf in tree.flatten(lora.merge(end)).items():
        np.testing.assert_allclose(leaf, tree.flatten(by_hand)[path], atol=1e-6, err_msg=path)


def test_gradients_of_factors_follow_from_that_of_the_kernel():
    """da = scale · dW · bᵀ and db = scale · aᵀ · dW, in every layer."""
    _, module, params = tiny.model("decoder")
    params = moved(adapted("decoder", params))
    weights = jnp.ones((tiny.B, tiny.L), jnp.float32)
    call = tiny.logits_and_gradients(module, weights)
    found = tree.flatten(call(params, tiny.packed())[1])
    kernels = tree.flatten(call(merged_by_hand(params), tiny.packed())[1])
    flat = tree.flatten(params)
    for name, inputs in (("query", 1), ("out", 2)):
        place = f"decoder/layers/attention/{name}/"
        for layer in range(2):
            dw = kernels[f"{place}kernel"][layer]
            a, b = flat[f"{place}lora_a"][layer], flat[f"{place}lora_b"][layer]
            da = 2.0 * np.tensordot(dw, b, (range(inputs, dw.ndim), range(1, b.ndim)))
            db = 2.0 * np.tensordot(a, dw, (range(inputs), range(inputs)))
            for factor, expected in (("a", da), ("b", db)):
                got = found[f"{place}lora_{factor}"][layer]
                bound = 1e-5 * np.abs(expected).max()
                np.testing.assert_allclose(got, expected, rtol=0, atol=bound)


def test_a_factor_is_a_function_of_seed_and_path():
    c = tiny.config("decoder", width=64, num_heads=4)
    params = tiny.params("decoder", c)
    every = tree.flatten(adapted("decoder", params))
    one = lora.LoraConfig(rank=3, alpha=6.0, targets=(r"value/kernel$",))
    alone = tree.flatten(adapted("decoder", params, one))
    path = "decoder/layers/attention/value/lora_a"
    assert sum("lora_a" in name for name in alone) == 1
    assert np.array_equal(alone[path], every[path])
    assert not np.array_equal(every[path], every[path.replace("value", "key")])
    assert not np.array_equal(every[path][0], every[path][1])
    other = tree.flatten(adapted("decoder", params, one, seed=1))
    assert not np.array_equal(alone[path], other[path])
    assert np.std(every[path]) == pytest.approx(64**-0.5, rel=0.1)
    assert np.std(every["decoder/layers/mlp/down/lora_a"]) == pytest.approx(256**-0.5, rel=0.1)


def program_of(**sections):
    config = run_config.from_dict(
        dict(
            objective=dict(name="classification", labels=("a", "b")),
            task=dict(name="classification"),
            sharding=dict(data=1),
        )
        | sections
    )
    return make_train_step(config, sharding.make_mesh(config.sharding, jax.devices()[:1]), 100)


def test_state_and_memory_are_below_those_of_full_fine_tuning():
    """A whole LoRA step needs less memory than full fine-tuning's parameters and moments alone."""
    model = dict(preset="bert_base")
    sizes = dict(steps=1, batch_size=8, length=128)
    full, low = (program_of(model=model, train=sizes, lora=dict(rank=rank)) for rank in (0, 8))
    states = [program.abstract_state for program in (full, low)]
    moments = [tree.nbytes(state.opt_state) for state in states]
    assert moments[1] <= 0.02 * moments[0]
    spec = low.objective.batch_spec(8, 128)
    batch = {name: jax.ShapeDtypeStruct(*entry) for name, entry in spec.items()}
    with low.mesh():
        memory = low.update.lower(np.uint32(0), states[1], batch).compile().memory_analysis()
    used = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    used += memory.output_size_in_bytes - memory.alias_size_in_bytes
    assert used < 0.75 * tree.nbytes(states[0])


# --- a whole run

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Return a tiny BERT with its tokenizer, and a file of labelled rows beside it."""
    root = tmp_path_factory.mktemp("hub")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    model = hf_cases.torch_model(hf_cases.CASES["bert"], "base", vocab_size=len(pieces))
    model.save_pretrained(root / "bert")
    (root / "bert" / "vocab.txt").write_text("\n".join(pieces))
    rows = [{"text": f"{a} {b}", "label": "xy"[b > "m"]} for a in "abcd" for b in LETTERS]
    (root / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def config_of(hub, init, **sections):
    path = str(hub / "rows.jsonl")
    recipe = dict(
        init=str(init),
        model=dict.fromkeys(("embed_dropout", "attention_dropout", "residual_dropout"), 0.0),
        task=dict(name="classification"),
        objective=dict(name="classification", labels=("x", "y")),
        data=dict(path=path, split="file", valid_path=path),
        optimizer=dict(learning_rate=2e-2, schedule="constant", freeze=("heads/pooler/bias",)),
        train=dict(steps=3, batch_size=16, length=8, ema_decay=0.5),
        checkpoint=dict(every=0),
    )
    return run_config.from_dict(recipe | sections)


@pytest.fixture(scope="module")
def tuned(hub, tmp_path_factory):
    """Return (config, run directory, what was said, result) of a LoRA run from the BERT."""
    config = config_of(hub, f"hf:{hub / 'bert'}", lora=dict(rank=2, alpha=8.0))
    workdir = tmp_path_factory.mktemp("tuned") / "run"
    return config, workdir, train(config, workdir)


def state_of(config, workdir):
    program = make_train_step(config, sharding.make_mesh(config.sharding), 3)
    state, _ = Checkpointer(workdir, read_only=True).restore(program.abstract_state)
    return program, state


def test_a_run_trains_factors_and_heads_and_keeps_every_bit_of_the_base(hub, tuned):
    config, workdir, _ = tuned
    _, state = state_of(config, workdir)
    params = {path: np.asarray(leaf) for path, leaf in tree.flatten(state.params).items()}
    base = tree.flatten(from_pretrained(hub / "bert", heads={"pooled": 0}).params)
    for path, leaf in base.items():
        kept = path not in ("heads/pooler/kernel",)
        assert np.array_equal(params[path], leaf) == kept, path
    factors = [path for path in params if path.endswith("lora_b")]
    assert factors == [f"encoder/layers/attention/{name}/lora_b" for name in ("query", "value")]
    assert all(np.abs(params[path]).max() > 1e-3 for path in factors)
    assert params["encoder/layers/attention/query/lora_scale"].tolist() == [4.0] * 3
    heads = {"heads/pooler/kernel", "heads/classification/kernel", "heads/classification/bias"}
    trained = heads | {path for path in params if path.endswith(("lora_a", "lora_b"))}
    assert tree.flatten(state.ema).keys() == trained


def test_readers_see_merged_kernels_that_compute_the_same(hub, tuned, tmp_path, capfd):
    config, workdir, result = tuned
    scores = evaluate.evaluate(config, workdir, "valid", "")
    assert scores["valid/loss"] == pytest.approx(result["valid/loss"], rel=1e-6)
    convert.convert(str(workdir), f"hf:{tmp_path / 'out'}")
    assert f"{workdir} step 3 (the latest)" in capfd.readouterr().err
    program, state = state_of(config, workdir)
    batch = tiny_runs.random_batch(config.objective.batch_spec(8, 8), 0, vocab=30)
    batch["segment_ids"] = np.ones_like(batch["segment_ids"])
    averaged = jax.tree.map(np.asarray, state.averaged())
    apply = jax.jit(lambda params: program.model.apply({"params": params}, batch)["classification"])
    adapters = apply(averaged)
    exported = from_pretrained(tmp_path / "out")
    assert not any("lora" in path for path in tree.flatten(exported.params))
    difference = np.abs(exported(batch)["classification"] - adapters).max()
    assert difference <= 1e-5 * max(1, np.abs(adapters).max())
    raw = jax.tree.map(np.asarray, tree.unflatten({
        p: x for p, x in tree.flatten(averaged).items() if not lora.is_adapter(p)
    }))  # fmt: skip
    assert np.abs(apply(raw) - adapters).max() > 1e-2


@pytest.mark.parametrize("rank", [0, 2])
def test_a_run_from_a_lora_run_starts_from_merged_kernels(rank, hub, tuned):
    config, workdir, _ = tuned
    expected = tree.flatten(merged_by_hand(state_of(config, workdir)[1].averaged()))
    program = program_of(**config_of(hub, workdir, lora=dict(rank=rank)).raw)
    said = []
    with program.mesh():
        params = tiny_runs.drawn_state(program).params
        loaded = tree.flatten(init_source(program, "")(params, said.append))
    fresh = {path for path in loaded if lora.is_adapter(path)}
    assert len(fresh) == (6 if rank else 0)
    assert loaded.keys() - fresh == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_allclose(loaded[path], leaf, rtol=0, atol=1e-6, err_msg=path)
    names = [f"encoder/layers/attention/{name}/kernel" for name in ("query", "value")]
    assert f"merged: {', '.join(names)}; fresh: " in said[0]
    assert said[0].endswith("ignored: none")
