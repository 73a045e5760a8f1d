"""Text to text: packed rows, what stays of a long prompt, a loss on the answer alone."""

import collections

import hf_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch
from fakes import BOS, EOS, FakeTokenizer
from hf_cases import CASES

from flaxlm.data.order import RowRandom
from flaxlm.errors import ConfigError
from flaxlm.interop.pretrained import from_pretrained
from flaxlm.objectives import TextToText

TOKENIZER = FakeTokenizer(vocab_size=tiny.V, sentinels=5)
LENGTH, TARGET = 16, 6
MODELS = ("decoder", "encoder_decoder", "recurrent")


def examples(count, pair=0, seed=0):
    """Return examples, some of them too long; every `pair`-th has a second text."""
    rng = np.random.default_rng(seed)

    def text(most):
        return "".join(map(chr, rng.integers(97, 120, rng.integers(1, most))))

    return [
        {"text": text(5 if n % 9 else 30), "target": text(4 if n % 5 else 8)}
        | ({"text_pair": text(4)} if pair and n % pair == 0 else {})
        for n in range(count)
    ]


def rows_of(objective, source, shuffle, epoch=0):
    """Return (batch of an epoch's rows, plan)."""
    plan = objective.plan(source, LENGTH, TOKENIZER, seed=1, shuffle=shuffle)
    raw = plan.fetch(epoch, np.arange(plan.num_rows))
    rng = RowRandom(0, np.arange(plan.num_rows))
    return objective.preprocess(raw, rng, TOKENIZER, LENGTH), plan


def asked_and_answered(batch, model):
    """Return a Counter of (what is read, what is learnt) of every example in a batch."""
    found = collections.Counter()
    for row in range(len(batch["tokens"])):
        segments = batch["segment_ids"][row]
        for segment in range(1, segments.max() + 1):
            here = segments == segment
            learnt = batch["weights"][row] * here > 0
            target = batch["targets"][row][learnt].tolist()
            if model == "encoder_decoder":
                read = batch["encoder_segment_ids"][row] == segment
                prompt = batch["encoder_tokens"][row][read]
                assert batch["tokens"][row][here].tolist() == [TOKENIZER.start_id, *target[:-1]]
            else:
                tokens = batch["tokens"][row][here]
                prompt, said = np.split(tokens, [len(tokens) - len(target) + 1])
                assert said.tolist() == target[:-1]
            found[tuple(prompt.tolist()), tuple(target)] += 1
    return found


@pytest.mark.parametrize("model", MODELS)
def test_packed_rows_hold_the_examples_of_separate_ones(model):
    """And in every epoch each once, in fewer rows, which another epoch fills in another way."""
    source = examples(40, pair=3)
    plain, plan = rows_of(TextToText(target_length=TARGET, model=model), source, shuffle=False)
    separate = asked_and_answered(plain, model)
    assert separate.total() == 40
    objective = TextToText(target_length=TARGET, pack=True, model=model)
    epochs = [rows_of(objective, source, True, epoch)[0] for epoch in (0, 1)]
    assert all(asked_and_answered(batch, model) == separate for batch in epochs)
    assert len(epochs[0]["tokens"]) == len(epochs[1]["tokens"]) < 0.8 * plan.num_rows
    filled = [{tuple(row) for row in batch["tokens"].tolist()} for batch in epochs]
    assert filled[0] != filled[1]
    alone, packed = rows_of(objective, source, False)
    assert packed.num_rows == 40 and all(np.array_equal(alone[k], plain[k]) for k in plain)
    # What an evaluation asks with is what training had.
    prompts = objective.prompts(packed)
    assert sorted(prompts) == sorted(list(prompt) for prompt, _ in separate.elements())


@pytest.mark.parametrize("model", MODELS)
def test_packed_equals_separate(model):
    """Examples in a row do not see each other: the same loss to 1e-5, summed in another order."""
    _, module, params = tiny.model(model)
    found = []
    for pack in (False, True):
        objective = TextToText(target_length=TARGET, pack=pack, model=model)
        batch, _ = rows_of(objective, examples(24, pair=3), True)
        terms, metrics = jax.jit(lambda p, b, o=objective: o.loss(module, p, b, None, False))(
            params, batch
        )
        found.append([*terms["loss"], *metrics["accuracy"]])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


