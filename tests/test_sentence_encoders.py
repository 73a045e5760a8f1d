"""A sentence encoder's own files decide how its vectors are made, unless flags do."""

import json

import hub_checkpoints
import numpy as np
import pytest
from hub_table import HUB
from test_hub_checkpoints import make

from flaxlm import from_pretrained
from flaxlm.data.hugging_face import load_hugging_face
from flaxlm.data.sentence_modules import SentenceModules, modules_for, read_modules
from flaxlm.data.tokenizer import load_tokenizer
from flaxlm.errors import ConfigError, DataError
from flaxlm.inference.embed import EmbedConfig, embed, settle
from flaxlm.interop.tokenizer import export_tokenizer
from flaxlm.objectives import InBatch

TEXTS = ["word1 word2 word3 word4 word5 word6 word7 word8 word9", "word3", ""]


def kinds(*names):
    """Return modules.json of these modules."""
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    return [
        {
            "idx": index,
            "path": paths.get(name, f"{index}_{name}"),
            "type": f"sentence_transformers.models.{name}",
        }
        for index, name in enumerate(names)
    ]


def files(pooling, *more, length=None, **said):
    """Return {name: text} of a sentence encoder's files."""
    contents = {
        "modules.json": kinds("Transformer", "Pooling", *more),
        "1_Pooling/config.json": pooling,
        "sentence_bert_config.json": {"max_seq_length": length} | said,
    }
    return {name: json.dumps(value) for name, value in contents.items()}


