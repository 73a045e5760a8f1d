"""Defaults of a model's files: applied where nothing was asked for, or said not to be applied."""

import dataclasses
import json
import types

import jax.numpy as jnp
import numpy as np
import pytest
from table_model import BYTES, OTHER, table

from flaxlm.commands import generate as verb
from flaxlm.errors import ConfigError, DataError
from flaxlm.inference import settings
from flaxlm.inference.generate import generate
from flaxlm.inference.settings import UNREAD, USUAL, GenerateConfig, resolve
from flaxlm.interop import generation
from flaxlm.training import config as run_config

SAMPLED = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
GREEDY = {"do_sample": False}
SUMMARY = {"num_beams": 4, "max_length": 142, "min_length": 56, "forced_bos_token_id": 0}


def model(fields, encodes=False, trained_here=False, fills=False):
    traits = types.SimpleNamespace(encodes=encodes, bidirectional=fills)
    return types.SimpleNamespace(
        family="encoder", generation=fields, traits=traits, trained_here=trained_here
    )


@pytest.mark.parametrize(
    ("fields", "asked", "expected", "line"),
    [
        ({}, {}, {}, ""),
        ({"eos_token_id": [2, 7], "temperature": 1.0, "transformers_version": "4.1"}, {}, {}, ""),
        (SAMPLED, {}, {"temperature": 0.6, "top_p": 0.9}, "temperature 0.6, top_p 0.9"),
        (SAMPLED, {"top_p": 1.0}, {"temperature": 0.6}, "temperature 0.6"),
        (SAMPLED, {"temperature": 0.0}, {"temperature": 0.0}, "not applied: top_p 0.9"),
        (SAMPLED, {"num_beams": 2}, {"num_beams": 2}, "not applied: temperature 0.6, top_p 0.9"),
        (GREEDY, {}, {"temperature": 0.0}, "temperature 0.0"),
        (GREEDY | {"top_k": 50}, {}, {"temperature": 0.0}, "temperature 0.0"),
        (SAMPLED | {"top_k": 50}, {"top_p": 1.0, "temperature": 1.0}, {"top_k": 50}, "top_k 50"),
        (GREEDY, {"temperature": 0.5}, {"temperature": 0.5}, ""),
        (GREEDY, {"top_k": 5}, {"top_k": 5}, ""),
        ({"num_beams": 3}, {}, {"num_beams": 3}, "num_beams 3"),
        ({"num_beams": 3}, {"stop": ("x",)}, {"stop": ("x",)}, "not applied: num_beams 3"),
        ({"num_beams": 3}, {"num_samples": 4}, {"num_samples": 4}, "not applied: num_beams 3"),
        ({"num_beams": 3}, {"num_beams": 1}, {}, ""),
        ({"num_beams": 3, "do_sample": True}, {}, {}, "not applied: num_beams 3"),
        ({"num_return_sequences": 2}, {}, {"num_samples": 2}, "num_samples 2"),
        ({"stop_strings": "\n"}, {}, {"stop": ("\n",)}, "stop ('\\n',)"),
        ({"max_new_tokens": 9}, {}, {"max_new_tokens": 9}, "max_new_tokens 9"),
        (
            GREEDY | {"num_return_sequences": 2},
            {},
            {"temperature": 0.0},
            "temperature 0.0; not applied: num_samples 2",
        ),
        ({"max_length": 20}, {}, {}, ""),
        ({"max_length": 99}, {}, {}, "not applied: max_length 99"),
        (
            {"repetition_penalty": 1.1, "suppress_tokens": [], "min_p": None, "new": 3},
            {},
            {},
            "not applied: repetition_penalty 1.1, new 3",
        ),
    ],
)
def test_the_files_of_the_model_fill_what_is_not_asked_for(fields, asked, expected, line):
    options, said = resolve(GenerateConfig(**asked), model(fields))
    assert said == (f"generation_config.json: {line}" if line else "")
    assert options == GenerateConfig(**USUAL | expected)
    assert resolve(options, model(fields))[0] == options, "what is complete stays as it is"


@pytest.mark.parametrize(
    ("fields", "asked", "message"),
    [
        (
            GREEDY,
            {"seed": 3},
            "seed=3 has no meaning with do_sample=False of generation_",
        ),
        (GREEDY, {"num_samples": 2}, "num_samples=2 has .*, or set temperature=1"),
        (
            {"num_beams": 3},
            {"seed": 3},
            "seed=3 has no meaning with num_beams=3 of generation",
        ),
        ({}, {"length_penalty": 2.0}, "length_penalty=2.0 has .*; leave it out, or set num_beams"),
    ],
)
def test_what_the_files_leave_without_effect_is_refused(fields, asked, message):
    with pytest.raises(ConfigError, match=message):
        resolve(GenerateConfig(**asked), model(fields))


