"""Beam search against every text there is, a plain beam search, and `transformers`."""

import dataclasses
import itertools
import types

import flax.linen as nn
import hf_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hf_cases import CASES

from flaxlm.errors import ConfigError
from flaxlm.inference import beam
from flaxlm.inference.decoding import GenerateConfig, decode
from flaxlm.interop.pretrained import from_pretrained
from flaxlm.models.recurrent import RecurrentConfig
from flaxlm.trained import TrainedModel

V, EOS, STATES, LIMIT = 3, 0, 61, 4


class Memory(nn.Module):
    """A model whose next token depends on all the tokens before it, through a hash of them.

    Its cache has rows on the first axis, on the second, and none; one array a step leaves alone.
    """

    config: RecurrentConfig = RecurrentConfig()

    def logits(self, state_B, offset_B):
        return self.get_variable("params", "table")[state_B] + offset_B[:, None]

    def prefill(self, batch, cache_length):
        state_B = batch["tokens"][:, -1] % STATES
        kept = {"state": state_B[None], "offset": batch["tokens"][:, 0] * 1.0, "step": jnp.int32(0)}
        return self.logits(state_B, kept["offset"]), kept

    def decode_step(self, tokens_B1, cache):
        state_B = (7 * cache["state"][0] + 3 * tokens_B1[:, 0] + 1) % STATES
        cache = cache | {"state": state_B[None], "step": cache["step"] + 1}
        return self.logits(state_B, cache["offset"]), cache


def log_softmax(row):
    return row - np.log(np.exp(row - row.max()).sum()) - row.max()


def next_logprobs(table, first: int, text) -> np.ndarray:
    """Return the log-probabilities of the token after a text, by the definition of Memory."""
    state = first % STATES
    for token in text:
        state = (7 * state + 3 * token + 1) % STATES
    return log_softmax(table[state].astype(np.float64))


def worth(total: float, length: int, alpha: float) -> float:
    return total / ((5 + length) / 6) ** alpha


def every_text(table, first: int, alpha: float) -> list[tuple[float, float, tuple]]:
    """Return (score, log p, text) of all texts that end in EOS or are LIMIT tokens long."""
    texts = []
    for length in range(1, LIMIT + 1):
        for text in itertools.product(range(V), repeat=length):
            if EOS in text[:-1] or (text[-1] != EOS and length < LIMIT):
                continue
            total = sum(next_logprobs(table, first, text[:i])[text[i]] for i in range(length))
            texts.append((worth(total, length, alpha), total, text))
    return sorted(texts, reverse=True)


def plain(table, first: int, width: int, alpha: float, limit: int) -> list:
    """Return the finished texts of a beam search that is never ended early, best first."""
    live, found = [(0.0, ())], []
    for length in range(1, limit + 1):
        grown = []
        for total, text in live:
            row = next_logprobs(table, first, text)
            grown += [(total + row[token], (*text, token)) for token in range(len(row))]
        grown.sort(key=lambda entry: -entry[0])
        found += [
            (worth(total, length, alpha), total, text)
            for total, text in grown[:width]
            if text[-1] == EOS or length == limit
        ]
        live = [entry for entry in grown if entry[1][-1] != EOS][:width]
    return sorted(found, reverse=True)


def run(table, firsts, width, count, alpha, limit=LIMIT, live=None):
    """Return [(score, log p, text), …] of each row."""
    batch = {"tokens": np.asarray([[0, 5, first] for first in firsts], np.int32)}
    found = beam.search(
        Memory(), {"table": jnp.asarray(table)}, batch,
        jnp.asarray([True] * len(firsts) if live is None else live),
        jnp.int32(limit), jnp.float32(alpha), cache_length=16, room=8,
        vocab_size=table.shape[1], eos_ids=(EOS,), width=width, count=count,
    )  # fmt: skip
    found = jax.device_get(found)
    return [
        [
            (float(score), float(total), tuple(text[:length].tolist()))
            for score, total, text, length in zip(*row, strict=True)
        ]
        for row in zip(*found, strict=True)
    ]


def equal(found, expected):
    assert [text for *_, text in found] == [text for *_, text in expected]
    np.testing.assert_allclose(
        [pair[:2] for pair in found], [pair[:2] for pair in expected], rtol=1e-5
    )


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_beams_as_many_as_texts_find_the_best_texts_of_all(alpha):
    for seed in range(3):
        table = np.random.default_rng(seed).normal(0, 1.5, (STATES, V)).astype(np.float32)
        rows = run(table, [4, 9], 16, 6, alpha)
        for first, found in zip([4, 9], rows, strict=True):
            equal(found, every_text(table, first, alpha)[:6])