CLS = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
MODULES = {
    "nothing": ({}, SentenceModules()),
    "as BGE": (files(CLS, "Normalize", length=512), {"pooling": "cls", "normalize": True,
               "max_tokens": 512, "unsupported": ()}),
    "as MiniLM of old": (files(MEAN, length=256), {"pooling": "mean", "normalize": False}),
    "as Qwen3": (files({"pooling_mode_lasttoken": True}, "Normalize"), {"pooling": "last",
                 "max_tokens": 0}),
    "one word": (files({"pooling_mode": "cls"}), {"pooling": "cls"}),
    "no mode": (files({"word_embedding_dimension": 8}), {"pooling": "mean"}),
    "maximum": (files({"pooling_mode_max_tokens": True}), {"pooling": "", "unsupported": (
        "1_Pooling/config.json pools by max_tokens, not by cls_token, mean_tokens, lasttoken",)}),
    "two at once": (files(CLS | {"pooling_mode_mean_tokens": True}), {"pooling": ""}),
    "weighted": (files({"pooling_mode_weightedmean_tokens": True}), {"pooling": ""}),
    "lower case": (files(MEAN, do_lower_case=True), {"lowercase": True}),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_read_as_they_stand(name):
    texts, expected = MODULES[name]
    modules = read_modules(texts)
    if isinstance(expected, SentenceModules):
        assert modules == expected
        return
    assert {key: getattr(modules, key) for key in expected} == expected


def prompts(default=None, **texts):
    return {"config_sentence_transformers.json": json.dumps(
        {"prompts": texts, "default_prompt_name": default})}  # fmt: skip


BROKEN = {
    "absent": ({"modules.json": json.dumps(kinds("Pooling"))}, "names 1_Pooling/config.json"),
    "no list": ({"modules.json": "{}"}, "modules.json is damaged: it holds no list"),
    "cut": ({"modules.json": "["}, "modules.json is damaged"),
    "length": (files(CLS, length="long"), "max_seq_length='long' is not a number"),
    "prompt": (files(CLS) | prompts("query", passage="p: "), "default_prompt_name='query'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_damaged_files_are_named(name):
    texts, message = BROKEN[name]
    with pytest.raises(DataError, match=message):
        read_modules(texts)


def test_flags_come_first_and_the_line_says_so():
    modules = read_modules(files(CLS, "Normalize", length=300) | prompts("q", q="query: ", p="x: "))
    options, prompt, line = settle(EmbedConfig(), modules, "", 512)
    assert (options.pooling, options.normalize, options.max_tokens, prompt) == (
        "cls", True, 300, "query: ")  # fmt: skip
    assert line == (
        "pooling cls (1_Pooling/config.json), normalize True (modules.json), "
        "max_tokens 300 (sentence_bert_config.json), prompt 'query: '"
    )
    given = EmbedConfig(pooling="mean", normalize=False, max_tokens=20, prompt_name="p")
    options, prompt, line = settle(given, modules, "", 512)
    assert (options.pooling, options.normalize, options.max_tokens, prompt) == (
        "mean", False, 20, "x: ")  # fmt: skip
    assert "pooling mean (--pooling; 1_Pooling/config.json says cls)" in line
    # What a run was trained with comes before the files that it began from.
    options, _, line = settle(EmbedConfig(), modules, "last", 128)
    assert options.pooling == "last" and options.max_tokens == 128
    assert "pooling last (objective.pooling)" in line
    # A model without such files is read as ever, and nothing is said.
    options, prompt, line = settle(EmbedConfig(), SentenceModules(), "", None)
    assert (options.pooling, options.normalize, options.max_tokens, prompt, line) == (
        "mean", False, 512, "", "")  # fmt: skip


def test_what_is_not_computed_is_refused_unless_a_pooling_is_given():
    modules = read_modules(files(MEAN, "Dense", "Normalize"))
    with pytest.raises(ConfigError, match=r"modules.json has the module .*Dense.*--pooling=mean"):
        settle(EmbedConfig(), modules, "", None)
    options, _, line = settle(EmbedConfig(pooling="mean"), modules, "", None)
    assert options.pooling == "mean" and "left out: modules.json has the module" in line
    with pytest.raises(ConfigError, match="--prompt_name='q': the model's files name no prompt"):
        settle(EmbedConfig(prompt_name="q"), SentenceModules(), "", None)
    with pytest.raises(ConfigError, match=r"--max_tokens=9 is above model\.max_length=8"):
        settle(EmbedConfig(max_tokens=9), SentenceModules(), "", 8)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Return the directory of a tiny encoder with a tokenizer and no modules."""
    directory = tmp_path_factory.mktemp("encoder") / "model"
    make(HUB["sentence-transformers/all-MiniLM-L6-v2"], directory)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(35))]
    (directory / "vocab.txt").write_text("\n".join(pieces[: hub_checkpoints.DIMS["V"]]))
    (directory / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    return directory


def test_vectors_are_made_as_the_files_say(encoder):
    model = from_pretrained(encoder, heads={})
    plain = embed(model, TEXTS, EmbedConfig())
    asked = embed(model, TEXTS, EmbedConfig(pooling="cls", normalize=True, max_tokens=6))
    upper = [text.upper() for text in TEXTS]
    said = files(CLS, "Normalize", length=6, do_lower_case=True) | prompts("q", q="WORD2 ")
    prompted = embed(model, ["word2 " + text for text in TEXTS],
                     EmbedConfig(pooling="cls", normalize=True, max_tokens=6))  # fmt: skip
    model.tokenizer.beside = files(CLS, "Normalize", length=6)
    lines = []
    np.testing.assert_array_equal(embed(model, TEXTS, EmbedConfig(), say=lines.append), asked)
    assert len(lines) == 1 and lines[0].startswith("vectors: pooling cls (1_Pooling/config.json)")
    np.testing.assert_allclose(np.linalg.norm(asked, axis=1), 1, atol=1e-6)
    assert not np.allclose(plain, asked, atol=1e-2)
    model.tokenizer.beside = said
    np.testing.assert_array_equal(embed(model, upper, EmbedConfig()), prompted)


def test_the_modules_travel_through_a_run_into_exports(encoder, tmp_path):
    said = files(CLS, "Normalize", length=6) | prompts(query="query: ")
    for name, text in said.items():
        (encoder / name).parent.mkdir(exist_ok=True)
        (encoder / name).write_text(text)
    tokenizer = load_hugging_face(encoder)
    assert read_modules(tokenizer.beside) == read_modules(said)
    tokenizer.save(tmp_path / "run")
    export_tokenizer(load_tokenizer(tmp_path / "run"), tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_text() for name in said} == said
    # Not with a module that does not come along.
    tokenizer.beside = dict(tokenizer.beside) | files(CLS, "Dense")
    with pytest.warns(UserWarning, match=r"not exported with the model: modules.json has.*Dense"):
        export_tokenizer(tokenizer, tmp_path / "dense")
    assert not (tmp_path / "dense" / "modules.json").exists()


def test_training_with_another_pooling_is_said(encoder):
    tokenizer = load_hugging_face(encoder)
    tokenizer.beside = files(CLS)
    source = [{"text": "word1", "text_pair": "word2", "label": 1}]
    plan = dict(seed=0, shuffle=False)
    with pytest.warns(UserWarning, match=r"objective.pooling='mean', and 1_Pooling.* says 'cls'"):
        InBatch().plan(source, 16, tokenizer, **plan)
    InBatch(pooling="cls").plan(source, 16, tokenizer, **plan)
    # And what was trained is what an export says.
    modules = read_modules(modules_for("last", 8, 64))
    assert (modules.pooling, modules.normalize, modules.max_tokens) == ("last", True, 64)


def test_a_small_model_of_this_kind(shared):
    model = from_pretrained(shared("cases/models/bert_st"), heads={})
    path = shared("cases/09-pooling-of-the-model/ok.jsonl")
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    default, cls = (embed(model, texts, EmbedConfig(pooling=p)) for p in ("", "cls"))
    np.testing.assert_array_equal(default, cls)
    assert not np.allclose(default, embed(model, texts, EmbedConfig(pooling="mean")), atol=1e-3)
