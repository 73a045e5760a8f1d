"""Batches: any part of any batch by itself, each evaluation row once, scores of no batch size."""

import numpy as np
import pytest
from fakes import FakeCache, FakeTokenizer

from flaxlm.data.order import Mixture
from flaxlm.data.pipeline import Batches, EvalBatches, loader
from flaxlm.objectives import OBJECTIVES
from flaxlm.tasks import TASKS

TOKENIZER = FakeTokenizer()
SENTENCES = [[7, 5, 6], [9], [3, 3, 3, 3, 3, 3], [20, 4], [1], [12, 12]]
CASES = {
    "causal_lm": {},
    "causal_lm prefix": {"prefix": True},
    "masked_lm": {},
    "masked_lm packed": {"nsp": False},
    "masked_lm words": {"whole_word": True},
    "span_corruption": {},
    "classification": {"labels": ("no", "yes")},
    "classification text": {"labels": ("no", "yes"), "model": "encoder_decoder"},
    "token_classification": {"labels": ("O", "B", "I")},
    "token_classification decoder": {"labels": ("O", "B", "I"), "model": "decoder"},
    "regression": {},
    "multi_label": {"labels": ("a", "b", "c")},
    "in_batch": {"pooling": "last"},
    "text_to_text": {"target_length": 8},
    "text_to_text decoder": {"target_length": 8, "model": "decoder"},
    "text_to_text packed": {"target_length": 5, "pack": True},
    "question_answering": {"stride": 3, "question_length": 4},
    "question_answering decoder": {"stride": 3, "question_length": 4, "model": "decoder"},
}
SUPERVISED = {OBJECTIVES[task.objective] for task in TASKS.values() if task.objective}
LENGTH = 16


def source_of(name, seed=0):
    if name.split()[0] == "question_answering":
        texts = ["abcdefghij" * n for n in (1, 2, 3, 1)]
        return [
            {
                "id": i,
                "text": "what?",
                "text_pair": t,
                "span": (4 + 5 * i, 7 + 5 * i) if i < 3 else (),
            }
            for i, t in enumerate(texts)
        ]
    if OBJECTIVES[name.split()[0]] in SUPERVISED:
        rng = np.random.default_rng(seed)
        texts = ["".join(map(chr, rng.integers(65, 90, n))) for n in rng.integers(1, 30, 11)]
        words = [[t[0], *(f" {t[i : i + 3]}" for i in range(1, len(t), 3))] for t in texts]
        return [
            {"id": i, "text": t, "text_pair": t[:3] * (i % 2), "label": i % 2, "target": t[::-1]}
            | {"score": i / 2, "labels": (i % 2 > 0, i % 3 > 0, False)}
            | {"words": words[i], "tags": [len(word) % 3 for word in words[i]]}
            for i, t in enumerate(texts)
        ]
    return FakeCache([sum(s) for s in SENTENCES], SENTENCES, seed=seed)


def batches_of(name, kind=Batches, batch_size=4, shuffle=True, plan=None):
    objective = OBJECTIVES[name.split()[0]](**CASES[name])
    plan = plan or objective.plan(source_of(name), LENGTH, TOKENIZER, seed=0, shuffle=shuffle)
    return kind(plan, objective, TOKENIZER, LENGTH, 7, batch_size)


def same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def joined(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize("name", CASES)
def test_hosts_make_their_rows_of_the_same_global_batch(name):
    batches = batches_of(name)
    for step in (0, 1, 9):
        whole = batches[step]
        same(whole, joined([batches.rows(step, a, a + 1) for a in range(4)]))
        same(whole, joined([batches.rows(step, 0, 1), batches.rows(step, 1, 4)]))


@pytest.mark.parametrize("name", CASES)
def test_rows_do_not_depend_on_the_batch_size(name):
    """Global row g is the same row: batches of 4 hold those of batches of 2."""
    small, large = batches_of(name, batch_size=2), batches_of(name, batch_size=4)
    for step in (0, 7):
        same(large[step], joined([small[2 * step], small[2 * step + 1]]))


@pytest.mark.parametrize("name", CASES)
def test_batches_have_the_shapes_of_the_spec(name):
    for kind in (Batches, EvalBatches):
        batches = batches_of(name, kind, shuffle=kind is Batches)
        spec = batches.objective.batch_spec(4, LENGTH)
        batch = batches[0]
        assert {k: (v.shape, v.dtype) for k, v in batch.items()} == spec


@pytest.mark.parametrize("name", CASES)
def test_evaluation_meets_each_row_once_whatever_the_batch_size(name):
    """Masks and noise come with the example, so sums over the split are the same."""
    by_size = []
    for size in (1, 3, 5, 64):
        batches = batches_of(name, EvalBatches, size, shuffle=False)
        whole = joined([batches[step] for step in range(len(batches))])
        real = whole["example_ids"] >= 0
        assert whole["example_ids"][real].tolist() == list(range(batches.plan.num_rows))
        for key, array in whole.items():
            if key != "example_ids":
                assert not array[~real].any(), key
        by_size.append({key: array[real] for key, array in whole.items()})
    for other in by_size[1:]:
        same(by_size[0], other)


def test_a_host_without_real_rows_gives_filling():
    batches = batches_of("causal_lm", EvalBatches, 64, shuffle=False)
    part = batches.rows(0, 60, 64)
    assert (part["example_ids"] == -1).all() and not part["weights"].any()
    assert part["tokens"].shape == (4, LENGTH)


def test_training_differs_from_epoch_to_epoch():
    batches = batches_of("masked_lm packed", batch_size=1)
    rows = batches.plan.num_rows
    epochs = [joined([batches[e * rows + i] for i in range(rows)]) for e in (0, 1)]
    assert [sorted(e["example_ids"].tolist()) for e in epochs] == [list(range(rows))] * 2
    assert not np.array_equal(epochs[0]["tokens"], epochs[1]["tokens"])


@pytest.mark.parametrize("name", ["causal_lm", "masked_lm packed", "span_corruption"])
def test_mixtures_of_different_widths_go_through_every_objective(name):
    objective = OBJECTIVES[name.split()[0]](**CASES[name])
    plans = [
        objective.plan(FakeCache(sizes), LENGTH, TOKENIZER, seed=0, shuffle=True)
        for sizes in ([3, 2, 2, 3], [40, 50])
    ]
    batches = batches_of(name, plan=Mixture(plans, [0.5, 0.5]))
    same(batches[3], joined([batches.rows(3, a, a + 1) for a in range(4)]))


@pytest.mark.parametrize("threads", [0, 2])
def test_loader_gives_the_batches_in_order(threads):
    batches = batches_of("causal_lm")
    for step, batch in zip(
        range(5, 12), loader(batches, 5, 12, threads=threads, prefetch=3), strict=True
    ):
        same(batch, batches[step])
    part = next(loader(batches, 2, 3, threads=threads, rows=(1, 3)))
    same(part, batches.rows(2, 1, 3))


def test_loader_passes_errors_on():
    batches = batches_of("causal_lm")
    batches.objective = None
    with pytest.raises(AttributeError):
        next(loader(batches, 0, 2))
