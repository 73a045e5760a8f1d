"""Every objective on every model that it works on: losses, weights, predictions."""

import functools

import jax
import numpy as np
import pytest
import scipy.special
from test_pipeline import CASES, LENGTH, TOKENIZER, source_of

from flaxlm.data.pipeline import EvalBatches
from flaxlm.models import MODELS, RecurrentConfig, TransformerConfig, abstract_params, build
from flaxlm.objectives import OBJECTIVES

PAIRS = [
    (case, model)
    for case in CASES
    for model in OBJECTIVES[case.split()[0]].models()
    if not (case == "causal_lm prefix" and model == "recurrent")
    and CASES[case].get("model", model) == model
]
# No softmax over a row's logits: their losses are in the tests of their tasks.
OTHERS = ("regression", "multi_label", "in_batch")
SOFTMAX = [pair for pair in PAIRS if pair[0] not in OTHERS]
SIZE = dict(width=8, num_layers=1)


def log_softmax(logits):
    return scipy.special.log_softmax(logits.astype(np.float64), axis=-1)


@functools.cache
def built(case, name):
    """Return (objective, model, params, evaluation batch of 13 rows, some of them filling)."""
    more = {} if case in OTHERS else {"z_loss": 1e-2}
    objective = OBJECTIVES[case.split()[0]](**CASES[case], **more).for_model(name)
    heads = objective.heads(name)
    if name == "recurrent":
        config = RecurrentConfig(vocab_size=TOKENIZER.vocab_size, **SIZE)
    else:
        types = 2 if name == "encoder" else 0
        size = SIZE | dict(num_heads=2, max_length=32, scan_layers=False, remat="none")
        config = TransformerConfig(vocab_size=TOKENIZER.vocab_size, token_types=types, **size)
    model = build(name, config, heads)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: 0.3 * rng.standard_normal(p.shape, np.float32),
        abstract_params(name, config, heads),
    )
    plan = objective.plan(source_of(case), LENGTH, TOKENIZER, seed=0, shuffle=False)
    size = plan.num_rows + 2
    batch = EvalBatches(plan, objective, TOKENIZER, LENGTH, 0, size)[0]
    return objective, model, params, batch


@functools.cache
def compiled(case, name):
    """Return one program of a batch: evaluation and training loss, and the model's outputs."""
    objective, model, params, _ = built(case, name)

    @jax.jit
    def program(params, batch):
        still = objective.loss(model, params, batch, None, False)
        train = objective.loss(model, params, batch, jax.random.key(2), True)
        outputs = model.apply({"params": params}, objective.model_inputs(batch))
        return still, train, outputs, objective.weights(batch)

    return lambda batch: jax.device_get(program(params, batch))


@functools.cache
def results(case, name):
    return compiled(case, name)(built(case, name)[3])


@pytest.mark.parametrize("case,name", SOFTMAX)
def test_loss_is_that_of_the_logits_and_weights_are_the_batch_alone(case, name):
    objective, _, _, batch = built(case, name)
    (terms, metrics), _, outputs, weights = results(case, name)
    assert terms.keys() == weights.keys() == objective.coefficients.keys()
    for term, (total, weight) in terms.items():
        assert weight == weights[term] > 0
        heads = ("classification", "token_classification", "lm")
        head = {"loss": next((name for name in heads if name in outputs), None)}.get(term, term)
        if head in ("nsp", "classification"):
            targets, scale = batch["labels"], (batch["example_ids"] >= 0).astype(float)
        elif head == "token_classification":
            targets, scale = batch["labels"], batch["words"] > 0
        elif "question_answering" in outputs:  # two pointers into the real tokens of a row
            real = (batch["segment_ids"] > 0) | (np.arange(LENGTH) == 0)
            scores = np.swapaxes(outputs["question_answering"], 1, 2)
            outputs = {head: np.where(real[:, None], scores, -np.inf)}
            targets, scale = batch["labels"], np.repeat(batch["weights"][:, None] / 2, 2, 1)
        else:
            targets, scale = batch["targets"], batch["weights"]
        picked = np.take_along_axis(log_softmax(outputs[head]), targets[..., None], -1)[..., 0]
        np.testing.assert_allclose(total, -(picked * scale).sum(), rtol=1e-5)
        accuracy = metrics["accuracy" if term == "loss" else f"{term}_accuracy"]
        best = (outputs[head].argmax(-1) == targets) * scale
        np.testing.assert_allclose(accuracy, (best.sum(), scale.sum()), rtol=1e-6)


