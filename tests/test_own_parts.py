"""A new architecture, objective or attention is one file's worth and one row of its table."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_runs

import flaxlm
from flaxlm.commands import evaluate
from flaxlm.inference.generate import GenerateConfig, generate
from flaxlm.inference.likelihood import score
from flaxlm.inference.requests import Reader, request
from flaxlm.models import MODELS, Model, attention, losses
from flaxlm.objectives import OBJECTIVES, CausalLM
from flaxlm.objectives.objective import apply
from flaxlm.train import train
from flaxlm.training import config as run_config

TEXT = "".join(f"abcd {number:04d}\n\n" for number in range(60))

# --- an architecture: what a file in models/ would hold


@dataclasses.dataclass(frozen=True)
class MeanConfig:
    """A language model that reads the mean of what it has seen, and the last token."""

    vocab_size: int = 300
    width: int = 16
    max_length: int = 64
    positions: str = "none"


class Mean(nn.Module):
    """Its head is `lm`; a segment starts anew."""

    config: MeanConfig
    head_sizes: tuple = (("lm", 0),)

    def setup(self):
        c = self.config
        init = nn.initializers.normal(0.3)
        self.table = self.param("table", init, (c.vocab_size, c.width))
        self.kernel = self.param("kernel", init, (2 * c.width, c.vocab_size))

    def read(self, x_BLD, real_BL, state):
        """Return the logits [B, L, V] behind each token, and (Σ, n) of what is read."""
        total = state[0][:, None] + jnp.cumsum(x_BLD * real_BL[..., None], axis=1)
        count = state[1][:, None] + jnp.cumsum(real_BL, axis=1)
        mean = total / jnp.maximum(count, 1)[..., None]
        logits = jnp.concatenate([jnp.tanh(mean), x_BLD], axis=-1) @ self.kernel
        return logits, (total[:, -1], count[:, -1])

    def empty(self, rows):
        return jnp.zeros((rows, self.config.width)), jnp.zeros(rows)

    def __call__(self, batch, train=False):
        segments = batch.get("segment_ids", jnp.ones_like(batch["tokens"]))
        same = (segments[:, :, None] == segments[:, None]) * (segments[:, None] > 0)
        seen = jnp.tril(same.astype(jnp.float32))
        x = self.table[batch["tokens"]]
        mean = seen @ x / jnp.maximum(seen.sum(-1, keepdims=True), 1)
        logits = jnp.concatenate([jnp.tanh(mean), x], axis=-1) @ self.kernel
        if "target_positions" in batch:
            places = batch["target_positions"][..., None]
            logits = jnp.take_along_axis(logits, places, axis=1)
        return {"hidden": mean, "lm": logits}

    def prefill(self, batch, cache_length):
        real = (batch["segment_ids"] > 0).astype(jnp.float32)
        x = self.table[batch["tokens"]]
        logits, state = self.read(x, real, self.empty(len(x)))
        return logits[:, -1], state

    def decode_step(self, tokens_B1, state):
        logits, state = self.read(self.table[tokens_B1], jnp.ones_like(tokens_B1, float), state)
        return logits[:, 0], state


ROW = Model(
    MeanConfig,
    Mean,
    axes=((r"^table$", ("vocab", None)), (r"^kernel$", ("embed", "vocab"))),
    heads=("lm",),
    writes=True,
)


@pytest.fixture(scope="module")
def mean_run(tmp_path_factory, compilation_cache):
    """Return (config, run directory, result) of the architecture's run, its row in place."""
    root = tmp_path_factory.mktemp("mean")
    (root / "text.txt").write_text(TEXT)
    recipe = tiny_runs.recipe(
        "causal",
        model={"name": "mean"},
        data={"path": str(root / "text.txt"), "document": "paragraph", "valid_fraction": 0.2},
        train={"steps": 30},
        eval={"every": 30},
    )
    recipe["model"] = {"name": "mean", "vocab_size": 281}
    with pytest.MonkeyPatch.context() as patch, tiny_runs.one_device():
        patch.setitem(MODELS, "mean", ROW)
        config = run_config.from_dict(recipe)
        yield config, root / "run", train(config, root / "run")


