"""Likelihoods against torch and slow loops; the same whatever else is asked and wherever."""

import dataclasses
import types

import fakes
import hf_cases
import jax
import numpy as np
import pytest
import tiny
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from flaxlm import sharding
from flaxlm.data.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from flaxlm.data.vocabulary import ByteTokenizer
from flaxlm.errors import ConfigError, DataError
from flaxlm.inference.likelihood import rolling, score
from flaxlm.inference.requests import (
    Continuation,
    Reader,
    border,
    cloze,
    following,
    masked,
    request,
    windows,
)
from flaxlm.interop.pretrained import from_pretrained
from flaxlm.models import build
from flaxlm.trained import TrainedModel

CASES = {"gpt2": "lm", "t5": "lm", "bert": "mlm"}
POSITIONS = 24  # of the learned tables in hf_cases
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)  # tiny models: a second thread waits more than it works


class Tokens(fakes.FakeTokenizer):
    """A tokenizer of hf_cases' vocabulary: BOS 2 as [CLS], EOS 3 as [SEP], mask 4."""

    def __init__(self):
        super().__init__(hf_cases.V)

    def with_specials(self, first):
        return tuple(part.tolist() for part in self.template.single.around(first))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Return a function: a case's torch model, and ours."""
    found = {}

    def get(name):
        if name not in found:
            case = hf_cases.CASES[name]
            theirs = hf_cases.torch_model(case, CASES[name])
            path = tmp_path_factory.mktemp(name)
            theirs.save_pretrained(path)
            ours = dataclasses.replace(from_pretrained(path), tokenizer=Tokens())
            found[name] = types.SimpleNamespace(
                torch=theirs, family=ours.family, ours=ours, path=path
            )
        return found[name]

    return get


def random_ids(rng, length):
    return tuple(rng.integers(5, hf_cases.V, length).tolist())


