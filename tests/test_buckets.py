"""Length buckets: examples once an epoch, in batches of like length, cut to what they need."""

import numpy as np
import pytest
from fakes import FakeCache, FakeTokenizer

from flaxlm.data.order import ExamplePlan
from flaxlm.data.pipeline import Batches, EvalBatches
from flaxlm.errors import ConfigError
from flaxlm.objectives import OBJECTIVES, CausalLM
from flaxlm.training import config as run_config
from flaxlm.training.sections import TrainConfig

LENGTH, BUCKETS = 32, (8, 16, 24)
TOKENIZER = FakeTokenizer()
CASES = {
    "classification": {"labels": ("no", "yes")},
    "classification decoder": {"labels": ("no", "yes"), "model": "decoder"},
    "classification text": {"labels": ("no", "yes"), "model": "encoder_decoder"},
    "regression": {},
    "multi_label": {"labels": ("a", "b")},
    "in_batch": {},
    "text_to_text": {"target_length": 8},
    "text_to_text wide": {"target_length": LENGTH},
    "text_to_text decoder": {"target_length": 8, "model": "decoder"},
}


def examples(count=203, seed=0):
    rng = np.random.default_rng(seed)
    sizes = np.minimum(rng.geometric(0.12, count), 40)
    texts = ["".join(map(chr, rng.integers(65, 90, size))) for size in sizes]
    return [
        {"id": i, "text": text, "text_pair": "abc" * (i % 2), "label": i % 2, "target": text[:5]}
        | {"score": i / 2, "labels": (i % 2 > 0, i % 3 > 0)}
        for i, text in enumerate(texts)
    ]


def batches_of(name, kind=Batches, size=4, buckets=BUCKETS, count=203):
    objective = OBJECTIVES[name.split()[0]](**CASES[name])
    shuffle = kind is Batches
    plan = objective.plan(examples(count), LENGTH, TOKENIZER, seed=0, shuffle=shuffle)
    return kind(plan, objective, TOKENIZER, LENGTH, 7, size, buckets)


def plan_of(lengths, shuffle=True):
    offsets = np.cumsum([0, *lengths])
    values = np.arange(1, offsets[-1] + 1, dtype=np.int32)
    return ExamplePlan({"text": (values, offsets, LENGTH)}, {}, 0, shuffle, {})


class Plain:
    """An objective that passes rows on."""

    name = "plain"

    def preprocess(self, raw, rng, tokenizer, length):
        """Return the rows."""
        assert raw["text"].shape[1] == length
        return raw


