"""Checkpoints of the hub, as their files stand there, load: a table of facts, hub_table.py."""

import json
import re

import hub_checkpoints
import jax
import numpy as np
import pytest
import safetensors.numpy
from hub_table import HUB, Hub

from flaxlm import from_pretrained
from flaxlm.errors import ConfigError, DataError, FlaxlmError, Unsafe
from flaxlm.interop import config_keys
from flaxlm.interop.config import describe
from flaxlm.interop.pretrained import Directory
from flaxlm.models import init_params
from flaxlm.training import config as run_config
from flaxlm.tree import flatten

REFUSED = {
    "microsoft/deberta-v3-base": ({"model_type": "deberta-v2"}, ConfigError, "'deberta-v2' is not"),
    "microsoft/deberta-base": ({"model_type": "deberta"}, ConfigError, "model_type='deberta' is"),
    "sentence-transformers/all-mpnet-base-v2": ({"model_type": "mpnet"}, ConfigError, "'mpnet'"),
    "google/gemma-3-4b-it": ({"model_type": "gemma3"}, ConfigError, "'gemma3' is not known"),
    "nomic-ai/nomic-embed-text-v1.5": (
        {"model_type": "nomic_bert", "auto_map": {}}, Unsafe, "auto_map asks to run code"),
    "google-bert/bert-base-uncased, a class not known": (
        {"architectures": ["BertForMultipleChoice"]}, ConfigError, "choose one of: BertModel"),
    "quantised": ({"quantization_config": {"bits": 4}}, ConfigError, "quantization_config={'bits'"),
}  # fmt: skip
# Keys that are harmless at some values, and one value that is not.
HARMFUL = dict(
    pruned_heads={"0": [1]}, n_special=3, tie_encoder_decoder=True, is_decoder=True, use_mrope=True,
    add_cross_attention=True, position_embedding_type="relative_key", rope_interleaved=True,
    attention_bias=True, mlp_bias=True, qk_layernorm=True, hidden_dropout=0.2, layers_to_keep=[0],
    do_blenderbot_90_layernorm=True,
)  # fmt: skip


def files_of(hub: Hub) -> tuple[dict, dict]:
    """Return ({name: shape} of all tensors, {name: name of what it is a copy of})."""
    lines = hub_checkpoints.FAMILIES[hub.family].tensors
    shapes, token = {}, ""
    for part in (lines, hub.read, hub.unread):
        made = hub_checkpoints.tensors(part, hub.prefix)
        token = token or next(iter(made))
        shapes |= made
    unread = hub_checkpoints.tensors(hub.unread, hub.prefix)
    copies = {name: token for name in unread if shapes[name] == shapes[token]}
    copies |= {n: n.replace("decoder.bias", "bias") for n in unread if n.endswith("decoder.bias")}
    return shapes, copies


def make(hub: Hub, directory):
    """Write a checkpoint; return the names, as they are in the file, of what nothing reads."""
    shapes, copies = files_of(hub)
    renamed = {name: name for name in shapes}
    for pattern, replacement in hub.sub:
        renamed = {n: replacement and re.sub(pattern, replacement, new) if re.search(pattern, new)
                   else new for n, new in renamed.items()}  # fmt: skip
    shapes = {renamed[name]: shape for name, shape in shapes.items() if renamed[name]}
    hub_checkpoints.write(directory, hub.family, hub.architecture, hub.keys, shapes, copies)
    return sorted(hub_checkpoints.tensors(hub.unread, hub.prefix))


@pytest.mark.parametrize("name", HUB)
def test_a_checkpoint_of_the_hub_loads_whole(name, tmp_path):
    hub = HUB[name]
    unread = make(hub, tmp_path / "model")
    directory = Directory(tmp_path / "model")
    heads = directory.heads()
    assert " ".join(heads) == hub.heads
    if hub.architecture:
        named = hub.architecture.replace("T5WithLMHeadModel", "T5ForConditionalGeneration")
        assert directory.description.architecture == named
    plan = directory.plan(directory.weights.config, heads)
    assert not plan.missing and plan.unread == unread


def test_there_are_sixty():
    assert len(HUB) >= 60 and {hub.family for hub in HUB.values()} == set(hub_checkpoints.FAMILIES)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_by_name(name):
    keys, error, message = REFUSED[name]
    bert = hub_checkpoints.FAMILIES["bert"]
    with pytest.raises(error, match=re.escape(message)):
        describe({"model_type": "bert"} | bert.keys | keys)


