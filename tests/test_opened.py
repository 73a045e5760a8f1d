"""A run directory and the Hugging Face model that it is exported to are one trained model."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import tiny_runs as tiny
import transformers

import flaxlm
from flaxlm import sharding, tree
from flaxlm.commands import convert, embed, inspect
from flaxlm.commands import generate as generate_verb
from flaxlm.commands.options import settle
from flaxlm.data.hugging_face import load_hugging_face
from flaxlm.errors import ConfigError, MissingInput
from flaxlm.inference.generate import GenerateConfig, generate
from flaxlm.inference.likelihood import score
from flaxlm.inference.requests import Reader, request
from flaxlm.training import config as run_config
from flaxlm.training.checkpoint import Checkpointer
from flaxlm.training.inputs import Inputs
from flaxlm.training.step import make_train_step

UNTIED = {"tied": False, "vocab_size": 281, "vocab_multiple": 128}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A decoder's run that has not begun: random parameters, a tokenizer, no training."""
    root = tmp_path_factory.mktemp("opened")
    (root / "text.txt").write_text("A text to read.\n\nAnother one.\n\n" * 8)
    data = {"path": str(root / "text.txt"), "document": "paragraph", "valid_fraction": 0.0}
    config = run_config.from_dict(tiny.recipe("causal", model=UNTIED, data=data))
    with Inputs.open(config, root / "run") as inputs:
        program = make_train_step(config, sharding.make_mesh(config.sharding, jax.devices()[:1]), 4)
        files = {"extra": inputs.identity(), "files": inputs.files()}
        with program.mesh(), Checkpointer(root / "run", **files) as saved:
            saved.save(0, tiny.drawn_state(program), wait=True)
    return root / "run"


@pytest.fixture(scope="module")
def exported(run):
    convert.convert(str(run), f"hf:{run.parent / 'out'}")
    return run.parent / "out"


def test_a_run_and_its_export_are_the_same_model(run, exported):
    ours, theirs = flaxlm.load(run), flaxlm.load(f"hf:{exported}")
    assert isinstance(ours, flaxlm.TrainedModel) and ours.family == theirs.family == "decoder"
    assert ours.heads == theirs.heads == {"lm": 0} and ours.config.vocab_size == 281
    assert ours.tokenizer.encode("é a") == theirs.tokenizer.encode("é a")
    assert tree.digest_of(ours.params) == tree.digest_of(flaxlm.from_pretrained(str(run)).params)
    batch = {"tokens": np.array([[1, 70, 90]], np.int32)}
    np.testing.assert_array_equal(ours(batch)["lm"], theirs(batch)["lm"])
    options = GenerateConfig(max_new_tokens=4, temperature=0)
    said = [generate(model, ["A text"], options)[0].ids for model in (ours, theirs)]
    assert said[0] == said[1]
    backbone = flaxlm.load(run, heads={})
    assert backbone.heads == {} and "heads" not in backbone.params
    np.testing.assert_array_equal(backbone(batch)["hidden"], ours(batch)["hidden"])
    spread = flaxlm.load(run, sharding=flaxlm.ShardingConfig(data=1, fsdp=4, tensor=2))
    assert spread.mesh.size == 8
    assert tree.digest_of(spread.params) == tree.digest_of(ours.params)


def test_what_reads_on_one_device_asks_for_no_mesh_of_the_run(run, tmp_path):
    """Wherever it was trained; a mesh that is typed would have no effect there."""
    place = tmp_path / "run"
    shutil.copytree(run, place)
    recorded = json.loads((place / "config.json").read_text())
    recorded["sharding"] |= {"data": 16, "fsdp": 3}
    (place / "config.json").write_text(json.dumps(recorded))
    assert convert.export_run(place, "").mesh.size == 1
    assert flaxlm.load(place).mesh.size == 1
    for options in (
        generate_verb.Options(workdir=str(place), prompt=("a",)),
        embed.Options(workdir=str(place), input="a", output="b"),
    ):
        with pytest.raises(ConfigError, match=r"sharding.fsdp=3 would have no effect"):
            settle("it", options, None, {"sharding.fsdp": "3"})


def test_an_export_begins_texts_with_bos_as_its_run_does(run, exported):
    ours, theirs = flaxlm.load(run), flaxlm.load(f"hf:{exported}")
    library = transformers.AutoTokenizer.from_pretrained(exported)
    text, ids = "A text", ours.tokenizer.encode("A text")
    expected = [ours.tokenizer.bos_id, *ids]
    assert library(text)["input_ids"] == expected
    assert theirs.tokenizer.adds_bos and ours.trained_here and not theirs.trained_here
    batch = {"tokens": np.array([expected], np.int32)}
    first = ours(batch)["lm"][0, -1, : ours.tokenizer.vocab_size].argmax()
    asked = [request(Reader(m.tokenizer, m.family), "A text", " to read.") for m in (ours, theirs)]
    assert asked[0] == asked[1] and asked[0].context == tuple(expected)
    for model in (ours, theirs):
        (generation,) = generate(model, [text], GenerateConfig(max_new_tokens=4, temperature=0))
        assert generation.ids[0] == first
    scores = [score(model, asked[:1]).tokens[0] for model in (ours, theirs)]
    np.testing.assert_array_equal(*scores)


def test_the_export_of_a_model_of_others_keeps_what_its_files_say_of_bos(run, tmp_path):
    for here in (False, True):
        model = dataclasses.replace(flaxlm.load(run), trained_here=here)
        flaxlm.save_pretrained(tmp_path / str(here), model)
        said = load_hugging_face(tmp_path / str(here)).template
        assert (said == model.tokenizer.template) is not here


def test_parameters_are_counted_once_and_without_padding(run, exported):
    """Both tables of an untied decoder are stored with their rows padded to 384."""
    model = flaxlm.load(run)
    padding = 2 * (384 - 281) * model.config.width
    config = run_config.build(run_config.read_run(str(run)))
    counts = [
        inspect.inspect(config, run, "latest")["parameters"],
        inspect.inspect_pretrained(f"hf:{exported}")["parameters"],
    ]
    assert counts == [tree.count(model.params) - padding] * 2


def test_what_cannot_be_asked_of_a_source_is_refused(run, exported, tmp_path):
    with pytest.raises(ConfigError, match=r"revision: .* is a run directory"):
        flaxlm.load(run, revision="main")
    with pytest.raises(ConfigError, match=r"checkpoint='5'.*is not a run directory"):
        flaxlm.load(exported, checkpoint="5")
    with pytest.raises(ConfigError, match="choose latest, best or 0"):
        flaxlm.load(run, checkpoint="5")
    with pytest.raises(MissingInput, match="no directory"):
        flaxlm.load(tmp_path / "nothing")


def test_the_public_names_are_listed_and_are_there():
    assert set(flaxlm.__all__) | {"__version__"} == set(dir(flaxlm))
    assert all(callable(getattr(flaxlm, name)) for name in flaxlm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'generate_config'"):
        _ = flaxlm.generate_config