@pytest.mark.parametrize("model", ["decoder", "encoder_decoder"])
def test_the_start_of_a_long_prompt_stays_or_its_end(model):
    source = [{"text": "abcdefghijklmnopqrstuvw", "target": "xyz"}, {"text": "abc", "target": "x"}]
    room = LENGTH - 1 - (TARGET if model == "decoder" else 0)
    begin = [BOS] if model == "decoder" else []
    ids = TOKENIZER.encode(source[0]["text"])
    for keep, kept in (("start", ids[:room]), ("end", ids[-room:])):
        objective = TextToText(target_length=TARGET, keep=keep, model=model)
        _, plan = rows_of(objective, source, False)
        long, short = objective.prompts(plan)
        assert long == [*begin, *kept, EOS]
        assert short == [*begin, *TOKENIZER.encode("abc"), EOS]
        assert plan.report["truncated"] == 1 and plan.report["truncated_targets"] == 0
    pair = [source[0] | {"text_pair": "abcdefghijkl"}]
    objective = TextToText(target_length=TARGET, keep="end", model=model)
    (prompt,) = objective.prompts(rows_of(objective, pair, False)[1])
    half = (room - 1) // 2
    second = TOKENIZER.encode("abcdefghijkl")[-half:]
    assert prompt == [*begin, *ids[-(room - 1 - half) :], EOS, *second, EOS]
    for fields, message in (
        ({"keep": "middle"}, "objective.keep='middle'.*start, end"),
        ({"num_beams": 0}, "objective.num_beams=0"),
        ({"length_penalty": -1.0}, "objective.length_penalty"),
    ):
        with pytest.raises(ConfigError, match=message):
            TextToText(**fields)


class Logits:
    """A model whose parameters are its logits."""

    def apply(self, variables, batch, train, rngs):
        return {"lm": variables["params"]}


@pytest.mark.parametrize("pack", [False, True])
def test_nothing_is_learnt_from_what_a_prompt_makes_the_model_say(pack):
    objective = TextToText(
        target_length=TARGET, model="decoder", pack=pack, label_smoothing=0.1, z_loss=0.1
    )
    batch, _ = rows_of(objective, examples(20, pair=3), True)
    logits = np.random.default_rng(0).normal(size=(*batch["tokens"].shape, tiny.V))

    def loss(params):
        return objective.loss(Logits(), params, batch, None, True)[0]["loss"][0]

    gradient = np.abs(jax.grad(loss)(jnp.asarray(logits, jnp.float32))).sum(axis=-1)
    counted = np.zeros(gradient.shape, bool)
    for row, tokens in enumerate(batch["tokens"]):  # from the last EOS of a prompt to the end
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            here = np.flatnonzero(batch["segment_ids"][row] == segment)
            counted[row, here[tokens[here] == EOS][-1] : here[-1] + 1] = True
    assert (gradient[counted] > 0).all() and not gradient[~counted].any()


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_the_loss_is_torchs_with_the_prompt_ignored(name, tmp_path):
    case = CASES[name]
    theirs = hf_cases.torch_model(case, "lm", seed=4)
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path)
    source = examples(9, pair=4, seed=3)
    model = "encoder_decoder" if case.both else "decoder"
    objective = TextToText(target_length=TARGET, model=model)
    batch, plan = rows_of(objective, source, False)
    total, weight = objective.loss(ours.module, ours.params, batch, None, False)[0]["loss"]
    prompts = objective.prompts(plan)
    targets = [[*TOKENIZER.encode(e["target"])[: TARGET - 1], EOS] for e in source]

    def padded(rows, fill):
        width = max(map(len, rows))
        return torch.tensor([row + [fill] * (width - len(row)) for row in rows])

    given = prompts if case.both else [a + b for a, b in zip(prompts, targets, strict=True)]
    ignored = [[-100] * len(p) + t for p, t in zip(prompts, targets, strict=True)]
    with torch.no_grad():
        expected = theirs(
            input_ids=padded(given, 0),
            attention_mask=padded([[1] * len(row) for row in given], 0),
            labels=padded(targets if case.both else ignored, -100),
        ).loss
    assert weight == sum(map(len, targets))
    assert float(total / weight) == pytest.approx(float(expected), rel=1e-5)