@pytest.mark.parametrize("key", HARMFUL)
def test_a_key_is_harmless_at_its_own_values_alone(key):
    family = hub_checkpoints.FAMILIES["albert"]
    with pytest.raises(ConfigError, match=f"{key}=") as caught:
        describe({"model_type": "albert"} | family.keys | {key: HARMFUL[key]})
    assert "\n" not in str(caught.value)
    for value in (*config_keys.ONLY.get(key, (0.0,)), None):
        describe({"model_type": "albert"} | family.keys | {key: value})


CASES = {
    "bart_cnn": "lm", "bertner_old": "token_classification", "distilbert_hub": "mlm",
    "gpt2_distil": "lm", "gpt2_pst": "lm", "qwen25_hub": "lm", "gpt2_lmhead": "lm",
    "bert_gamma": "mlm",
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_small_checkpoints_with_real_config_json_load(name, shared):
    assert list(from_pretrained(shared(f"cases/models/{name}")).heads) == [CASES[name]]


def arrays(path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(path / "model.safetensors")


def rewritten(source, target, change) -> None:
    """Copy a model with its arrays changed, and config.json's class taken out where asked."""
    target.mkdir()
    (target / "config.json").write_text((source / "config.json").read_text())
    safetensors.numpy.save_file(change(arrays(source)), target / "model.safetensors")


def same(one, other) -> bool:
    one, other = (flatten(from_pretrained(path).params) for path in (one, other))
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


TWINS = {
    "openai-community/gpt2": ("wte.weight", "lm_head.weight"),
    "google-bert/bert-base-cased": ("bert.embeddings.word_embeddings.weight",
                                    "cls.predictions.decoder.weight"),
    "google/gemma-2-2b-it": ("model.embed_tokens.weight", "lm_head.weight"),
    "google-t5/t5-small": ("shared.weight", "decoder.embed_tokens.weight"),
    "facebook/bart-large-cnn": ("model.shared.weight", "lm_head.weight"),
    "FacebookAI/roberta-base": ("lm_head.bias", "lm_head.decoder.bias"),
    "albert/albert-base-v2": ("predictions.bias", "predictions.decoder.bias"),
}  # fmt: skip


@pytest.mark.parametrize("name", TWINS)
def test_a_tensor_may_stand_under_any_of_its_names(name, tmp_path):
    first, other = TWINS[name]
    make(HUB[name], tmp_path / "first")
    groups = ("embed_tokens.weight", "lm_head.weight", "decoder.weight", "decoder.bias")

    def alone(held):
        kept = {n: a for n, a in held.items() if not n.endswith(groups) or n == first}
        return {other if n == first else n: a for n, a in kept.items()}

    rewritten(tmp_path / "first", tmp_path / "other", alone)
    assert same(tmp_path / "first", tmp_path / "other")
    rewritten(tmp_path / "other", tmp_path / "none", lambda h: {k: h[k] for k in h if k != other})
    with pytest.raises(FlaxlmError, match=rf"has no (tensor {re.escape(first)}|heads/mlm/bias)"):
        from_pretrained(tmp_path / "none")


def test_two_tables_are_not_taken_for_one(tmp_path):
    make(HUB["google-t5/t5-small"], tmp_path / "model")
    name = "decoder.embed_tokens.weight"
    rewritten(tmp_path / "model", tmp_path / "two", lambda held: held | {name: held[name] + 1})
    with pytest.raises(DataError, match=r"decoder\.embed_tokens\.weight is not shared\.weight"):
        from_pretrained(tmp_path / "two")
    # Not tied: an output table cannot stand for the other one.
    make(HUB["google/flan-t5-base"], tmp_path / "flan")
    lost = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    rewritten(tmp_path / "flan", tmp_path / "out",
              lambda held: {k: held[k] for k in held if k not in lost})  # fmt: skip
    with pytest.raises(DataError, match=r"no tensor shared\.weight.*lm_head\.weight is there"):
        from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "module._orig_mod."])
def test_wrapped_names_are_read_and_named(wrapper, tmp_path):
    make(HUB["Qwen/Qwen2.5-0.5B"], tmp_path / "plain")
    extra = {"loss_fct.weight": np.ones(3, np.float32), "criterion.weight": np.ones(1, np.float32)}
    rewritten(tmp_path / "plain", tmp_path / "wrapped",
              lambda held: {wrapper + k: a for k, a in (held | extra).items()})  # fmt: skip
    with pytest.warns(UserWarning, match=f"names like {re.escape(wrapper)}"):
        assert same(tmp_path / "plain", tmp_path / "wrapped")