def test_an_architecture_is_trained_judged_and_asked_without_a_word_elsewhere(mean_run):
    config, workdir, result = mean_run
    assert result["valid/loss"] < 0.6 * np.log(281)
    scores = evaluate.evaluate(config, workdir, "valid", "")
    assert scores["valid/loss"] == pytest.approx(result["valid/loss"])
    model = flaxlm.load(workdir)
    tokenizer, apply_ = model.tokenizer, jax.jit(model.module.apply)

    def logprobs(ids):
        outputs = apply_({"params": model.params}, {"tokens": np.array([ids])})
        return np.asarray(jax.nn.log_softmax(outputs["lm"][0]))

    asked = request(Reader(tokenizer, "mean"), "abcd", " 0007")
    (nats,) = score(model, [asked]).log_likelihood
    ids = [*asked.context, *asked.continuation]
    rows = logprobs(ids)[len(asked.context) - 1 : -1]
    picked = np.take_along_axis(rows, np.array(asked.continuation)[:, None], axis=1)
    assert nats == pytest.approx(picked.sum(), abs=1e-4)
    (made,) = generate(model, ["ab"], GenerateConfig(max_new_tokens=6, temperature=0))
    ids = [tokenizer.bos_id, *tokenizer.encode("ab")]
    for token in made.ids:
        assert token == logprobs(ids)[-1].argmax()
        ids.append(token)
    assert len(made.ids) > 2


def test_objectives_say_by_an_architecture_s_traits_whether_they_fit(monkeypatch):
    monkeypatch.setitem(MODELS, "mean", ROW)
    fitting = {name for name, objective in OBJECTIVES.items() if "mean" in objective.models()}
    assert fitting == {"causal_lm", "text_to_text"}
    monkeypatch.setitem(MODELS, "mean", ROW._replace(heads=("lm", "classification")))
    assert "mean" in OBJECTIVES["classification"].models()


# --- an objective


@dataclasses.dataclass(frozen=True)
class Late(CausalLM):
    """Next-token prediction that counts only what has `after` tokens before it."""

    after: int = 4

    name: ClassVar[str] = "late"

    def preprocess(self, raw, rng, tokenizer, length):
        batch = super().preprocess(raw, rng, tokenizer, length)
        return batch | {"weights": batch["weights"] * (batch["positions"] >= self.after)}

    def loss(self, model, params, batch, rng, train):
        logits = apply(model, params, batch, rng, train)["lm"]
        total, weight, _ = losses.cross_entropy(logits, batch["targets"], batch["weights"])
        return {"loss": (total, weight)}, {}


def test_an_objective_is_a_row(monkeypatch, tmp_path):
    monkeypatch.setitem(OBJECTIVES, "late", Late)
    (tmp_path / "text.txt").write_text(TEXT)
    recipe = tiny_runs.recipe(
        "recurrent",
        model={"vocab_size": 281, "num_layers": 1},
        objective={"name": "late", "after": 6},
        data={"path": str(tmp_path / "text.txt"), "document": "paragraph", "split": "tail"}
        | {"valid_fraction": 0.2},
    )
    with tiny_runs.one_device():
        config = run_config.from_dict(recipe)
        result = train(config, tmp_path / "run")
        again = evaluate.evaluate(config, tmp_path / "run", "valid", "")
    assert result["valid/loss"] == pytest.approx(again["valid/loss"])
    # Of the ten targets of each of twelve texts, at most the last four have six tokens before them.
    assert 0 < again["valid/tokens"] <= 4 * 12


# --- an attention


def test_an_attention_is_a_row(monkeypatch):
    seen = []

    def counted(query, *rest):
        seen.append(query.shape)
        return attention.einsum_attention(query, *rest)

    monkeypatch.setitem(attention.ATTENTION, "counted", counted)
    _, module, params = tiny.model("decoder", attention="counted")
    _, plain, _ = tiny.model("decoder")
    batch = tiny.packed()
    ours, theirs = (m.apply({"params": params}, batch)["lm"] for m in (module, plain))
    np.testing.assert_array_equal(ours, theirs)
    assert seen
    with pytest.raises(flaxlm.errors.ConfigError, match=r"model.attention='flash'.*counted"):
        tiny.config("decoder", attention="flash")
