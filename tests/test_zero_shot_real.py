"""The published sets on real text: every likelihood and every choice equals a torch model's.

The questions are put together and tokenised by other libraries, from each set's definition.
FLAXLM_ZERO_SHOT=all compares 500 examples of every set, where `make test` takes a few short ones.
"""

import difflib
import os
import shutil

import hf_cases
import numpy as np
import pytest
import sentencepiece
import torch
import transformers

from flaxlm.data.sources import DataConfig
from flaxlm.inference.likelihood import score
from flaxlm.inference.requests import Reader, Scores
from flaxlm.interop.pretrained import from_pretrained
from flaxlm.tasks import TASKS
from flaxlm.tasks.choices import NORMS

ALL = os.environ.get("FLAXLM_ZERO_SHOT") == "all"
FILES = {
    "lambada": "lambada/lambada_openai.jsonl",
    "hellaswag": "hellaswag/val.jsonl.zst",
    "blimp": "blimp/blimp.jsonl.zst",
    "crows_pairs": "crows_pairs/crows_pairs_anonymized.csv",
    "stereoset": "stereoset/dev.jsonl",
}
CAUSAL = {"lambada": 8, "hellaswag": 6, "blimp": 67, "crows_pairs": 24, "stereoset": 24}
MASKED = {"blimp": 12, "crows_pairs": 12, "stereoset": 12}
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)  # tiny models: a second thread waits more than it works


def examples_of(shared, name, count):
    """Return so many examples of a set, from all of its parts; short ones, but with ALL."""
    data = DataConfig(path=str(shared(f"data/{FILES[name]}")), split="whole")
    examples = TASKS[name]().examples(data, "valid")
    chosen = 500 if ALL else 10 * count
    examples = examples[:: len(examples) // chosen][:chosen]
    return examples if ALL else sorted(examples, key=lambda e: len(str(e)))[:count]


def compare(name, family, ours, examples, theirs):
    """Hold our scores of a set against torch's tokens and greediness, request by request."""
    every = {"normalize": tuple(NORMS)} if name == "hellaswag" else {}
    task, tokenizer = TASKS[name](**every), ours.tokenizer
    asked = task.requests(examples, Reader(tokenizer, family))
    flat = [request for requests in asked for request in requests]
    found = score(ours, flat)
    other = Scores([t for t, _ in theirs], np.array([g for _, g in theirs]), found.cut)
    assert found.num_tokens.tolist() == other.num_tokens.tolist()
    np.testing.assert_allclose(found.log_likelihood, other.log_likelihood, rtol=0, atol=1e-4)
    assert found.greedy.tolist() == other.greedy.tolist()
    sizes, golds = [len(requests) for requests in asked], task.golds(examples)
    answers = [
        task.postprocess({"scores": scores.groups(sizes), "masked": family == "encoder"}, examples)
        for scores in (found, other)
    ]
    if name != "lambada":  # whose answer holds the likelihood itself
        assert [a.value for a in answers[0]] == [a.value for a in answers[1]]
    scores = [task.metrics(given, golds) for given in answers]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5, nan_ok=False)
    assert len(answers[0]) == len(examples) > 5


def said(name, example):
    """Return the (context, text) pairs whose likelihoods a set asks a causal model for."""
    if name == "lambada":
        return [(example["text"], " " + example["gold"])]
    if name == "hellaswag":
        choices = [" " + choice for choice in example["choices"]]
        return [(context, choice) for context in (example["text"], "") for choice in choices]
    if name == "stereoset":
        after = {"intrasentence": ("", ""), "intersentence": (example["text"], " ")}
        context, space = after[example["kind"]]
        return [(context, space + text) for text in example["sentences"]]
    return [("", example[key]) for key in ("text", "text_pair")]