def questions(family, count=9, seed=0, longest=8):
    """Return requests of unequal lengths; the last two are equal."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count - 1):
        first, second = (random_ids(rng, n) for n in rng.integers(1, longest, 2))
        if family == "encoder":
            row, places = (2, *first, *second, 3), range(1 + len(first), 1 + len(first + second))
            made.append(masked(Tokens(), row, [0] * len(row), places))
        else:
            made.append(Continuation(first, second))
    return [*made, made[-1]]


def torch_tokens(model, family, request, tokenizer):
    """Return [(log-probability, whether it is the argmax, the argmax)] of each judged token."""
    if family == "encoder":
        steps = [(ids, types_, place, ids[place]) for ids, types_, place in request.rows]
    else:
        steps = [(n, token) for n, token in enumerate(request.continuation)]
    found = []
    for step in steps:
        if family == "encoder":
            ids, types_, place, token = step
            row = torch.tensor([ids])
            row[0, place] = tokenizer.mask_id
            given = {"input_ids": row, "token_type_ids": torch.tensor([types_])}
        else:
            (n, token), place = step, -1
            before = torch.tensor([request.context])
            if family == "encoder_decoder":
                written = torch.tensor([[tokenizer.start_id, *request.continuation[:n]]])
                given = {"input_ids": before, "decoder_input_ids": written}
            else:
                after = torch.tensor([request.continuation[:n]], dtype=torch.long)
                given = {"input_ids": torch.cat([before, after], dim=1)}
        with torch.no_grad():
            logits = model(**given).logits[0, place]
        best = logits.argmax().item()
        found.append((logits.double().log_softmax(-1)[token].item(), best == token, best))
    return found


def greedier(request, likeliest):
    """Return the request with its first judged token replaced by the likeliest there."""
    if isinstance(request, Continuation):
        return Continuation(request.context, (likeliest,))
    ids, types_, place = request.rows[0]
    return masked(Tokens(), (*ids[:place], likeliest, *ids[place + 1 :]), types_, [place])


@pytest.mark.parametrize("name", CASES)
def test_every_token_is_as_likely_as_torch_says(loaded, name):
    model = loaded(name)
    asked = questions(model.family, count=6)
    best = torch_tokens(model.torch, model.family, asked[0], model.ours.tokenizer)[0][-1]
    asked.append(greedier(asked[0], best))
    found = score(model.ours, asked)
    theirs = [torch_tokens(model.torch, model.family, r, model.ours.tokenizer) for r in asked]
    for ours, steps in zip(found.tokens, theirs, strict=True):
        np.testing.assert_allclose(ours, [value for value, *_ in steps], rtol=0, atol=1e-4)
    totals = [sum(value for value, *_ in steps) for steps in theirs]
    np.testing.assert_allclose(found.log_likelihood, totals, rtol=0, atol=1e-4)
    assert found.greedy.tolist() == [all(same for _, same, _ in steps) for steps in theirs]
    assert found.greedy[-1] and not found.greedy.all()
    assert found.num_tokens.tolist() == [len(steps) for steps in theirs]
    assert not found.cut.any()


def test_recurrent_likelihoods_equal_a_walk_token_by_token():
    _, module, params = tiny.model("recurrent")

    @jax.jit
    def walk(state, token):
        logits, state = module.apply({"params": params}, token, state, method="decode_step")
        return jax.nn.log_softmax(logits)[0], state

    @jax.jit
    def begin(batch):
        logits, state = module.apply({"params": params}, batch, 0, method="prefill")
        return jax.nn.log_softmax(logits)[0], state

    rng = np.random.default_rng(0)
    asked = [Continuation(*(tuple(rng.integers(0, tiny.V, n)) for n in (3, k))) for k in (4, 5)]
    found = score(TrainedModel("recurrent", module, params, Tokens()), asked)
    for ours, (context, continuation) in zip(found.tokens, asked, strict=True):
        logprobs, state = begin({"tokens": np.array([context], np.int32)})
        for value, token in zip(ours, continuation, strict=True):
            assert value == pytest.approx(float(logprobs[token]), abs=1e-5)
            logprobs, state = walk(state, np.array([[token]], np.int32))


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_no_answer_depends_on_what_else_is_asked_or_on_the_number_of_devices(loaded, name):
    model = loaded(name)
    asked = questions(model.family, count=200, seed=1)
    found = score(model.ours, asked)
    assert len(set(asked)) == 199  # and equal requests get equal answers
    np.testing.assert_array_equal(found.tokens[-1], found.tokens[-2])

    def same(other, which):
        for number, values in zip(which, other.tokens, strict=True):
            np.testing.assert_array_equal(values, found.tokens[number])
        np.testing.assert_array_equal(other.greedy, found.greedy[which])

    for which in ([3], list(range(10, 17)), list(range(199, -1, -1))):
        same(score(model.ours, [asked[i] for i in which]), which)
    config = sharding.ShardingConfig()
    mesh = sharding.make_mesh(config)
    assert mesh.size == 8
    spread = dataclasses.replace(from_pretrained(model.path, sharding=config), tokenizer=Tokens())
    assert spread.mesh == mesh
    same(score(spread, asked), list(range(200)))


def test_a_context_that_does_not_fit_is_cut_on_the_left_and_counted(loaded):
    model = loaded("gpt2")
    rng = np.random.default_rng(2)
    context, continuation = random_ids(rng, 60), random_ids(rng, 5)
    kept = context[-(POSITIONS + 1 - 5) :]
    asked = [Continuation(context, continuation), Continuation(kept, continuation)]
    found = score(model.ours, asked)
    assert found.cut.tolist() == [True, False]
    np.testing.assert_array_equal(found.tokens[0], found.tokens[1])
    # All positions may be judged, one more may not: what is judged is never cut.
    whole = Continuation(context, random_ids(rng, POSITIONS))
    assert score(model.ours, [whole]).num_tokens.tolist() == [POSITIONS]
    with pytest.raises(DataError, match=r"request 1: the 25 tokens to be judged do not fit .* 24"):
        score(model.ours, [whole, Continuation(context, (*whole.continuation, 7))])
    with pytest.raises(DataError, match="the 5 tokens to be judged do not fit into the 4 "):
        score(model.ours, [Continuation(context, continuation)], max_length=4)


def test_an_encoder_keeps_its_first_token_when_a_context_is_cut(loaded):
    model = loaded("bert")
    rng = np.random.default_rng(3)
    context, text = random_ids(rng, 40), random_ids(rng, 4)

    def asked(context):
        row = (2, *context, *text, 3)
        return masked(Tokens(), row, [0] * len(row), range(len(row) - 5, len(row) - 1))

    found = score(model.ours, [asked(context), asked(context[-(POSITIONS - 6) :])])
    assert found.cut.tolist() == [True, False]
    np.testing.assert_array_equal(found.tokens[0], found.tokens[1])
    long = (2, *context, 3)
    with pytest.raises(DataError, match="tokens to be judged do not fit into the 24"):
        score(model.ours, [masked(Tokens(), long, [0] * len(long), [9])])
    with pytest.raises(ConfigError, match="has no mlm head"):
        backbone = build("encoder", model.ours.config)
        score(dataclasses.replace(model.ours, module=backbone), [asked(context)])


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 60), st.integers(1, 16), st.data())
def test_windows_judge_every_token_once_with_the_context_promised(length, window, data):
    stride = data.draw(st.integers(1, window))
    stream = list(range(length + 1))  # BOS is 0
    made = list(windows(stream, window, stride))
    assert [token for _, judged in made for token in judged] == stream[1:]
    for number, (context, judged) in enumerate(made):
        assert [*context, *judged] == list(range(context[0], judged[-1] + 1))
        assert len(context) + len(judged) - 1 <= window
        assert context[0] == 0 if number == 0 else len(context) > window - stride
    if stride == window and length:
        theirs = map(make_disjoint_window, get_rolling_token_windows(stream[1:], 0, window, 1))
        assert [(list(a), list(b)) for a, b in made] == [(list(a), list(b)) for a, b in theirs]


def test_rolling_perplexity_equals_torch_window_by_window(loaded):
    model = loaded("gpt2")
    tokenizer = model.ours.tokenizer
    texts = ["a text of some length, longer than a window", "", "短 text"]
    rolled = rolling(model.ours, texts, window=16, stride=5)
    for text, nats in zip(texts, rolled, strict=True):
        stream = [tokenizer.bos_id, *tokenizer.encode(text)]
        total, judged = 0.0, 1
        while judged < len(stream):
            end = min(len(stream), judged + (16 if judged == 1 else 5))
            begin = max(0, end - 17)
            with torch.no_grad():
                logits = model.torch(torch.tensor([stream[begin : end - 1]])).logits[0]
            for place in range(judged, end):
                row = logits[place - begin - 1].double().log_softmax(-1)
                total -= row[stream[place]].item()
            judged = end
        assert nats == pytest.approx(total, abs=1e-4)
    with pytest.raises(ConfigError, match="window=25 is above"):
        rolling(model.ours, texts, window=25)
    with pytest.raises(ConfigError, match="works on: decoder, recurrent"):
        rolling(loaded("bert").ours, texts, window=5)


PAIRS = [
    ("The capital of France is", " Paris."),
    ("Question: why?\nAnswer:", " because"),
    ("trailing spaces go over  ", "here"),
    ("two lines\n", "and a third"),
    ("", "from nothing"),
    ("   ", "from blanks"),
]


def harness(tokenizer, context, text):
    """Return what lm-evaluation-harness splits a pair into."""
    self = types.SimpleNamespace(backend="causal", tok_encode=tokenizer.encode)
    return TemplateLM._encode_pair(self, context, text)


def test_the_border_lies_where_the_harness_puts_it(shared):
    stories = load_tokenizer(shared("weights/stories260K/hf"))
    gpt2 = load_tokenizer(shared("weights/vocab/gpt2"))
    for tokenizer in (stories, gpt2, ByteTokenizer()):
        for context, text in PAIRS:
            before, behind = border(tokenizer, context, text)
            if context:
                assert (before, behind) == harness(tokenizer, context, text)
            whole = tokenizer.encode(context + text)
            assert before + behind == whole and before == tokenizer.encode(context.rstrip())


@pytest.fixture(scope="module")
def chinese():
    """A tokenizer that joins characters: 喜欢 is one piece."""
    lines = ["我喜欢苹果", "他喜欢书", "我们喜欢苹果和书", "喜欢", "苹果", "我 喜 欢 苹 果 书"] * 20
    config = TokenizerConfig(kind="bpe", vocab_size=300, sentinels=0)
    return train_tokenizer(config, lines)


def test_choices_without_spaces_are_judged_behind_the_same_tokens(chinese):
    context = "我喜"
    whole = chinese.pieces(chinese.encode(context + "欢苹果"))
    assert "喜欢" in "".join(whole) and any("喜欢" in piece for piece in whole)  # spans the border
    contexts = set()
    for text in ("欢苹果", "书", "苹果"):
        before, behind = border(chinese, context, text)
        assert before == chinese.encode(context) and chinese.decode(behind) == text
        contexts.add(tuple(before))
    assert len(contexts) == 1


def test_a_text_encoded_apart_gets_no_space_of_its_own(shared):
    stories = load_tokenizer(shared("weights/stories260K/hf"))  # puts a space before every text
    before, behind = border(stories, "th", "e end")
    assert stories.encode("the end")[: len(before)] != before
    assert stories.pieces(behind)[0][0] != "▁" and stories.decode(before + behind) == "the end"


def test_a_request_is_laid_out_as_its_family_reads():
    tokens = ByteTokenizer()
    a, b, bc = tokens.encode("ab"), tokens.encode("c"), tokens.encode(" c")
    reader = {family: Reader(tokens, family) for family in ("decoder", "recurrent")}
    assert request(reader["decoder"], "ab", " c") == ((tokens.bos_id, *a), tuple(bc))
    assert request(reader["recurrent"], "", "ab") == ((tokens.bos_id,), tuple(a))
    assert following(reader["decoder"], "ab", "c") == request(reader["decoder"], "ab", " c")
    both = Reader(tokens, "encoder_decoder")
    assert request(both, "ab ", "c") == ((*a, tokens.eos_id), tuple(bc))
    encoder = Reader(tokens, "encoder")
    rows = request(encoder, "ab", " c").rows
    assert [place for *_, place in rows] == [3, 4]
    assert {ids for ids, *_ in rows} == {(tokens.cls_id, *a, *bc, tokens.sep_id)}
    ((ids, kinds, place),) = following(encoder, "ab", "c").rows
    assert ids == (tokens.cls_id, *a, tokens.sep_id, *b, tokens.sep_id)
    assert kinds == (0, 0, 0, 0, 1, 1) and place == 4
    with pytest.raises(DataError, match="nothing to judge: '' has no tokens"):
        request(reader["decoder"], "ab", "")


def test_the_tokens_of_a_blank_are_shown_from_left_to_right():
    tokens = ByteTokenizer()
    rows = cloze(tokens, "a ", "xy", " b").rows
    shown = [tokens.decode(ids[:place]) + "_" + tokens.decode(ids[place + 1 :])
             for ids, _, place in rows]  # fmt: skip
    # The space before the word is judged with it, as in every vocabulary that joins the two.
    assert shown == ["a_ b", "a _ b", "a x_ b"]
    assert tokens.decode([ids[place] for ids, _, place in rows]) == " xy"
