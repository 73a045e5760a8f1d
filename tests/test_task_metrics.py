"""Scores against independent oracles, and intervals against the plain bootstrap."""

import numpy as np
import pytest
from measures import interval_by, intervals_by, scores_by
from sklearn.metrics import f1_score, matthews_corrcoef, precision_score, recall_score

from flaxlm.errors import DataError
from flaxlm.metrics.labels import classification_measure, scores_of_counts
from flaxlm.metrics.measure import Measure, mean_measure, ratio_measure, weighted_sums
from flaxlm.metrics.texts import TEXT_SCORES, exact_match


def labels(n: int, classes: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, classes, n)
    predicted = np.where(rng.random(n) < 0.6, gold, rng.integers(0, classes, n))
    return predicted, gold


def matthews_by_hand(predicted, gold) -> float:
    """The correlation of indicator vectors, summed over labels (Gorodkin, 2004, equation 2)."""
    names = sorted(set(predicted) | set(gold))
    x = np.array([[p == name for name in names] for p in predicted], float)
    y = np.array([[g == name for name in names] for g in gold], float)
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    spread = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / spread) if spread else 0.0


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
        "matthews": matthews_by_hand(predicted, gold),
    }


@pytest.mark.parametrize(("n", "classes"), [(1, 2), (7, 5), (200, 3), (500, 20)])
def test_classification_scores_equal_counting_by_hand(n, classes):
    predicted, gold = labels(n, classes)
    scores = scores_by(classification_measure, predicted, gold, classes=max(classes, 3))
    assert scores == pytest.approx(by_hand(predicted.tolist(), gold.tolist()), abs=1e-12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", ["mixed", "no_gold", "none_predicted", "one_class", "one_example"])
def test_two_labels_are_scored_by_the_positive_one_too(case):
    predicted, gold = labels(400, 2)
    if case == "no_gold":
        gold = np.zeros_like(gold)
    elif case == "none_predicted":
        predicted = np.zeros_like(gold)
    elif case == "one_class":
        predicted = gold = np.zeros_like(gold)
    elif case == "one_example":
        predicted, gold = predicted[:1], gold[:1]
    scores = scores_by(classification_measure, predicted, gold)
    said, real = set(np.flatnonzero(predicted)), set(np.flatnonzero(gold))
    assert scores["precision"] == pytest.approx(len(said & real) / max(len(said), 1))
    assert scores["recall"] == pytest.approx(len(said & real) / max(len(real), 1))
    assert scores["f1"] == pytest.approx(2 * len(said & real) / max(len(said) + len(real), 1))
    assert scores["matthews"] == pytest.approx(matthews_by_hand(predicted, gold), abs=1e-12)
    intervals = intervals_by(classification_measure, predicted, gold)
    assert intervals.keys() == scores.keys()
    assert all(low <= scores[name] <= high for name, (low, high) in intervals.items())


def test_the_names_of_the_scores_depend_on_the_gold_labels_alone():
    gold = [0, 1, 0]
    assert scores_by(classification_measure, [0, 2, 0], gold).keys() >= {
        "f1",
        "precision",
        "recall",
    }
    assert "f1" not in scores_by(classification_measure, [0, 1, 0], gold, classes=3)
    assert "f1" not in scores_by(classification_measure, [0, 1, 0], [0, 2, 0])
    wrong = intervals_by(classification_measure, [2, 2, 2], gold)
    assert wrong["f1"] == (0.0, 0.0)


def test_scores_of_counts_equal_scikit_learn_on_every_resample():
    # The resamples are few and small, so that labels go missing in some of them.
    predicted, gold = labels(12, 6)
    pairs, inverse = np.unique(np.stack([gold, predicted]), axis=1, return_inverse=True)
    rng = np.random.default_rng(1)
    draws = rng.integers(0, 12, (50, 12))
    counts = np.stack([np.bincount(inverse.ravel()[d], minlength=pairs.shape[1]) for d in draws])
    ours = scores_of_counts(counts.astype(float), pairs[0], pairs[1], 6, binary=True)
    options = {"average": "macro", "zero_division": 0.0}
    for r, d in enumerate(draws):
        args = gold[d], predicted[d]
        assert ours["f1_macro"][r] == pytest.approx(f1_score(*args, **options))
        assert ours["precision_macro"][r] == pytest.approx(precision_score(*args, **options))
        assert ours["recall_macro"][r] == pytest.approx(recall_score(*args, **options))
        assert ours["accuracy"][r] == pytest.approx(np.mean(gold[d] == predicted[d]))
        assert ours["matthews"][r] == pytest.approx(matthews_corrcoef(*args))
        positive = f1_score(*args, labels=[1], average="macro", zero_division=0.0)
        assert ours["f1"][r] == pytest.approx(positive)


def test_classification_intervals_agree_with_the_plain_bootstrap():
    predicted, gold = labels(300, 4)
    ours = intervals_by(classification_measure, predicted, gold, resamples=4000)
    rng = np.random.default_rng(5)
    draws = rng.integers(0, 300, (4000, 300))
    accuracies = (predicted == gold)[draws].mean(axis=1)
    assert ours["accuracy"] == pytest.approx(np.quantile(accuracies, [0.025, 0.975]), abs=0.01)
    macro = [f1_score(gold[d], predicted[d], average="macro") for d in draws[:500]]
    assert ours["f1_macro"] == pytest.approx(np.quantile(macro, [0.025, 0.975]), abs=0.02)
    point = scores_by(classification_measure, predicted, gold)
    assert ours.keys() == point.keys()
    assert all(low <= point[name] <= high for name, (low, high) in ours.items())


def test_mean_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        low, high = interval_by(mean_measure, rng.exponential(1.0, 200), seed=trial, resamples=400)
        covered += low <= 1.0 <= high
    assert 0.90 <= covered / 300 <= 0.98


def test_mean_interval_is_the_same_in_chunks_of_any_size(monkeypatch):
    values = np.random.default_rng(3).random(2000)
    whole = interval_by(mean_measure, values)
    low, high = np.quantile(
        values[np.random.default_rng(8).integers(0, 2000, (1000, 2000))].mean(axis=1),
        [0.025, 0.975],
    )
    assert whole == pytest.approx((low, high), abs=0.002)
    assert interval_by(mean_measure, values) == whole
    assert interval_by(mean_measure, values, seed=1) != whole


def test_ratio_interval_resamples_examples_and_not_tokens():
    rng = np.random.default_rng(5)
    nats, tokens = rng.exponential(2.0, 400), np.ones(400)
    low, high = interval_by(ratio_measure, nats, tokens)
    assert (low, high) == pytest.approx(interval_by(mean_measure, nats), abs=0.03)
    # An example of ten tokens counts ten times in the mean and is one example still.
    assert interval_by(ratio_measure, 10 * nats, 10 * tokens) == pytest.approx((low, high))
    covered = 0
    for trial in range(300):
        tokens = rng.integers(1, 9, 200)
        nats = tokens * rng.exponential(1.0, 200)
        low, high = interval_by(ratio_measure, nats, tokens, seed=trial, resamples=400)
        covered += low <= 1.0 <= high
    assert 0.90 <= covered / 300 <= 0.98


def test_intervals_narrow_with_the_number_of_examples():
    widths = []
    for n in (50, 200, 3200):
        predicted, gold = labels(n, 3)
        low, high = intervals_by(classification_measure, predicted, gold)["accuracy"]
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
        assert TEXT_SCORES["rouge_l"]([predicted], [gold])[0] == pytest.approx(expected)


def test_exact_match_ignores_runs_of_white_space_only():
    found = exact_match(["a  b\n", "a b", "A b"], ["a b", "a c", "a b"])
    assert found.tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "score",
    [classification_measure, TEXT_SCORES["rouge_l"]],
)
def test_what_cannot_be_compared_is_refused(score):
    with pytest.raises(DataError, match="2 predictions for 1 examples"):
        score([1, 0], [1])
    with pytest.raises(DataError, match="no examples"):
        score([], [])