@pytest.fixture(scope="module")
def stories(shared):
    """Return stories260K: ours, torch's, and SentencePiece's tokenizer."""
    path = shared("weights/stories260K/hf")
    # In float32 torch's own rounding adds up to 6e-5 over a hundred tokens, as ours does.
    model = transformers.LlamaForCausalLM.from_pretrained(path).double().eval()
    file = str(path / "tokenizer.model")
    return from_pretrained(path), model, sentencepiece.SentencePieceProcessor(model_file=file)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_model_answers_a_published_set_as_torch_does(shared, stories, name):
    ours, model, tokenizer = stories
    examples = examples_of(shared, name, CAUSAL[name])
    rows = []
    for context, text in (pair for example in examples for pair in said(name, example)):
        whole, before = tokenizer.encode([context + text, context])
        assert whole[: len(before)] == before
        rows.append(([model.config.bos_token_id, *whole], 1 + len(before)))
    found: list = [None] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    for members in (order[i : i + 32] for i in range(0, len(order), 32)):
        # What pads a row stands behind it, where a causal model does not look.
        width = max(len(rows[i][0]) for i in members)
        ids = torch.tensor([rows[i][0] + [0] * (width - len(rows[i][0])) for i in members])
        with torch.no_grad():
            logits = model(ids).logits.double().log_softmax(-1)
        for place, i in enumerate(members):
            row, first = rows[i]
            judged, target = logits[place, first - 1 : len(row) - 1], torch.tensor(row[first:])
            values = judged.gather(1, target[:, None])[:, 0]
            found[i] = values.numpy(), bool((judged.argmax(-1) == target).all())
    compare(name, "decoder", ours, examples, found)


@pytest.fixture(scope="module")
def masked(shared, tmp_path_factory):
    """Return a tiny random BERT with the published vocabulary: ours, torch's, its tokenizer."""
    vocabulary = shared("weights/vocab/bert-base-uncased/vocab.txt")
    case = hf_cases.CASES["bert"]
    sizes = dict(vocab_size=30522, max_position_embeddings=128, num_hidden_layers=2)
    model = hf_cases.torch_model(case, "mlm", **sizes)
    path = tmp_path_factory.mktemp("bert")
    model.save_pretrained(path)
    shutil.copy(vocabulary, path)
    return from_pretrained(path), model, transformers.BertTokenizer(str(vocabulary))


def hidden(name, example, tokenizer):
    """Return, for each likelihood that a set asks a masked model for, its (ids, place) rows."""

    def ids(text, second=None):
        return tokenizer(text, second)["input_ids"]

    if name == "stereoset" and example["kind"] == "intersentence":
        rows = [ids(example["text"], text) for text in example["sentences"]]
        first = len(ids(example["text"]))
        return [[(row, p) for p in range(first, len(row) - 1)] for row in rows]
    if name == "stereoset":
        asked = []
        for word in example["words"]:
            before, after = example["text"].split("BLANK")
            pieces, asked_here = ids(word)[1:-1], []
            for count in range(len(pieces)):
                row = ids(before)[:-1] + pieces[: count + 1] + ids(after)[1:]
                asked_here.append((row, len(ids(before)) - 1 + count))
            asked.append(asked_here)
        return asked
    rows = [ids(example[key]) for key in ("text", "text_pair")]
    if name == "blimp":
        return [[(row, p) for p in range(1, len(row) - 1)] for row in rows]
    matcher = difflib.SequenceMatcher(None, *rows)
    equal = [codes[1:] for codes in matcher.get_opcodes() if codes[0] == "equal"]
    spans = ([range(a, b) for a, b, _, _ in equal], [range(a, b) for _, _, a, b in equal])
    return [
        [(row, p) for span in side for p in span if 0 < p < len(row) - 1]
        for row, side in zip(rows, spans, strict=True)
    ]


@pytest.mark.parametrize("name", MASKED)
def test_a_masked_model_answers_a_published_set_as_torch_does(shared, masked, name):
    ours, model, tokenizer = masked
    examples = [e for e in examples_of(shared, name, MASKED[name]) if e["text"].count("BLANK") < 2]
    found = []
    for rows in (rows for example in examples for rows in hidden(name, example, tokenizer)):
        kinds, values, best = {}, [None] * len(rows), True
        for number, (row, _) in enumerate(rows):
            kinds.setdefault(len(row), []).append(number)
        for members in kinds.values():
            batch = torch.tensor([rows[n][0] for n in members])
            places = torch.tensor([rows[n][1] for n in members])
            target = batch[range(len(members)), places]
            batch[range(len(members)), places] = tokenizer.mask_token_id
            second = (batch == tokenizer.sep_token_id).cumsum(1).roll(1, 1)
            types = torch.where(second > 0, 1, 0)
            types[:, 0] = 0
            with torch.no_grad():
                states = model.bert(batch, token_type_ids=types).last_hidden_state
                states = states[range(len(members)), places]
                logits = model.cls(states).double().log_softmax(-1)
            best &= bool((logits.argmax(-1) == target).all())
            for n, value in zip(members, logits.gather(1, target[:, None])[:, 0], strict=True):
                values[n] = value.item()
        found.append((np.array(values), best))
    compare(name, "encoder", ours, examples, found)