@pytest.mark.parametrize(("width", "alpha"), [(2, 0.0), (3, 0.6), (2, 5.0)])
def test_few_beams_are_those_of_a_plain_search_that_never_ends_early(width, alpha):
    """The search ends early only where that changes nothing, and no row changes another."""
    rng = np.random.default_rng(7)
    table = rng.normal(0, 1.5, (STATES, 7)).astype(np.float32)
    firsts = list(range(20, 40))
    rows = run(table, firsts, width, width, alpha, limit=8)
    for first, found in zip(firsts, rows, strict=True):
        equal(found, plain(table, first, width, alpha, 8)[:width])
    alone = run(table, [*firsts[5:9] * 5], width, width, alpha, limit=8)
    assert alone[:4] == rows[5:9]
    assert alpha > 1 or min(len(row[-1][2]) for row in rows) < 8


def test_rows_that_only_fill_the_batch_keep_nothing_waiting():
    table = np.full((STATES, V), -30.0, np.float32)
    table[:, EOS] = 0.0
    table[9 % STATES] = [-30.0, 0.0, -30.0]  # what starts with 9 would go on
    found = run(table, [4, 9], 2, 1, 0.6, live=[True, False])
    assert found[0][0][2] == (EOS,) and found[1][0][0] == -np.inf


# The library's own search fails where the encoder has fewer layers than the decoder.
LAYERS = {"t5": {"num_layers": 3}}


PROMPTS = [[5, 9, 33], [70, 71, 8, 4, 50, 51, 3], [12], [90, 91, 92, 93]]


@pytest.mark.parametrize(("name", "eos"), [("gpt2", [7]), ("t5", [50, 31])])
def test_beams_are_those_of_transformers(name, eos, tmp_path):
    case = CASES[name]
    theirs = hf_cases.torch_model(case, "lm", seed=2, **LAYERS.get(name, {}))
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path)
    width = max(map(len, PROMPTS))
    pad = [([0] * (width - len(p)) + p if case.decoder else p + [0] * (width - len(p)))
           for p in PROMPTS]  # fmt: skip
    mask = [[int(i >= width - len(p)) if case.decoder else int(i < len(p)) for i in range(width)]
            for p in PROMPTS]  # fmt: skip
    given = {"input_ids": torch.tensor(pad), "attention_mask": torch.tensor(mask)}
    options = {"do_sample": False, "max_new_tokens": 10, "pad_token_id": 0, "num_beams": 4}
    options |= {"length_penalty": 0.0, "early_stopping": False, "num_return_sequences": 3}
    options |= {"return_dict_in_generate": True, "output_scores": True}
    with torch.no_grad():
        out = theirs.generate(**given, eos_token_id=eos, **options)
    rows = out.sequences[:, width if case.decoder else 1 :].tolist()
    tokenizer = types.SimpleNamespace(vocab_size=hf_cases.V, start_id=0)
    settings = GenerateConfig(
        max_new_tokens=10, num_beams=4, num_samples=3, length_penalty=0.0, batch_size=4
    ).complete()
    ours = dataclasses.replace(ours, tokenizer=tokenizer, generation={"eos_token_id": eos})
    found = decode(ours, PROMPTS, settings)
    for row, (ids, _, finished) in zip(rows, found, strict=True):
        assert ids == row[: len(ids)] and not set(ids) & set(eos)
        assert set(row[len(ids) :]) <= {0, *eos} and finished == (row[len(ids) :][:1] != [])
    ended = {row[len(ids)] for row, (ids, _, finished) in zip(rows, found, strict=True) if finished}
    assert ended == set(eos)
    totals = [logprob for _, logprob, _ in found]
    np.testing.assert_allclose(totals, out.sequences_scores, rtol=1e-5)
    lengths = {len(ids) for ids, *_ in found}
    assert len(lengths) > 3 and max(lengths) == 10


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_beams": 0}, "num_beams=0 must be at least 1"),
        ({"length_penalty": -0.5}, "length_penalty=-0.5 must be 0"),
        ({"num_beams": 2, "temperature": 0.7}, "temperature=0.7 has no meaning with num_beams=2"),
        ({"num_beams": 2, "top_k": 5}, "top_k=5"),
        ({"num_beams": 2, "top_p": 0.5}, "top_p=0.5"),
        ({"num_beams": 2, "stop": ("x",)}, "stop="),
        ({"num_beams": 2, "num_samples": 3}, "num_samples=3 must be at most num_beams=2"),
    ],
)
def test_what_has_no_meaning_with_beams_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        GenerateConfig(**fields)


def test_progress_is_told_before_each_batch_and_may_give_up():
    table = np.random.default_rng(0).normal(size=(STATES, V)).astype(np.float32)
    tokenizer = types.SimpleNamespace(vocab_size=V, eos_id=EOS)
    options = GenerateConfig(max_new_tokens=3, num_beams=2, num_samples=2, batch_size=2).complete()
    model = TrainedModel("decoder", Memory(), {"table": jnp.asarray(table)}, tokenizer)
    arguments = model, PROMPTS, options
    seen = []
    assert len(decode(*arguments, progress=seen.append)) == 8
    assert seen == [0, 4, 8]

    def stop(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode(*arguments, progress=stop)
