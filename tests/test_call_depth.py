"""How many of our own calls lie between the loop and a cross entropy, while a step is traced.

Counted are the functions of the package on the stack below `Loop.run`, `cross_entropy` among them;
JAX's own frames and comprehensions are not.
"""

import functools
import pathlib
import traceback

import jax
import pytest
import tiny_runs as tiny
from test_objective_models import built
from test_pipeline import CASES

import flaxlm
from flaxlm.models import losses
from flaxlm.objectives import OBJECTIVES
from flaxlm.train import train
from flaxlm.training import config as run_config
from flaxlm.training.step import denominators_of, mean_loss

PACKAGE = str(pathlib.Path(flaxlm.__file__).parent)


@pytest.fixture
def stacks(monkeypatch):
    """Return a list that grows by the package's functions on the stack of each cross entropy."""
    found, cross_entropy = [], losses.cross_entropy

    def spy(*arguments):
        frames = [f for f in traceback.extract_stack() if f.filename.startswith(PACKAGE)]
        found.append([f.name for f in frames if not f.name.startswith("<")] + ["cross_entropy"])
        return cross_entropy(*arguments)

    monkeypatch.setattr(losses, "cross_entropy", spy)
    return found


def test_the_loop_is_four_calls_from_the_cross_entropy(stacks, tmp_path):
    (tmp_path / "text.txt").write_text("A text to read.\n\n" * 40)
    data = {"path": str(tmp_path / "text.txt"), "document": "paragraph", "valid_fraction": 0.0}
    model = {"vocab_size": 281, "num_layers": 1}
    recipe = tiny.recipe(
        "recurrent", data=data, model=model, train={"steps": 1}, eval={"split": ""}
    )
    with tiny.one_device():
        train(run_config.from_dict(recipe), tmp_path / "run")
    (stack,) = stacks
    assert stack[: stack.index("run")] == ["train"]
    assert stack[stack.index("run") + 1 :] == ["_step", "mean_loss", "loss", "cross_entropy"]


@pytest.mark.parametrize("case", CASES)
def test_no_objective_puts_a_layer_between(case, stacks):
    name = CASES[case].get("model") or OBJECTIVES[case.split()[0]].models()[0]
    objective, model, params, batch = built(case, name)
    loss = functools.partial(mean_loss, objective, model)
    jax.eval_shape(loss, params, {}, batch, denominators_of(objective, batch), jax.random.key(0))
    for stack in stacks:
        assert stack == ["mean_loss", "loss", "cross_entropy"]
    assert stacks or case in ("regression", "multi_label")  # which have losses of their own
