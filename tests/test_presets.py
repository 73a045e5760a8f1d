"""Published sizes, initial scales, and a logical axis for every dimension of every parameter."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
import tiny

from flaxlm import sharding, tree
from flaxlm.models import MODELS, PRESETS, abstract_params, init_params, parameter_count, preset
from flaxlm.models.config import padded_vocab
from flaxlm.training import lora

EVERYWHERE = lora.LoraConfig(rank=2, targets=(r"kernel$",))
POOLED, LM = {"pooled": 0}, {"lm": 0}
# Counts of the released checkpoints.
COUNTS = [
    ("bert_base", POOLED, 109_482_240),
    ("bert_base", {"mlm": 0, "nsp": 2}, 110_106_428),
    ("bert_tiny", POOLED, 4_385_920),
    ("bert_large", POOLED, 335_141_888),
    ("gpt2", LM, 124_439_808),
    ("gpt2_xl", LM, 1_557_611_200),
    ("t5_small", LM, 60_506_624),
    ("t5_base", LM, 222_903_552),
    ("t5_v1_1_small", LM, 76_961_152),
    ("t5_v1_1_base", LM, 247_577_856),
    ("llama2_7b", LM, 6_738_415_616),
]
ALL_HEADS = {
    "encoder": {"mlm": 0, "nsp": 2, "classification": 3, "lm": 0},
    "decoder": {"lm": 0, "classification": 3},
    "encoder_decoder": {"lm": 0, "classification": 3},
    "recurrent": {"lm": 0, "classification": 3},
}


@pytest.mark.parametrize(("name", "heads", "expected"), COUNTS)
def test_parameter_counts_are_the_published_ones(name, heads, expected):
    family, config = preset(name)
    params = abstract_params(family, config, heads)
    assert parameter_count(family, config, params) == expected
    stored = tree.count(abstract_params(family, config, heads))
    rows = padded_vocab(config) - config.vocab_size
    per_row = config.width * (1 if config.tied else 2) + ("mlm" in heads)
    assert stored == expected + rows * per_row


def every_tree():
    """Return (family, abstract parameters) of every preset and of every part a config can add."""
    cases = [(*preset(name), ALL_HEADS[PRESETS[name]["name"]]) for name in PRESETS]
    for family in MODELS:
        fields = {"tied": False, "output_bias": True}
        if family != "recurrent":
            fields |= {"gated": True, "token_types": 2, "embed_norm": True}
        cases.append((family, tiny.config(family, **fields), ALL_HEADS[family]))
        if family != "recurrent":
            config = cases[-1][1]
            for more in ({"positions": "relative"}, {"embed_width": config.width // 2}):
                cases.append((family, dataclasses.replace(config, **more), ALL_HEADS[family]))
            unusual = {"qk_norm": True, "norm_position": "sandwich"}
            unusual |= {"first_norm": False, "separate_positions": True}
            more = dataclasses.replace(config, **unusual)
            cases.append((family, more, ALL_HEADS[family]))
    cases.append(("recurrent", tiny.config("recurrent", cell="gru"), ALL_HEADS["recurrent"]))
    trees = []
    for family, c, heads in cases:
        adapted = functools.partial(lora.add, config=EVERYWHERE, axes=MODELS[family].axes, seed=0)
        trees.append((family, jax.eval_shape(adapted, abstract_params(family, c, heads))))
    return trees


def test_every_parameter_has_axes_and_every_row_a_parameter():
    used = set()
    for family, params in every_tree():
        axes = MODELS[family].axes
        for path, leaf in tree.flatten(params).items():
            rows = [row for row in axes if re.search(row[0], path)]
            assert len(rows) == 1, f"{path}: {rows}"
            pattern, names = rows[0]
            used.add((family, pattern))
            stacked = "/layers/" in path
            assert len(names) == len(leaf.shape) - stacked, path
            assert {name for name in names if name} <= set(sharding.RULES), path
    rows = {pattern for model in MODELS.values() for pattern, _ in model.axes}
    assert rows == {pattern for _, pattern in used}


def deviations(name, heads, **fields):
    family, config = preset(name, vocab_size=1000, vocab_multiple=1, **fields)
    init = jax.jit(lambda key: init_params(family, config, heads, key))
    return config, {
        k: np.asarray(v).std() for k, v in tree.flatten(init(jax.random.key(0))).items()
    }


def test_gpt2_initialisation():
    """0.02, and for what adds to the residual stream 0.02 · (2 N)^−½ (Radford et al., 2019)."""
    c, std = deviations("gpt2", LM, width=128, num_layers=3, num_heads=4, max_length=64)
    for path, value in std.items():
        expected = 0.02 if re.search(r"kernel|token|position", path) else 0
        if re.search(r"(out|down)/kernel", path):
            expected /= (2 * c.num_layers) ** 0.5
        assert value == pytest.approx(expected, rel=0.05), path


def test_t5_initialisation():
    """Fan-in scales, with the query's score scale in its kernel (T5's released code)."""
    sizes = {"width": 128, "num_layers": 2, "num_heads": 4, "head_dim": 16, "mlp_width": 192}
    _, std = deviations("t5_v1_1_small", LM, **sizes)
    rows = (
        (r"embed/token", 1),
        (r"query/kernel", (128 * 16) ** -0.5),
        (r"(key|value)/kernel", 128**-0.5),
        (r"out/kernel", (4 * 16) ** -0.5),
        (r"(up|gate)/kernel", 128**-0.5),
        (r"down/kernel", 192**-0.5),
        (r"relative/table", 128**-0.5),
        (r"heads/lm/kernel", 128**-0.5),
        (r"norm/scale", 0),
    )
    for path, value in std.items():
        tolerance = 0.2 if "relative" in path else 0.05
        assert value == pytest.approx(tree.first_match(rows, path), rel=tolerance), path