CLASSLESS = {
    "google-bert/bert-base-uncased": "mlm nsp",
    "ProsusAI/finbert": None,
    "sentence-transformers/all-MiniLM-L6-v2": "pooled",
    "FacebookAI/roberta-large-mnli": "classification",
    "distilbert/distilbert-base-uncased-finetuned-sst-2-english": "classification",
    "google/electra-small-discriminator": "discriminator",
    "openai-community/gpt2": "lm",
    "intfloat/e5-mistral-7b-instruct": "",  # not tied, and no output table
    "google-t5/t5-small": "lm",
    "sentence-transformers/sentence-t5-base": "",
    "facebook/bart-large-mnli": "classification",
}


@pytest.mark.parametrize("name", CLASSLESS)
def test_the_tensors_tell_the_class_where_config_json_names_none(name, tmp_path):
    make(HUB[name]._replace(architecture=""), tmp_path / "model")
    if CLASSLESS[name] is None:
        with pytest.raises(ConfigError, match=r"names no class.*ForSequence.* or .*ForToken"):
            Directory(tmp_path / "model")
        return
    directory = Directory(tmp_path / "model")
    heads = directory.heads()
    assert " ".join(heads) == CLASSLESS[name]
    assert not directory.plan(directory.weights.config, heads).missing


# --- more tokens than rows


@pytest.fixture
def added(tmp_path):
    """Return the directory of a masked LM of 40 rows whose tokenizer has 41 ids."""
    make(HUB["google-bert/bert-base-uncased"], tmp_path / "added")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(35))]
    (tmp_path / "added" / "vocab.txt").write_text("\n".join(pieces))
    (tmp_path / "added" / "added_tokens.json").write_text('{"[brand]": 40}')
    return tmp_path / "added"


def test_training_starts_rows_for_added_tokens(added):
    recipe = {"init": f"hf:{added}", "train": {"steps": 1}}
    recipe["objective"] = {"name": "masked_lm", "nsp": False}
    full = run_config.resolve(recipe)
    assert full["model"]["vocab_size"] == 41
    config = run_config.build(full)
    fresh = flatten(init_params("encoder", config.model, {"mlm": 0}, jax.random.key(0)))
    plan = Directory(added).plan(config.model, {"mlm": 0})
    assert "; 1 new rows of the vocabulary start fresh" in str(plan)
    loaded = plan.load(fresh, fresh)
    held = arrays(added)
    stored = {"embed/token": "bert.embeddings.word_embeddings.weight",
              "heads/mlm/bias": "cls.predictions.bias"}  # fmt: skip
    for path, name in stored.items():
        np.testing.assert_array_equal(loaded[path][:40], held[name])
        np.testing.assert_array_equal(loaded[path][40:], fresh[path][40:])
        assert loaded[path].shape == fresh[path].shape
    assert np.any(np.asarray(fresh["embed/token"][40]))
    with pytest.raises(ConfigError, match=r"only training starts rows: set model\.vocab_size=40"):
        plan.load(fresh)
    # Said by hand, it is what stands there.
    stated = recipe | {"model": {"vocab_size": 40}}
    assert run_config.resolve(stated)["model"]["vocab_size"] == 40


def test_a_reader_refuses_texts_with_tokens_that_have_no_row(added):
    whole = Directory(added).tokenizer()
    with pytest.warns(UserWarning, match=r"has 41 ids and the model 40 rows: \[brand\]; texts"):
        tokenizer = from_pretrained(added).tokenizer
    assert tokenizer.hash == whole.hash and tokenizer.vocab_size == 40
    assert tokenizer.encode("word7 word8") == whole.encode("word7 word8") == [12, 13]
    assert len(tokenizer.pieces(range(40))) == len(tokenizer.word_starts) == 40
    batch = lambda text: tokenizer.encode_batch([text])  # noqa: E731
    for encode in (tokenizer.encode, tokenizer.encode_with_offsets, batch):
        with pytest.raises(DataError, match=r"a text holds '\[brand\]', id 40.*--config\.init"):
            encode("word7 [brand]")
    with pytest.raises(ConfigError, match="special tokens are among them"):
        whole.restrict(3)
    # A padding token may have no row: nothing reads it.
    config = {"pad_token": "[brand]"}
    (added / "tokenizer_config.json").write_text(json.dumps(config))
    padded = Directory(added).tokenizer()
    assert padded.pad_id == 40
    with pytest.warns(UserWarning):
        padded.restrict(40)
    assert padded.pad_id == padded.eos_id == padded.special_ids["pad"]
    with pytest.raises(DataError, match="id 40"):
        tokenizer.readable([7, 40])
