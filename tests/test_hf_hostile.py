"""Hostile Hugging Face directories: refused in one line that names the place, in bounded memory.

What is wrong within one file of tensors is in test_tensors.py.
"""

import dataclasses
import json
import os
import pickle
import re
import shutil
import time
import tracemalloc

import hf_cases
import numpy as np
import pytest
import safetensors.numpy
from command_line import CommandLine
from hf_cases import CASES

from flaxlm import from_pretrained, save_pretrained
from flaxlm.errors import ConfigError, DataError, FlaxlmError, MissingInput, Unsafe
from flaxlm.interop.config import describe
from flaxlm.interop.pretrained import Directory

WITNESS = "flaxlm-was-executed"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    root = tmp_path_factory.mktemp("good")
    for name in ("gpt2", "llama", "roberta"):
        hf_cases.torch_model(CASES[name], "lm" if name != "roberta" else "mlm").save_pretrained(
            root / name
        )
    return root


class Payload:
    def __reduce__(self):
        return os.system, (f"touch {WITNESS}",)


def config(**changes):
    def change(directory):
        path = directory / "config.json"
        raw = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in raw.items() if v != "remove"}))

    return change


def text(content, name="config.json"):
    return lambda directory: (directory / name).write_text(content)


def tensors(function):
    def change(directory):
        path = directory / "model.safetensors"
        held = dict(safetensors.numpy.load_file(path))
        function(held)
        safetensors.numpy.save_file(held, path, {"format": "pt"})

    return change


def replace(name, **changes):
    return tensors(lambda held: held.update({name: changes["to"](held[name])}))


def pickled(directory):
    (directory / "model.safetensors").write_bytes(pickle.dumps(Payload()))