def test_label_ids_are_whole_numbers_from_0():
    with pytest.raises(DataError, match=r"example 1 has the label -1"):
        scores_by(classification_measure, [0, 1], [0, -1])
    with pytest.raises(DataError, match="predictions must be label ids"):
        scores_by(classification_measure, [0.5, 1.0], [0, 1])
    with pytest.raises(DataError, match="gold labels must be label ids"):
        scores_by(classification_measure, [0, 1], ["a", "b"])


def test_a_ratio_without_any_weight_is_refused():
    with pytest.raises(DataError, match="weighs 0"):
        interval_by(ratio_measure, [1.0, 2.0], [0, 0])


def test_resampled_sums_are_the_sums_of_drawn_rows():
    def resampled(rows):
        return Measure(rows, lambda counts, cells: {"": weighted_sums(counts, cells)}).resampled()[
            ""
        ]

    # One example is drawn n times: every sum is n times it. Of two, sums are a k and b n - k.
    row = np.array([[1.5, -2.0, 3.0]])
    assert (resampled(np.repeat(row, 9, axis=0)) == 9 * row).all()
    two = resampled(np.array([[1.0, 0.0], [0.0, 1.0]] * 50))
    assert (two.sum(axis=1) == 100).all()
    assert two[:, 0].std() == pytest.approx(5.0, abs=0.5)
    # Rows too wide to be sorted into cells take another path to the same distribution.
    wide = np.tile(np.random.default_rng(0).random((300, 1)), 70)
    sums = resampled(wide)
    assert np.allclose(sums, sums[:, :1])
    narrow = resampled(wide[:, :1])
    assert np.quantile(sums[:, 0], [0.1, 0.9]) == pytest.approx(
        np.quantile(narrow, [0.1, 0.9]), rel=0.01
    )