WAYS = {
    settings.SAMPLING: {},
    settings.GREEDY: {"temperature": 0.0},
    settings.SEARCHING: {"num_beams": 2},
}


@pytest.mark.parametrize("way", WAYS)
def test_every_option_has_an_effect_or_is_refused(way):
    logits = 2 * np.random.default_rng(3).normal(size=(BYTES.vocab_size,) * 2)
    ends = BYTES.encode("~")[0]
    logits[:, [BYTES.eos_id, ends]] += 6  # so that texts end, and hold what they may stop at
    model, asked = table({"table": jnp.asarray(logits, jnp.float32)}), {"max_new_tokens": 16}
    asked |= WAYS[way]
    usual = generate(model, ["a", "b", "c"], GenerateConfig(**asked))
    assert {*OTHER, "batch_size", "bos"} == {f.name for f in dataclasses.fields(GenerateConfig)}
    for name in OTHER.keys() - WAYS[way]:
        if name in UNREAD[way].split():
            with pytest.raises(ConfigError, match=rf"{name}=.* has no meaning with .*=.*leave it"):
                generate(model, ["a", "b", "c"], GenerateConfig(**asked | {name: OTHER[name]}))
        else:
            options = GenerateConfig(**asked | {name: OTHER[name]})
            assert generate(model, ["a", "b", "c"], options) != usual, name


def test_an_encoder_is_told_what_its_files_say_in_vain():
    fields = {"temperature": 0.6, "num_beams": 3, "max_new_tokens": 9, "stop_strings": "x"}
    options, said = resolve(GenerateConfig(), model(fields, fills=True))
    assert options == GenerateConfig(**USUAL) and said.count("not applied: ") == 1
    assert all(f"{name} " in said.partition("not applied: ")[2] for name in fields)
    assert resolve(options, model(fields, fills=True))[0] == options


@pytest.mark.parametrize(
    ("trained_here", "line"),
    [
        (
            False,
            "num_beams 4, max_new_tokens 140, forced_bos_token_id 0; not applied: min_length 56",
        ),
        (
            True,
            "num_beams 4, max_new_tokens 141; not applied: min_length 56, forced_bos_token_id 0",
        ),
    ],
)
def test_a_model_that_was_trained_here_is_forced_to_nothing(trained_here, line):
    options, said = resolve(GenerateConfig(), model(SUMMARY, True, trained_here))
    assert said == f"generation_config.json: {line}"
    most = 141 if trained_here else 140  # a forced token is one of them
    assert options == GenerateConfig(**USUAL | {"num_beams": 4, "max_new_tokens": most})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": "hot"}, "temperature='hot' is not of type float"),
        ({"top_k": 2.5}, "top_k=2.5 is not of type int"),
        ({"temperature": -1.0}, "temperature=-1.0 must be 0"),
    ],
)
def test_values_that_cannot_be_are_refused_with_the_file(fields, message):
    with pytest.raises(ConfigError, match=f"generation_config.json: {message}"):
        resolve(GenerateConfig(), model(fields))


@pytest.mark.parametrize(
    ("own", "config", "expected"),
    [
        ({"eos_token_id": [1, 106]}, {"eos_token_id": 1}, {"eos_token_id": [1, 106]}),
        (
            {"top_p": 0.9},
            {"eos_token_id": [2, 5], "num_beams": 4},
            {"top_p": 0.9, "eos_token_id": [2, 5]},
        ),
        (
            None,
            {"hidden_size": 8, "num_beams": 4, "eos_token_id": 2, "bos_token_id": 0}
            | {"force_bos_token_to_be_generated": True},
            {"num_beams": 4, "eos_token_id": 2, "forced_bos_token_id": 0, "_file": "config.json"},
        ),
        (None, {"eos_token_id": None, "hidden_size": 8}, {}),
    ],
)
def test_generation_config_json_or_else_config_json_is_read(own, config, expected, tmp_path):
    if own is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(own))
    assert generation.read_settings(tmp_path, config) == expected


@pytest.mark.parametrize("ids", ["2", [], [2, "x"], 2.0, -1, True])
def test_eos_that_is_no_id_is_refused(ids, tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    with pytest.raises(DataError, match=r"eos_token_id=.* is neither an id nor a list of ids"):
        generation.read_settings(tmp_path, {})


@pytest.mark.parametrize(
    ("family", "objective", "flags"),
    [
        ("encoder", "masked_lm", {"temperature": 0.5}),
        ("encoder_decoder", "span_corruption", {"bos": "always"}),
    ],
)
def test_flags_of_other_families_are_refused_before_weights_are_read(
    family, objective, flags, tmp_path
):
    nested = {"model": {"name": family}, "objective": {"name": objective}, "train": {"steps": 1}}
    options = verb.Options(workdir=str(tmp_path), prompt=("a",), **flags)  # and no checkpoint
    with pytest.raises(ConfigError, match=f"{next(iter(flags))}="):
        verb.run(options, run_config.from_dict(nested))
