"""Scores against independent oracles, and intervals against the plain bootstrap."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from flaxlm.errors import DataError
from flaxlm.tasks import metrics


def labels(n: int, classes: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, classes, n)
    predicted = np.where(rng.random(n) < 0.6, gold, rng.integers(0, classes, n))
    return predicted, gold


def by_hand(predicted, gold) -> dict[str, float]:
    """Macro averages over the labels that occur, counted one by one."""
    rows = []
    for label in sorted(set(predicted) | set(gold)):
        hit = sum(p == g == label for p, g in zip(predicted, gold, strict=True))
        said, real = sum(p == label for p in predicted), sum(g == label for g in gold)
        precision, recall = hit / said if said else 0.0, hit / real if real else 0.0
        total = precision + recall
        rows.append((precision, recall, 2 * precision * recall / total if total else 0.0))
    means = np.mean(rows, axis=0)
    accuracy = np.mean(np.equal(predicted, gold))
    return {
        "accuracy": accuracy,
        **dict(zip(("precision_macro", "recall_macro", "f1_macro"), means, strict=True)),
        **dict.fromkeys(("precision_micro", "recall_micro", "f1_micro"), accuracy),
    }


@pytest.mark.parametrize(("n", "classes"), [(1, 2), (7, 5), (200, 3), (500, 20)])
def test_classification_scores_equal_counting_by_hand(n, classes):
    predicted, gold = labels(n, classes)
    scores = metrics.classification_scores(predicted, gold)
    assert scores == pytest.approx(by_hand(predicted.tolist(), gold.tolist()), abs=1e-12)


def test_scores_of_counts_equal_scikit_learn_on_every_resample():
    # The resamples are few and small, so that labels go missing in some of them.
    predicted, gold = labels(12, 6)
    pairs, inverse = np.unique(np.stack([gold, predicted]), axis=1, return_inverse=True)
    rng = np.random.default_rng(1)
    draws = rng.integers(0, 12, (50, 12))
    counts = np.stack([np.bincount(inverse.ravel()[d], minlength=pairs.shape[1]) for d in draws])
    ours = metrics._scores_of_counts(counts.astype(float), pairs[0], pairs[1], 6)
    options = {"average": "macro", "zero_division": 0.0}
    for r, d in enumerate(draws):
        args = gold[d], predicted[d]
        assert ours["f1_macro"][r] == pytest.approx(f1_score(*args, **options))
        assert ours["precision_macro"][r] == pytest.approx(precision_score(*args, **options))
        assert ours["recall_macro"][r] == pytest.approx(recall_score(*args, **options))
        assert ours["accuracy"][r] == pytest.approx(np.mean(gold[d] == predicted[d]))


def test_classification_intervals_agree_with_the_plain_bootstrap():
    predicted, gold = labels(300, 4)
    ours = metrics.classification_intervals(predicted, gold, resamples=4000)
    rng = np.random.default_rng(5)
    draws = rng.integers(0, 300, (4000, 300))
    accuracies = (predicted == gold)[draws].mean(axis=1)
    assert ours["accuracy"] == pytest.approx(np.quantile(accuracies, [0.025, 0.975]), abs=0.01)
    macro = [f1_score(gold[d], predicted[d], average="macro") for d in draws[:500]]
    assert ours["f1_macro"] == pytest.approx(np.quantile(macro, [0.025, 0.975]), abs=0.02)
    point = metrics.classification_scores(predicted, gold)
    assert ours.keys() == point.keys()
    assert all(low <= point[name] <= high for name, (low, high) in ours.items())


def test_mean_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        low, high = metrics.mean_interval(rng.exponential(1.0, 200), seed=trial, resamples=400)
        covered += low <= 1.0 <= high
    assert 0.90 <= covered / 300 <= 0.98


def test_mean_interval_is_the_same_in_chunks_of_any_size(monkeypatch):
    values = np.random.default_rng(3).random(2000)
    whole = metrics.mean_interval(values)
    low, high = np.quantile(
        values[np.random.default_rng(8).integers(0, 2000, (1000, 2000))].mean(axis=1),
        [0.025, 0.975],
    )
    assert whole == pytest.approx((low, high), abs=0.002)
    assert metrics.mean_interval(values) == whole
    assert metrics.mean_interval(values, seed=1) != whole


def test_ratio_interval_resamples_examples_and_not_tokens():
    rng = np.random.default_rng(5)
    nats, tokens = rng.exponential(2.0, 400), np.ones(400)
    low, high = metrics.ratio_interval(nats, tokens)
    assert (low, high) == pytest.approx(metrics.mean_interval(nats), abs=0.03)
    # An example of ten tokens counts ten times in the mean and is one example still.
    assert metrics.ratio_interval(10 * nats, 10 * tokens) == pytest.approx((low, high))
    covered = 0
    for trial in range(300):
        tokens = rng.integers(1, 9, 200)
        nats = tokens * rng.exponential(1.0, 200)
        low, high = metrics.ratio_interval(nats, tokens, seed=trial, resamples=400)
        covered += low <= 1.0 <= high
    assert 0.90 <= covered / 300 <= 0.98


def test_intervals_narrow_with_the_number_of_examples():
    widths = []
    for n in (50, 200, 3200):
        predicted, gold = labels(n, 3)
        low, high = metrics.classification_intervals(predicted, gold)["accuracy"]
        widths.append(high - low)
    assert widths[0] > widths[1] > 2 * widths[2]


def lcs(a: list[str], b: list[str]) -> int:
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            same = table[i, j] + 1
            table[i + 1, j + 1] = same if x == y else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


def test_rouge_l_equals_the_longest_common_subsequence():
    # Words of three letters and less are not stemmed.
    pairs = [
        ("the cat sat on the mat", "the cat is on a mat"),
        ("a b c d", "d c b a"),
        ("x y z", "x y z"),
        ("one two", "six ten"),
        ("", "a b"),
    ]
    for predicted, gold in pairs:
        a, b = predicted.split(), gold.split()
        common = lcs(a, b)
        expected = 2 * common / (len(a) + len(b)) if common else 0.0
        assert metrics.rouge_l([predicted], [gold])[0] == pytest.approx(expected)


def test_exact_match_ignores_runs_of_white_space_only():
    found = metrics.exact_match(["a  b\n", "a b", "A b"], ["a b", "a c", "a b"])
    assert found.tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "score", [metrics.classification_scores, metrics.classification_intervals, metrics.rouge_l]
)
def test_what_cannot_be_compared_is_refused(score):
    with pytest.raises(DataError, match="2 predictions for 1 examples"):
        score([1, 0], [1])
    with pytest.raises(DataError, match="no examples"):
        score([], [])