@pytest.mark.parametrize("case,name", [p for p in SOFTMAX if p[1] != "recurrent"])
def test_training_adds_z_loss_and_evaluation_does_not(case, name):
    (still, _), (train, _), _, _ = results(case, name)
    term = "mlm" if "mlm" in train else "loss"
    assert train[term][0] > still[term][0] and train[term][1] == still[term][1]


@pytest.mark.parametrize("case,name", PAIRS)
def test_filling_rows_change_nothing(case, name):
    """Text in a row without weight is in no sum."""
    _, _, _, batch = built(case, name)
    other = {k: v.copy() for k, v in batch.items()}
    filling = batch["example_ids"] < 0
    assert filling.sum() == 2
    for key in ("tokens", "encoder_tokens", "targets"):
        if key in other:
            other[key][filling] = 7
    if "weights" not in batch:
        other["labels"][filling] = 1
    (terms, metrics), _, _, weights = compiled(case, name)(other)
    expected = results(case, name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        (terms, metrics, weights),
        (*expected[0], expected[3]),
    )


def test_every_model_has_an_objective_and_the_other_way():
    known = {name for objective in OBJECTIVES.values() for name in objective.models()}
    assert known == set(MODELS)
    for name, objective in OBJECTIVES.items():
        assert objective.name == name


def test_a_label_as_text_is_scored_by_its_likelihood():
    objective, model, params, batch = built("classification text", "encoder_decoder")
    scores = jax.jit(lambda b: objective.predict(model, params, b))(batch)["scores"]
    program = compiled("classification text", "encoder_decoder")
    for label in range(2):
        targets = batch["label_tokens"][:, label]
        inputs = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
        # Every position real: what stands behind the text is not seen from before it.
        row = batch | {"tokens": inputs, "segment_ids": np.ones_like(inputs)}
        p = log_softmax(program(row)[2]["lm"])
        picked = np.take_along_axis(p, targets[..., None], -1)[..., 0]
        real = batch["example_ids"] >= 0
        expected = (picked * (targets > 0)).sum(1)
        np.testing.assert_allclose(scores[real, label], expected[real], rtol=1e-4)


class Fixed:
    """A model whose outputs are known."""

    def __init__(self, outputs):
        self.outputs = outputs

    def apply(self, variables, batch, train, rngs):
        assert not train and rngs is None
        return self.outputs


def predictions(case, name):
    objective, _, _, batch = built(case, name)
    outputs = results(case, name)[2]
    return objective.predict(Fixed(outputs), None, batch), outputs


def test_predictions_are_those_of_the_heads():
    found, outputs = predictions("masked_lm", "encoder")
    np.testing.assert_array_equal(found["tokens"], outputs["mlm"].argmax(-1))
    np.testing.assert_allclose(found["nsp"], log_softmax(outputs["nsp"]), atol=1e-5)
    found, outputs = predictions("causal_lm", "decoder")
    total, weight = results("causal_lm", "decoder")[0][0]["loss"]
    np.testing.assert_allclose(-found["log_likelihood"].sum(), total, rtol=1e-5)
    np.testing.assert_allclose(found["num_targets"].sum(), weight)
    found, outputs = predictions("token_classification", "encoder")
    expected = log_softmax(outputs["token_classification"])
    np.testing.assert_allclose(found["scores"], expected, atol=1e-5)
    found, outputs = predictions("classification", "decoder")
    np.testing.assert_allclose(found["scores"], log_softmax(outputs["classification"]), atol=1e-5)
