"""How far from the top each parameter stands, and that its updates fall off by that."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from flaxlm import tree
from flaxlm.errors import ConfigError
from flaxlm.models import MODELS, abstract_params
from flaxlm.models.depth import distances
from flaxlm.training.optimizer import OptimizerConfig, make_optimizer

CASES = {
    "encoder": (
        dict(num_layers=3, norm_position="post", embed_norm=True, token_types=2),
        {
            "heads/classification/kernel": 0,
            "encoder/final_norm/scale": 0,
            "encoder/layers/mlp/up/kernel": [3, 2, 1],
            "embed/token": 4,
            "embed/norm/scale": 4,
            "embed/token_type": 4,
        },
    ),
    "decoder": (
        dict(num_layers=3, first_norm=False),
        {"decoder/first/mlp/up/bias": 3, "decoder/layers/mlp/up/bias": [2, 1], "embed/token": 4},
    ),
    "encoder_decoder": (
        dict(num_layers=2, num_decoder_layers=4, positions="relative"),
        {
            "encoder/layers/attention/key/kernel": [2, 1],
            "decoder/layers/cross_attention/key/kernel": [4, 3, 2, 1],
            "encoder/relative/table": 2,
            "decoder/relative/table": 4,
            "embed/token": 5,
        },
    ),
    "recurrent": (dict(), {"recurrent/layers/input/kernel": [2, 1], "recurrent/token": 3}),
}


@pytest.mark.parametrize("family", MODELS)
def test_layers_are_counted_from_the_top(family):
    fields, expected = CASES[family]
    c = tiny.config(family, **fields)
    params = abstract_params(family, c, {"lm": 0, "classification": 3})
    found = distances(c, params)
    assert found.keys() == tree.flatten(params).keys()
    for path, distance in expected.items():
        assert found[path].tolist() == distance, path


def test_shared_layers_are_one_layer():
    c = tiny.config("encoder", num_layers=3, share_layers=True, embed_width=8)
    found = distances(c, abstract_params("encoder", c, {"classification": 3}))
    assert found["encoder/layers/mlp/up/kernel"].tolist() == 1
    assert found["embed/projection/kernel"].tolist() == found["embed/token"].tolist() == 2


def test_a_parameter_without_a_place_is_named():
    with pytest.raises(ConfigError, match="'adapter/kernel'"):
        distances(tiny.config("encoder"), {"adapter": {"kernel": jnp.ones(2)}})


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_updates_and_weight_decay_fall_off_alike(name):
    """The whole update of optax, times a half for each layer below the head."""
    params = tree.unflatten(
        {
            "embed/token": jnp.full((4, 3), 2.0),
            "encoder/layers/mlp/up/kernel": jnp.linspace(-1, 1, 12).reshape(2, 3, 2),
            "heads/classification/kernel": jnp.ones((3, 2)),
        }
    )
    grads = {path: jnp.sin(3 * leaf + 1) for path, leaf in tree.flatten(params).items()}
    grads = tree.unflatten(grads)
    c = tiny.config("encoder", num_layers=2)
    both = []
    for decay in (1.0, 0.5):
        config = OptimizerConfig(
            name=name, learning_rate=0.1, schedule="constant", weight_decay=0.1, layer_decay=decay
        )
        update, _ = make_optimizer(config, 10, distances(c, params))
        state, seen = update.init(params), params
        for _ in range(2):
            updates, state = update.update(grads, state, seen)
        both.append(tree.flatten(updates))
    plain, decayed = both
    factors = {
        "embed/token": 0.125,
        "encoder/layers/mlp/up/kernel": np.array([0.25, 0.5]).reshape(2, 1, 1),
        "heads/classification/kernel": 1.0,
    }
    for path, factor in factors.items():
        np.testing.assert_allclose(decayed[path], factor * plain[path], rtol=1e-6, err_msg=path)


def test_bad_decays_are_refused():
    for wrong in (0.0, -1.0, 1.1):
        with pytest.raises(ConfigError, match="layer_decay"):
            OptimizerConfig(layer_decay=wrong)
