"""The recurrent family equals torch's layers; resetting and decoding are tested with the others."""

import jax
import numpy as np
import pytest
import tiny

torch = pytest.importorskip("torch")
SIZES = {"lstm": 4, "gru": 3}


@pytest.mark.parametrize("cell", SIZES)
def test_layers_equal_torch(cell):
    """Two layers over one document; float32, summed in another order."""
    c, module, params = tiny.model("recurrent", cell=cell)
    theirs = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell](
        c.width, c.width, 2, batch_first=True
    )
    layers = params["recurrent"]["layers"]
    with torch.no_grad():
        for i in range(2):
            for ours, name in (("input", "ih"), ("recurrent", "hh")):
                kernel = layers[ours]["kernel"][i].reshape(c.width, SIZES[cell] * c.width)
                getattr(theirs, f"weight_{name}_l{i}").copy_(torch.tensor(kernel.T))
                getattr(theirs, f"bias_{name}_l{i}").copy_(
                    torch.tensor(layers[ours]["bias"][i].reshape(-1))
                )
        tokens = tiny.packed()["tokens"]
        expected = theirs(torch.tensor(params["recurrent"]["token"][tokens]))[0].numpy()
    hidden = jax.jit(module.apply)({"params": params}, {"tokens": tokens})["hidden"]
    np.testing.assert_allclose(hidden, expected, rtol=0, atol=5e-5)


def test_dropout_acts_in_training_alone():
    _, plain, params = tiny.model("recurrent")
    batch = tiny.packed()
    expected = plain.apply({"params": params}, batch)["lm"]
    for part in ("embed", "layer"):
        _, module, _ = tiny.model("recurrent", **{f"{part}_dropout": 0.5})
        assert np.array_equal(module.apply({"params": params}, batch)["lm"], expected)
        rng = {"dropout": jax.random.key(0)}
        assert not np.allclose(
            module.apply({"params": params}, batch, True, rngs=rng)["lm"], expected, atol=1e-2
        )