def only_pickle(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def code(directory):
    (directory / "modeling_gpt2.py").write_text(f"open({WITNESS!r}, 'w')")
    config(auto_map={"AutoModel": "modeling_gpt2.GPT2Model"})(directory)


def linked(directory):
    outside = directory.parent / "outside.safetensors"
    (directory / "model.safetensors").rename(outside)
    (directory / "model.safetensors").symlink_to(outside)


def escaping(directory):
    (directory / "model.safetensors").rename(directory.parent / "outside.safetensors")
    index = {"weight_map": {"x": "../outside.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


WTE, ROW = "transformer.wte.weight", "transformer.h.1.mlp.c_fc.weight"
HOSTILE = {
    "no config": ("gpt2", lambda d: (d / "config.json").unlink(), MissingInput, "config.json"),
    "cut config": ("gpt2", text('{"model_type": '), DataError, "damaged"),
    "a list": ("gpt2", text("[1]"), DataError, "no object"),
    "deep": ("gpt2", text("[" * 100_000), DataError, "damaged"),
    "20 MB": ("gpt2", text(" " * (20 << 20)), DataError, "which no config.json has"),
    "code": ("gpt2", code, Unsafe, "auto_map asks to run code"),
    "unknown type": ("gpt2", config(model_type="gtp2"), ConfigError, "did you mean 'gpt2'"),
    "type of a list": ("gpt2", config(model_type=["gpt2"]), ConfigError, "model_type"),
    "no type": ("gpt2", config(model_type="remove"), ConfigError, "model_type"),
    "unknown class": ("gpt2", config(architectures=["GPT2"]), ConfigError, "GPT2LMHeadModel"),
    "two classes": ("gpt2", config(architectures=["A", "B"]), ConfigError, "one class"),
    "unknown field": ("gpt2", config(clip_qkv=8.0), ConfigError, "not understood: clip_qkv=8.0"),
    "unsupported": ("gpt2", config(add_cross_attention=True), ConfigError, "add_cross_attention"),
    "negative": ("gpt2", config(vocab_size=-5), ConfigError, "vocab_size=-5"),
    "zero heads": ("gpt2", config(n_head=0), ConfigError, "n_head=0 must be in 1"),
    "odd heads": ("gpt2", config(n_head=5), ConfigError, "not a multiple"),
    "a string": ("gpt2", config(n_embd="768"), ConfigError, "n_embd='768'"),
    "a truth value": ("gpt2", config(n_embd=True), ConfigError, "n_embd=True"),
    "billion layers": ("gpt2", config(n_layer=10**9), ConfigError, "n_layer=1000000000"),
    "wide": ("gpt2", config(n_embd=2**30), DataError, "do not fit the config"),
    "vocabulary": ("gpt2", config(vocab_size=2**30), DataError, "do not fit the config"),
    "beyond numbers": ("gpt2", config(vocab_size=10**400), ConfigError, "vocab_size="),
    "NaN": ("gpt2", config(layer_norm_epsilon=float("nan")), ConfigError, "layer_norm_epsilon"),
    "dropout": ("gpt2", config(resid_pdrop=1.5), ConfigError, "dropout=1.5"),
    "activation": ("gpt2", config(activation_function="os.system"), ConfigError, "os.system"),
    "too many layers": ("gpt2", config(n_layer=4), DataError, "lacks transformer.h.3"),
    "too few layers": ("gpt2", config(n_layer=2), DataError, "does not have: transformer.h.2"),
    "labels": ("gpt2", config(id2label={"0": "a", "2": "b"}), ConfigError, "id2label"),
    "rope of a list": ("llama", config(rope_parameters=[1]), ConfigError, "rope_parameters"),
    "rope type": ("llama", config(rope_parameters={"rope_type": "yarn"}), ConfigError, "yarn"),
    "rope zero": ("llama", config(rope_parameters={"rope_theta": 0}), ConfigError, "rope_theta"),
    "positions": ("roberta", config(pad_token_id=10**9), ConfigError, "pad_token_id"),
    "a tensor less": ("gpt2", tensors(lambda held: held.pop(ROW)), DataError, f"lacks {ROW}"),
    "a table less": ("gpt2", tensors(lambda held: held.pop(WTE)), DataError, f"no tensor {WTE}"),
    "a norm less": ("gpt2", tensors(lambda held: held.pop("transformer.ln_f.bias")), ConfigError,
                    "has no decoder/final_norm/bias"),
    "a tensor more": ("gpt2", tensors(lambda held: held.update(extra=np.zeros(3, np.float32))),
                      DataError, "does not have: extra"),
    "another shape": ("gpt2", replace(ROW, to=lambda a: a[:, :-1].copy()), DataError, ROW),
    "transposed": ("gpt2", replace(ROW, to=lambda a: a.T.copy()), DataError,
                   "[128, 32], not [32, 128]"),
    "whole numbers": ("gpt2", replace(ROW, to=lambda a: a.astype(np.int32)), DataError, "int32"),
    "a pickle": ("gpt2", pickled, Unsafe, "pickle"),
    "only a pickle": ("gpt2", only_pickle, Unsafe, "pytorch_model.bin"),
    "a link out": ("gpt2", linked, Unsafe, "is a link to"),
    "an index out": ("gpt2", escaping, Unsafe, "only plain names"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_directory_is_refused(name, good, tmp_path, monkeypatch):
    kind, change, error, message = HOSTILE[name]
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "model"
    shutil.copytree(good / kind, directory)
    change(directory)
    begun = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(FlaxlmError) as caught:
            from_pretrained(directory)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    said = str(caught.value)
    assert caught.type is error and message in said, said
    assert str(directory) in said and "\n" not in said and len(said) < 900 + len(str(directory))
    assert peak < 60e6 and time.process_time() - begun < 10
    assert not (tmp_path / WITNESS).exists()


def test_a_tensor_with_nan_is_loaded_and_named(good, tmp_path):
    shutil.copytree(good / "gpt2", tmp_path / "model")
    replace(ROW, to=lambda a: np.where(a == a.max(), np.nan, a))(tmp_path / "model")
    with pytest.warns(UserWarning, match=f"{ROW} holds NaN"):
        found = from_pretrained(tmp_path / "model")
    assert np.isnan(found.params["decoder"]["layers"]["mlp"]["up"]["kernel"]).sum() == 1


def test_what_is_missing_starts_fresh_only_if_it_is_named(good, tmp_path):
    shutil.copytree(good / "gpt2", tmp_path / "model")
    tensors(lambda held: held.pop("transformer.ln_f.bias"))(tmp_path / "model")
    found = from_pretrained(tmp_path / "model", allow_missing="final_norm/bias$")
    assert not found.params["decoder"]["final_norm"]["bias"].any()
    # A classifier of other classes is there, in another shape.
    hf_cases.torch_model(CASES["bert"], "classification").save_pretrained(tmp_path / "three")
    heads = {"classification": 5}
    with pytest.raises(DataError, match=r"our heads/classification/kernel\) has shape \[3, 32\]"):
        from_pretrained(tmp_path / "three", heads=heads)
    found = from_pretrained(tmp_path / "three", heads=heads, allow_missing="heads/classification")
    assert found.params["heads"]["classification"]["kernel"].shape == (32, 5)


def test_a_model_is_not_written_over_another(good, tmp_path):
    model = from_pretrained(good / "gpt2")
    save_pretrained(tmp_path, model, limit=10_000)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(Unsafe, match="holds a model already"):
        save_pretrained(tmp_path, model)
    assert {path.name for path in tmp_path.iterdir()} == before
    save_pretrained(tmp_path, model, overwrite=True)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors"}


def test_what_no_architecture_computes_is_not_written(good, tmp_path):
    model = from_pretrained(good / "gpt2")
    config = dataclasses.replace(model.config, parallel=True)
    model = dataclasses.replace(model, module=model.module.clone(config=config))
    with pytest.raises(ConfigError, match=r"no known .* GPT2LMHeadModel has parallel=False"):
        save_pretrained(tmp_path / "out", model)
    assert not (tmp_path / "out").exists()


def test_the_command_line_says_it_in_one_line(good, tmp_path, compilation_cache):
    run = CommandLine(tmp_path, cwd=tmp_path)
    for name, change in (("code", code), ("pickle", pickled), ("cut", text("{"))):
        shutil.copytree(good / "gpt2", tmp_path / name)
        change(tmp_path / name)
        done = run("generate", f"--workdir=hf:{tmp_path / name}", "--prompt=a")
        assert done.code in (65, 77) and len(done.errors) == 1 and "Traceback" not in done.err
    # A verb that can start nothing fresh names no flag for it; one that can does as it is told.
    weights = safetensors.numpy.load_file(good / "gpt2" / "model.safetensors")
    short = next(name for name in weights if name.endswith("ln_f.weight"))
    shutil.copytree(good / "gpt2", tmp_path / "short")
    del weights[short]
    safetensors.numpy.save_file(weights, tmp_path / "short" / "model.safetensors")
    source = f"hf:{tmp_path / 'short'}"
    done = run("inspect", f"--workdir={source}")
    assert done.code and "has no" in done.err and "allow_missing" not in done.err
    done = run("convert", f"--from={source}", f"--to=hf:{tmp_path / 'whole'}")
    flag = re.search(r"--allow_missing='([^']+)'", done.err)
    assert done.code == 2 and flag, done.err
    again = (f"--to=hf:{tmp_path / 'whole'}", f"--allow_missing={flag[1]}")
    done = run("convert", f"--from={source}", *again)
    assert done.code == 0, done.err
    shutil.copytree(good / "gpt2", tmp_path / "nan")
    replace(ROW, to=lambda a: a * np.nan)(tmp_path / "nan")
    done = run("inspect", f"--workdir=hf:{tmp_path / 'nan'}")
    assert done.code == 0
    assert f"warning: {tmp_path / 'nan'}: tensor {ROW} holds NaN or infinity" in done.err


@pytest.fixture
def cache(good, tmp_path, monkeypatch):
    """Return the hub's cache with one model in two revisions, no network, and its snapshots."""
    from huggingface_hub import constants

    model = tmp_path / "models--owner--tiny"
    for revision in ("a" * 40, "b" * 40):
        snapshot = model / "snapshots" / revision
        snapshot.mkdir(parents=True)
        for file in (good / "gpt2").iterdir():
            blob = model / "blobs" / f"{revision[0]}-{file.name}"
            blob.parent.mkdir(exist_ok=True)
            shutil.copy(file, blob)
            (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("a" * 40)
    (model / "refs" / "old").write_text("b" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return model / "snapshots"


def test_a_name_is_found_in_the_hubs_cache(cache):
    assert Directory("hf:owner/tiny").path == cache / ("a" * 40)
    assert Directory("owner/tiny@old").path == cache / ("b" * 40)
    assert Directory("owner/tiny", "b" * 40).path == cache / ("b" * 40)
    assert from_pretrained("owner/tiny").architecture == "GPT2LMHeadModel"
    for name in ("owner/none", "owner/tiny@none"):
        with pytest.raises(MissingInput, match="neither in the cache nor can the hub be reached"):
            Directory(name)
    for name in ("./none", "/none", "a/b/c", "owner/na me", "../up"):
        with pytest.raises(MissingInput, match="not the name of a model"):
            Directory(name)


def test_both_generations_of_names_are_read():
    """v4 had rope_theta, rope_scaling and torch_dtype; v5 has rope_parameters and dtype."""
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 64
    old = {"rope_theta": 5e5, "rope_scaling": scaling | {"rope_type": "llama3"}}
    older = {"rope_theta": 5e5, "rope_scaling": scaling | {"type": "llama3"}}
    new = {"rope_parameters": scaling | {"rope_type": "llama3", "rope_theta": 5e5}}
    found = [
        describe({"model_type": "llama", key: "bfloat16"} | rope).config()
        for key, rope in (("torch_dtype", old), ("torch_dtype", older), ("dtype", new))
    ]
    assert found[0] == found[1] == found[2] and found[0].rope_theta == 5e5
    plain = describe({"model_type": "llama"}).config()
    assert plain.rope_scaling == "" and found[0].rope_scaling == "llama3"
