"""Decoding against repeated full forward passes, sampling against probabilities, exact cuts."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import chisquare
from table_model import BYTES, OTHER, Table, table

from flaxlm import models, sharding
from flaxlm.data.tokenizer import TokenizerConfig, train_tokenizer
from flaxlm.errors import ConfigError, DataError, MissingInput
from flaxlm.inference import prompts, sampling
from flaxlm.inference.generate import GenerateConfig, decode, generate, join_ids, split_blanks
from flaxlm.models.config import TransformerConfig
from flaxlm.models.recurrent import RecurrentConfig
from flaxlm.trained import TrainedModel

GREEDY = GenerateConfig(temperature=0, max_new_tokens=12, batch_size=4)
# A large init makes the choices of a random model clear and different at every step.
TINY = {"vocab_size": BYTES.vocab_size, "width": 32, "num_layers": 2, "init_std": 0.3}
LEARNED = {"num_heads": 4, "max_length": 64}
ROTARY = {"num_heads": 4, "num_kv_heads": 2, "positions": "rotary", "windows": (0, 6)}
RELATIVE = {"num_heads": 2, "positions": "relative", "norm": "rmsnorm"}
CASES = {
    "decoder": ("decoder", TransformerConfig(**TINY, **LEARNED)),
    "decoder_rotary": ("decoder", TransformerConfig(**TINY, **ROTARY)),
    "recurrent": ("recurrent", RecurrentConfig(**TINY)),
    "encoder_decoder": ("encoder_decoder", TransformerConfig(**TINY, **RELATIVE)),
}
PROMPTS = ["a", "The first of several prompts", "", "Some text."]


@pytest.fixture(scope="module")
def built():
    """Return the model of a case, made once."""
    made = {}

    def get(case: str):
        if case not in made:
            family, config = CASES[case]
            heads = {"lm": 0}
            params = fresh(family, config, tuple(heads.items()))
            module = models.build(family, config, heads)
            made[case] = TrainedModel(family, module, params, BYTES)
        return made[case]

    return get


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def fresh(family, config, heads):
    return models.init_params(family, config, heads, jax.random.key(1))


def chain(*steps: tuple[int, int]) -> dict:
    """Return the parameters of a Table that goes from each id to the next with certainty."""
    table = np.full((BYTES.vocab_size, BYTES.vocab_size), -50.0, np.float32)
    table[:, BYTES.eos_id] = 0.0
    for here, there in steps:
        table[here, BYTES.eos_id], table[here, there] = -50.0, 0.0
    return {"table": jnp.asarray(table)}


def spelling(text: str, before: int, after: int | None = None) -> dict:
    """Return the parameters of a Table that writes `text`, each character of it once."""
    ids = [before, *BYTES.encode(text)]
    last = [] if after is None else [(ids[-1], after)]
    return chain(*itertools.pairwise(ids), *last)


def uncached(model, prompt: str, count: int) -> tuple[list[int], float]:
    """Greedy decoding by a full forward pass over the whole text for every token."""
    ids = BYTES.encode(prompt)
    fixed, tokens = {}, [BYTES.bos_id, *ids]
    if model.traits.encodes:
        fixed, tokens = {"encoder_tokens": np.array([[*ids, BYTES.eos_id]])}, [BYTES.pad_id]
    start, total = len(tokens), 0.0
    for _ in range(count):
        # Causal models do not see the zeros after the text, and one length is one compilation.
        padded = np.pad(tokens, (0, 64 - len(tokens)))[None].astype(np.int32)
        logits_LV = forward(model.module, model.params, {**fixed, "tokens": padded})
        logits_V = np.asarray(logits_LV)[len(tokens) - 1]
        tokens.append(int(np.argmax(logits_V)))
        total += float(log_softmax(logits_V)[tokens[-1]])
        if tokens[-1] == BYTES.eos_id:
            break
    return tokens[start:], total


@functools.partial(jax.jit, static_argnums=(0, 3))
def forward(model, params, batch, head="lm"):
    return model.apply({"params": params}, batch)[head][0]


@pytest.mark.parametrize("case", CASES)
def test_cached_decoding_equals_repeated_full_forward_passes(built, case):
    model = built(case)
    # Two buckets of prompt lengths once; one is enough for the others.
    texts = [text[: None if case == "decoder" else 14] for text in PROMPTS]
    found = generate(model, texts, GREEDY)
    assert [g.prompt for g in found] == texts
    for g in found:
        ids, logprob = uncached(model, g.prompt, GREEDY.max_new_tokens)
        assert [*g.ids, *[BYTES.eos_id] * g.finished] == ids
        assert g.logprob == pytest.approx(logprob, abs=1e-3)
        assert g.text == BYTES.decode(ids)
    assert len({g.ids for g in found}) > 1


def test_a_sample_depends_on_seed_and_prompt_index_alone(built):
    model = built("decoder")
    options = GenerateConfig(max_new_tokens=12, batch_size=4, temperature=0.7, top_p=0.9, seed=3)
    texts = [f"{'long ' * n}end" for n in (0, 1, 2, 0, 1)]
    together = generate(model, texts, options)
    alone = generate(model, texts, dataclasses.replace(options, batch_size=1))
    others = [*texts[:2], "another", "neighbour", texts[4]]
    beside = generate(model, others, options)
    assert [g.ids for g in together] == [g.ids for g in alone]
    assert all(together[i].ids == beside[i].ids for i in (0, 1, 4))
    other = generate(model, texts, dataclasses.replace(options, seed=4))
    assert [g.ids for g in together] != [g.ids for g in other]
    same = generate(model, ["x"] * 4, options)
    assert len({g.ids for g in same}) == 4
    ids = [[BYTES.bos_id, *BYTES.encode(text)] for text in texts]
    assert generate(model, ids, options) == together


def test_a_mesh_of_eight_devices_decodes_the_same(built):
    model = built("decoder")
    options = dataclasses.replace(GREEDY, batch_size=8)
    one = generate(model, PROMPTS[2:], options)
    config = sharding.ShardingConfig(data=4, tensor=2)
    with sharding.use(sharding.make_mesh(config), config):
        many = generate(model, PROMPTS[2:], options)
    assert [g.ids for g in many] == [g.ids for g in one]


def test_samples_of_a_prompt_differ_and_stand_together(built):
    model = built("decoder")
    options = GenerateConfig(max_new_tokens=8, num_samples=3, batch_size=4, top_p=0.95)
    found = generate(model, ["one", "two"], options)
    assert [g.prompt for g in found] == ["one"] * 3 + ["two"] * 3
    assert len({g.ids for g in found}) == 6
    single = generate(model, ["one", "two"], dataclasses.replace(options, num_samples=1))
    assert [g.ids for g in single] == [found[0].ids, found[3].ids]


def test_generation_draws_every_step_anew():
    """A fair coin at each step: the counts of sequences of three are as independence says."""
    a, b = BYTES.encode("ab")
    logits = np.full((BYTES.vocab_size, BYTES.vocab_size), -np.inf, np.float32)
    logits[:, [a, b]] = 0.0
    options = GenerateConfig(max_new_tokens=3, num_samples=1600, batch_size=512)
    found = generate(table({"table": jnp.asarray(logits)}), [""], options)
    texts = [g.text for g in found]
    counts = [texts.count(f"{x}{y}{z}") for x in "ab" for y in "ab" for z in "ab"]
    assert sum(counts) == 1600 and chisquare(counts).pvalue > 1e-3
    assert all(g.logprob == pytest.approx(3 * np.log(0.5), abs=1e-5) for g in found)


@pytest.mark.parametrize("stride", [1, 4, 16])
def test_a_stop_string_that_spans_tokens_is_cut_exactly(monkeypatch, stride):
    monkeypatch.setattr("flaxlm.inference.decoding.STEPS_BETWEEN_STOP_CHECKS", stride)
    params = spelling("Hélo_wrd: 123456789xyz", BYTES.bos_id)
    options = dataclasses.replace(GREEDY, max_new_tokens=40, stop=("never", "d: 1", ": ", "d: "))
    (g,) = generate(table(params), [""], options)
    # "d: 1" is complete one token too late; of the two that are not, "d: " begins first.
    assert (g.text, g.ids, g.finished) == ("Hélo_wr", tuple(BYTES.encode("Hélo_wrd: ")), True)
    assert g.logprob == pytest.approx(0.0, abs=1e-4)
    options = dataclasses.replace(options, stop=("absent",), max_new_tokens=9)
    (g,) = generate(table(params), [""], options)
    assert (g.text, g.finished) == ("Hélo_wrd", False)


def test_a_row_ends_at_eos_and_the_loop_when_all_rows_have():
    params = chain(*zip(BYTES.encode("abcde"), BYTES.encode("bcdef"), strict=True))
    found = generate(table(params), ["a", "d", "x", "b"], GREEDY)
    assert [g.text for g in found] == ["bcdef", "ef", "", "cdef"]
    assert all(g.finished for g in found)
    batch = prompts.pad([BYTES.encode("d"), []], 2, 16, left=True)
    keys = sampling.row_keys(0, jnp.arange(2), jnp.zeros(2, jnp.int32))
    settings = sampling.Settings(jnp.float32(1), jnp.int32(0), jnp.float32(1))
    modes = {
        "vocab_size": BYTES.vocab_size,
        "eos_ids": (BYTES.eos_id,),
        "greedy": True,
        "cut": False,
    }
    live = jnp.array([True, False])
    state = sampling.start(
        Table(), params, batch, keys, live, settings, cache_length=64, room=48, **modes
    )
    state = sampling.advance(Table(), params, state, jnp.int32(48), settings, **modes)
    assert int(state.step) == 3
    assert state.tokens_BT[:, :4].tolist() == [[*BYTES.encode("ef"), BYTES.eos_id, 0], [0] * 4]
    also_d = {"eos_token_id": [BYTES.eos_id, *BYTES.encode("d")]}
    several = dataclasses.replace(table(params), generation=also_d)
    found = generate(several, ["a", "d", "x"], GREEDY)
    assert [(g.text, g.finished) for g in found] == [("bc", True), ("ef", True), ("", True)]
    (g,) = generate(table(params), ["a"], dataclasses.replace(GREEDY, max_new_tokens=5))
    assert (g.text, g.finished) == ("bcdef", False)
    (g,) = generate(table(params), ["a"], dataclasses.replace(GREEDY, max_new_tokens=1))
    assert (g.text, g.finished) == ("b", False)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_the_tokenizer_has_no_id_for_are_never_chosen(temperature):
    """Presets round the vocabulary up: those rows are trained on nothing."""
    params = chain(*zip(BYTES.encode("abcd"), BYTES.encode("bcde"), strict=True))
    wide = {"table": jnp.pad(params["table"], ((0, 0), (0, 7)), constant_values=30.0)}
    options = dataclasses.replace(GREEDY, temperature=temperature)
    found = generate(table(wide), ["a", "c"], options)
    assert found == generate(table(params), ["a", "c"], options)
    assert [g.text for g in found] == ["bcde", "de"]


def test_prompts_of_one_bucket_are_compiled_once():
    params = chain()
    sizes = sampling.start._cache_size(), sampling.advance._cache_size()
    texts = ["x" * n for n in (*range(1, 31), 5, 9, 31)]
    options = GenerateConfig(max_new_tokens=23, batch_size=2, num_samples=2)
    generate(table(params), texts, options)
    generate(table(params), texts[:7], dataclasses.replace(options, seed=1))
    # 16 and 32 tokens of prompt; the length of the cache tells the two loops apart in a real
    # model, but the table's cache has none.
    assert sampling.start._cache_size() == sizes[0] + 2
    assert sampling.advance._cache_size() == sizes[1] + 1


def test_learned_positions_are_not_outgrown(built):
    model = built("decoder")
    options = dataclasses.replace(GREEDY, max_new_tokens=60)
    with pytest.raises(ConfigError, match=r"prompt 1 has 6 tokens.*max_length=64.*at most 59"):
        generate(model, ["abc", "abcde"], options)
    with pytest.raises(ConfigError, match="shorten the prompt"):
        generate(model, ["a" * 70], options)
    options = dataclasses.replace(GREEDY, max_new_tokens=61)
    full, short = generate(model, ["abc", "a"], options)
    assert [*full.ids, *[BYTES.eos_id] * full.finished] == uncached(model, "abc", 61)[0]
    assert len(short.ids) <= 61


@pytest.fixture(scope="module")
def words():
    text = ["the cat sat on a mat and the dog ran to the cat\n"] * 20
    return train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=316, sentinels=8), text)


@pytest.fixture(scope="module")
def encoder(words):
    config = TransformerConfig(
        vocab_size=words.vocab_size + 7, width=32, num_layers=2, num_heads=2, max_length=32,
        norm_position="post", final_norm=False, token_types=2, init_std=0.3,
    )  # fmt: skip
    params = fresh("encoder", config, (("mlm", 0),))
    # What is no text is the likeliest everywhere, so that filling has to leave it out.
    beyond = range(words.vocab_size, config.vocab_size)
    silent = np.array([*words.special_ids.values(), *words.sentinel_ids, *beyond])
    bias = params["heads"]["mlm"]["bias"]
    params["heads"]["mlm"]["bias"] = bias.at[silent].set(20.0)
    return TrainedModel("encoder", models.build("encoder", config, {"mlm": 0}), params, words)


def test_blanks_are_filled_with_the_likeliest_tokens(words, encoder):
    texts = ["the [MASK] sat on [MASK] mat", "[MASK]", "the dog ran[MASK]"]
    found = generate(encoder, texts, GenerateConfig(top_k=4, batch_size=2))
    assert [g.prompt for g in found] == texts
    mask = words.mask_id
    bodies = [
        [*words.encode("the"), mask, *words.encode(" sat on"), mask, *words.encode(" mat")],
        [mask],
        [*words.encode("the dog ran"), mask],
    ]
    for g, body in zip(found, bodies, strict=True):
        ids = np.array([words.cls_id, *body, words.sep_id])
        batch = {"tokens": np.zeros((1, 24), np.int32), "segment_ids": np.zeros((1, 24), np.int32)}
        batch["tokens"][0, : len(ids)], batch["segment_ids"][0, : len(ids)] = ids, 1
        logits = np.array(forward(encoder.module, encoder.params, batch, "mlm"))[
            : len(ids), : words.vocab_size
        ]
        logits = logits[ids == mask]
        probabilities = np.asarray(jax.nn.softmax(logits, axis=-1))
        logits[:, [*words.special_ids.values(), *words.sentinel_ids]] = -np.inf
        ranks = np.argsort(-logits, axis=-1)[:, :4]
        assert g.ids == tuple(ranks[:, 0])
        for place, listed in enumerate(g.alternatives):
            assert [text for text, _ in listed] == [words.decode([i]) for i in ranks[place]]
            expected = probabilities[place, ranks[place]]
            np.testing.assert_allclose([p for _, p in listed], expected, rtol=1e-3, atol=1e-6)
    first, second = (words.decode([i]) for i in found[0].ids)
    assert found[0].text == f"the{first} sat on{second} mat"
    assert all(g.finished for g in found)


def test_what_an_encoder_cannot_fill_is_refused(words, encoder):
    with pytest.raises(DataError, match=r"prompt 1 holds no \[MASK\]"):
        generate(encoder, ["[MASK]", "<extra_id_0>"], GenerateConfig())
    with pytest.raises(ConfigError, match="max_length=32; shorten"):
        generate(encoder, ["[MASK]" * 40], GenerateConfig())
    bare = dataclasses.replace(encoder, module=models.build("encoder", encoder.config))
    with pytest.raises(ConfigError, match="no mlm head"):
        generate(bare, ["[MASK]"], GenerateConfig())
    with pytest.raises(MissingInput, match="no tokenizer"):
        generate(dataclasses.replace(encoder, tokenizer=None), ["[MASK]"], GenerateConfig())
    with pytest.raises(ConfigError, match=r"family='gpt'.*decoder"):
        dataclasses.replace(encoder, family="gpt")


def test_blanks_become_sentinels_and_their_spans_stand_in_the_text(words):
    s = words.sentinel_ids.tolist()
    parts = split_blanks(words, "<extra_id_1> b [MASK] c[MASK]", 0, masks=False)
    assert parts == (["", " b", " c", ""], [s[1], s[0], s[2]])
    assert join_ids(words, *parts) == [
        s[1], *words.encode(" b"), s[0], *words.encode(" c"), s[2]
    ]  # fmt: skip
    # A byte is never joined to a space, so the space before a blank stays.
    byte = split_blanks(BYTES, "a [MASK] b", 0, masks=False)
    assert byte == (["a ", " b"], [BYTES.sentinel_ids[0]])
    with pytest.raises(DataError, match="twice"):
        split_blanks(words, "<extra_id_1> or <extra_id_1>", 2, masks=False)
    with pytest.raises(DataError, match=r"sentinel 4.* has 4"):
        split_blanks(BYTES, "[MASK]" * 5, 2, masks=False)


def test_an_answer_with_sentinels_fills_the_prompt():
    first, second = BYTES.sentinel_ids[:2].tolist()
    x, yz = BYTES.encode("x")[0], BYTES.encode("yz")
    params = chain((BYTES.pad_id, first), (first, x), (x, second), (second, yz[0]), tuple(yz))
    texts = ["a <extra_id_0>, b <extra_id_1>!", "[MASK] and [MASK]", "<extra_id_1>", "none"]
    found = generate(table(params, "encoder_decoder"), texts, GREEDY)
    assert [g.text for g in found] == ["a x, b yz!", "x and yz", "yz", "xyz"]
    assert found[0].ids == (first, x, second, *yz)


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1},
     {"top_k": -1}, {"max_new_tokens": 0}, {"num_samples": 0}, {"stop": ("",)}, {"stop": "ab"}],
)  # fmt: skip
def test_options_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        GenerateConfig(**wrong)


def test_an_encoder_refuses_all_that_it_does_not_read(encoder):
    texts = ["the [MASK] sat"]
    usual = generate(encoder, texts, GenerateConfig())
    assert generate(encoder, texts, GenerateConfig(temperature=0.0, top_p=1.0)) == usual
    for name, value in (OTHER | {"bos": "never"}).items():
        if name == "top_k":
            assert generate(encoder, texts, GenerateConfig(top_k=value)) != usual
        else:
            with pytest.raises(ConfigError, match=rf"{name}=.* model.name='encoder'.*; leave it "):
                generate(encoder, texts, GenerateConfig(**{name: value}))


def test_no_prompts_give_no_texts(built):
    model = built("decoder")
    assert generate(model, [], GREEDY) == []
    assert decode(model, [], GREEDY.complete()) == []