def stream(lengths, size, epochs, buckets=BUCKETS):
    """Return the batches of some epochs, made one after the other."""
    batches = Batches(plan_of(lengths), Plain(), None, LENGTH, 0, size, buckets)
    return [batches[step] for step in range(-(-len(lengths) * epochs // size))]


@pytest.mark.parametrize("count", [3, 8, 203, 1000])
@pytest.mark.parametrize("size", [1, 8, 7])
def test_each_example_comes_once_an_epoch(count, size):
    lengths = np.random.default_rng(count).integers(1, LENGTH + 1, count)
    made = stream(lengths, size, epochs=3)
    ids = np.concatenate([batch["example_ids"] for batch in made])
    for epoch in range(3):
        assert sorted(ids[epoch * count : (epoch + 1) * count].tolist()) == list(range(count))
    assert count < 8 or ids[:count].tolist() != ids[count : 2 * count].tolist()


def test_a_batch_has_the_columns_of_the_smallest_bucket_that_holds_it():
    lengths = np.random.default_rng(1).integers(1, LENGTH + 1, 500)
    wide = 0
    for batch in stream(lengths, 8, epochs=2):
        longest = lengths[batch["example_ids"]].max()
        width = batch["text"].shape[1]
        assert width == min(bucket for bucket in (*BUCKETS, LENGTH) if bucket >= longest)
        for row, example in zip(batch["text"], batch["example_ids"], strict=True):
            real = row[row > 0]
            first = lengths[:example].sum() + 1
            assert real.tolist() == list(range(first, first + lengths[example]))
        wide += width
    rows = np.random.default_rng(1).permutation(np.tile(lengths, 2))[: 8 * 125].reshape(-1, 8)
    by_chance = np.searchsorted((*BUCKETS, LENGTH), rows.max(axis=1))
    assert wide < 0.75 * np.array((*BUCKETS, LENGTH))[by_chance].sum()


def test_order_is_random_beyond_the_window():
    """Within 50 batches rows stand by length; where a window or a length stands is chance."""
    count, size = 4000, 4
    lengths = np.random.default_rng(2).integers(1, LENGTH + 1, count)
    made = stream(lengths, size, epochs=1)
    means = np.array([lengths[batch["example_ids"]].mean() for batch in made])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 4 / np.sqrt(len(means))
    windows = means.reshape(-1, 50).mean(axis=1)
    assert np.abs(windows - lengths.mean()).max() < 4 * lengths.std() / np.sqrt(50 * size)
    within = [lengths[batch["example_ids"]].std() for batch in made]
    assert np.mean(within) < 0.1 * lengths.std()
    ids = np.concatenate([batch["example_ids"] for batch in made])
    assert abs(np.corrcoef(ids, np.arange(count))[0, 1]) < 4 / np.sqrt(count)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", [Batches, EvalBatches])
def test_any_host_makes_any_part_in_the_shapes_of_the_spec(name, kind):
    batches = batches_of(name, kind)
    widths = set()
    for step in (0, 1, 9, 30, 50):  # 50: the last of an evaluation; of training across epochs
        whole, width = batches[step], batches.width(step)
        spec = batches.objective.batch_spec(4, width)
        assert {k: (v.shape, v.dtype) for k, v in whole.items()} == spec
        parts = [batches_of(name, kind).rows(step, a, a + 1) for a in range(4)]
        for key, array in whole.items():
            np.testing.assert_array_equal(array, np.concatenate([p[key] for p in parts]))
        widths.add(width)
    assert len(widths) > 1


@pytest.mark.parametrize("name", CASES)
def test_cut_rows_are_the_whole_ones_without_their_padding(name):
    plain = batches_of(name, EvalBatches, size=203, buckets=())[0]
    cut = batches_of(name, EvalBatches, size=4)
    seen = []
    for step in range(len(cut)):
        batch, length = cut[step], LENGTH
        row = "encoder_segment_ids" if "encoder_segment_ids" in batch else "segment_ids"
        needed = batch[row].sum(axis=-1).max()
        assert cut.width(step) == min(b for b in (*BUCKETS, LENGTH) if b >= needed)
        for row, example in enumerate(batch["example_ids"]):
            if example < 0:
                assert not any(batch[key][row].any() for key in batch if key != "example_ids")
                continue
            seen.append(int(example))
            for key, array in batch.items():
                whole = plain[key][example]
                if array[row].shape != whole.shape:
                    assert not whole[..., cut.width(step) : length].any(), key
                    whole = whole[..., : cut.width(step)]
                np.testing.assert_array_equal(array[row], whole, err_msg=key)
    assert sorted(seen) == list(range(203))


def test_what_is_saved_is_reported():
    lengths = [4] * 60 + [20] * 60
    batches = Batches(plan_of(lengths), Plain(), None, LENGTH, 0, 4, BUCKETS)
    report = batches.plan.report
    assert report["padding"] == pytest.approx(1 - 12 / 32)
    assert report["padding_cut"] == pytest.approx(1 - 12 / 16)  # half of the rows 8, half 24
    assert batches.tokens == 4 * 16


def test_what_cannot_be_cut_is_refused():
    plan = CausalLM().plan(FakeCache([40]), LENGTH, TOKENIZER, seed=0, shuffle=True)
    with pytest.raises(ConfigError, match="causal_lm fills its rows"):
        Batches(plan, CausalLM(), TOKENIZER, LENGTH, 0, 4, BUCKETS)
    train = dict(steps=1, length=LENGTH, buckets=BUCKETS)
    with pytest.raises(ConfigError, match="for tasks with examples"):
        run_config.from_dict(dict(train=train))
    for wrong in ((16, 8), (8, 8), (0, 8)):
        with pytest.raises(ConfigError, match="ascending"):
            run_config.from_dict(dict(train=train | dict(buckets=wrong)))


def test_what_is_not_shorter_is_not_used():
    assert TrainConfig(steps=1, length=16, buckets=(8, 16, 64)).shorter == (8,)
