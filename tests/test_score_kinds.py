"""Multi-label, calibration, regression and likelihood scores, and what holds for every kind."""

import functools
import math

import numpy as np
import pytest
from measures import intervals_by, scores_by
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, brier_score_loss, precision_recall_fscore_support
from threadpoolctl import threadpool_limits

from flaxlm.errors import DataError
from flaxlm.metrics.answers import span_measures
from flaxlm.metrics.entities import entity_measure, tag_measure
from flaxlm.metrics.labels import (
    calibration_measure,
    classification_measure,
    multilabel_measure,
    reliability,
)
from flaxlm.metrics.measure import bits, perplexity, ratio_measure
from flaxlm.metrics.numbers import regression_measure
from flaxlm.metrics.texts import text_measures


def indicators(n=200, c=6, seed=0):
    rng = np.random.default_rng(seed)
    gold = rng.random((n, c)) < 0.3
    predicted = gold ^ (rng.random((n, c)) < 0.15)
    predicted[:, -1] = gold[:, -1] = False  # a label that never occurs
    return predicted, gold


def chances(n=400, c=4, seed=0):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(c, 0.4), n)
    return probabilities, np.array([rng.choice(c, p=row) for row in probabilities])


def numbers(n=300, seed=0):
    rng = np.random.default_rng(seed)
    gold = np.round(rng.random(n) * 5, 1)  # ties, as in STS-B
    return np.round(gold + rng.normal(0, 1, n), 1), gold


def test_multilabel_scores_count_each_label():
    predicted, gold = indicators()
    scores = scores_by(multilabel_measure, predicted, gold)
    rows = []
    for p, g in zip(predicted.T, gold.T, strict=True):
        hit, said, real = (p & g).sum(), p.sum(), g.sum()
        rows.append((hit, said, real))
    rows = np.array(rows, float)
    hit, said, real = rows.T
    assert scores["precision_macro"] == pytest.approx(np.mean(hit / np.maximum(said, 1)))
    assert scores["recall_macro"] == pytest.approx(np.mean(hit / np.maximum(real, 1)))
    assert scores["f1_macro"] == pytest.approx(np.mean(2 * hit / np.maximum(said + real, 1)))
    assert scores["f1_micro"] == pytest.approx(2 * hit.sum() / (said.sum() + real.sum()))
    exact = np.mean([list(p) == list(g) for p, g in zip(predicted, gold, strict=True)])
    assert scores["subset_accuracy"] == pytest.approx(exact)


def test_multilabel_intervals_agree_with_the_plain_bootstrap():
    predicted, gold = indicators()
    ours = intervals_by(multilabel_measure, predicted, gold)
    point = scores_by(multilabel_measure, predicted, gold)
    assert ours.keys() == point.keys()
    rng = np.random.default_rng(9)
    plain = {name: [] for name in point}
    for _ in range(150):
        rows = rng.integers(0, len(gold), len(gold))
        plain["subset_accuracy"].append(accuracy_score(gold[rows], predicted[rows]))
        for average in ("macro", "micro"):
            values = precision_recall_fscore_support(
                gold[rows], predicted[rows], average=average, zero_division=0.0
            )
            for name, value in zip(("precision", "recall", "f1"), values[:3], strict=True):
                plain[f"{name}_{average}"].append(value)
    for name, values in plain.items():
        assert ours[name] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.025), name


def test_multilabel_input_is_one_truth_value_a_label():
    with pytest.raises(DataError, match="true or false"):
        scores_by(multilabel_measure, [[0.5, 1]], [[0, 1]])
    with pytest.raises(DataError, match="at least two labels"):
        scores_by(multilabel_measure, [[1]], [[1]])
    with pytest.raises(DataError, match="3 labels predicted where there are 2"):
        scores_by(multilabel_measure, [[1, 0, 1]], [[0, 1]])


def slow_ece(probabilities, golds) -> float:
    """Guo et al. (2017), equation 3, bin by bin and example by example."""
    total = 0.0
    for m in range(1, 16):
        inside = []
        for row, gold in zip(probabilities, golds, strict=True):
            best = max(row)
            if (m - 1) / 15 < best <= m / 15:
                inside.append((best, list(row).index(best) == gold))
        if inside:
            confidence = sum(c for c, _ in inside) / len(inside)
            accuracy = sum(r for _, r in inside) / len(inside)
            total += len(inside) / len(golds) * abs(accuracy - confidence)
    return total


def test_calibration_scores_equal_their_definitions():
    for c in (2, 4, 30):
        probabilities, golds = chances(c=c)
        scores = scores_by(calibration_measure, probabilities, golds)
        assert scores["ece"] == pytest.approx(slow_ece(probabilities, golds))
        names = list(range(c))
        brier = brier_score_loss(
            golds, probabilities if c > 2 else probabilities[:, 1], labels=names
        )
        # Of two labels scikit-learn takes the positive one's error alone, half of the sum.
        assert scores["brier"] == pytest.approx(brier if c > 2 else 2 * brier)


def test_calibration_is_0_where_sure_and_right_and_2_where_sure_and_wrong():
    sure = np.eye(3)[[0, 1, 2, 0]]
    assert scores_by(calibration_measure, sure, [0, 1, 2, 0]) == {"ece": 0.0, "brier": 0.0}
    assert scores_by(calibration_measure, sure, [1, 2, 0, 1]) == {"ece": 1.0, "brier": 2.0}
    # A coin that says so is calibrated; its Brier score is that of a coin.
    coin = np.full((10, 2), 0.5)
    assert scores_by(calibration_measure, coin, [0, 1] * 5) == pytest.approx(
        {"ece": 0, "brier": 0.5}
    )


def test_the_reliability_diagram_holds_every_example_once_and_gives_the_ece():
    probabilities, golds = chances()
    diagram = reliability(probabilities, golds)
    assert diagram.count.sum() == len(golds)
    gaps = np.abs(diagram.accuracy - diagram.confidence) * diagram.count / len(golds)
    assert gaps.sum() == pytest.approx(slow_ece(probabilities, golds))
    filled = diagram.count > 0
    edges = np.arange(15) / 15
    assert (diagram.confidence[filled] > edges[filled]).all()
    assert (diagram.confidence[filled] <= edges[filled] + 1 / 15 + 1e-12).all()
    assert (diagram.accuracy * diagram.count).sum() == pytest.approx(
        (probabilities.argmax(1) == golds).sum()
    )
    # An edge belongs to the bin below it.
    edge = reliability([[0.6, 0.4]], [0])
    assert edge.count[8] == 1


def test_calibration_intervals_agree_with_the_plain_bootstrap():
    probabilities, golds = chances(n=200)
    ours = intervals_by(calibration_measure, probabilities, golds)
    rng = np.random.default_rng(7)
    draws = rng.integers(0, 200, (200, 200))
    plain = [slow_ece(probabilities[d], golds[d]) for d in draws]
    assert ours["ece"] == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.015)
    errors = ((probabilities - np.eye(4)[golds]) ** 2).sum(axis=1)
    assert ours["brier"] == pytest.approx(
        np.quantile(errors[draws].mean(axis=1), [0.025, 0.975]), abs=0.03
    )


def test_probabilities_that_are_none_are_refused():
    with pytest.raises(DataError, match=r"example 1 do not sum to 1"):
        scores_by(calibration_measure, [[0.5, 0.5], [0.5, 0.7]], [0, 1])
    with pytest.raises(DataError, match=r"example 0 do not sum to 1"):
        reliability([[math.nan, 1.0]], [0])
    with pytest.raises(DataError, match=r"example 1 has the gold label 2, and there are 2 labels"):
        scores_by(calibration_measure, [[0.5, 0.5], [0.5, 0.5]], [0, 2])


def test_regression_scores_equal_scipy_and_their_definitions():
    predicted, gold = numbers()
    scores = scores_by(regression_measure, predicted, gold)
    assert scores["pearson"] == pytest.approx(pearsonr(predicted, gold).statistic, abs=1e-13)
    assert scores["spearman"] == pytest.approx(spearmanr(predicted, gold).statistic, abs=1e-13)
    pairs = list(zip(predicted, gold, strict=True))
    assert scores["mse"] == pytest.approx(sum((p - g) ** 2 for p, g in pairs) / len(pairs))
    assert scores["mae"] == pytest.approx(sum(abs(p - g) for p, g in pairs) / len(pairs))


@pytest.mark.filterwarnings("error")
def test_a_correlation_with_a_constant_is_0_without_a_warning():
    for predicted, gold in [([1.1] * 7, range(7)), (range(7), [0.3] * 7), ([0.1], [0.2])]:
        scores = scores_by(regression_measure, predicted, gold)
        assert scores["pearson"] == scores["spearman"] == 0.0
        assert intervals_by(regression_measure, predicted, gold)["spearman"] == (0.0, 0.0)
    # Small splits have resamples of one example only.
    low, high = intervals_by(regression_measure, [1.0, 2.0], [1.0, 2.0])["pearson"]
    assert (low, high) == (0.0, pytest.approx(1.0))


def test_regression_intervals_agree_with_scipy_on_every_resample():
    predicted, gold = numbers(60)
    ours = intervals_by(regression_measure, predicted, gold, seed=3, resamples=200)
    rng = np.random.default_rng(3)
    draws = [rng.integers(0, 60, 60) for _ in range(200)]
    plain = {
        "pearson": [pearsonr(predicted[d], gold[d]).statistic for d in draws],
        "spearman": [spearmanr(predicted[d], gold[d]).statistic for d in draws],
        "mse": [((predicted[d] - gold[d]) ** 2).mean() for d in draws],
        "mae": [np.abs(predicted[d] - gold[d]).mean() for d in draws],
    }
    assert ours.keys() == scores_by(regression_measure, predicted, gold).keys()
    for name, values in plain.items():
        assert ours[name] == pytest.approx(np.quantile(values, [0.025, 0.975])), name


def test_numbers_that_are_none_are_refused():
    with pytest.raises(DataError, match="the prediction of example 1 is nan"):
        scores_by(regression_measure, [1.0, math.nan], [1.0, 2.0])
    with pytest.raises(DataError, match="the gold score of example 0 is inf"):
        scores_by(regression_measure, [1.0, 2.0], [math.inf, 2.0])
    with pytest.raises(DataError, match="one number"):
        scores_by(regression_measure, [[1.0], [2.0]], [1.0, 2.0])


def test_perplexity_and_bits_are_those_of_the_ratio():
    rng = np.random.default_rng(1)
    tokens = rng.integers(1, 20, 300)
    nats = tokens * rng.exponential(1.5, 300)
    plain = []
    for _ in range(2000):
        rows = rng.integers(0, 300, 300)
        plain.append(nats[rows].sum() / tokens[rows].sum())
    ends, mean = np.quantile(plain, [0.025, 0.975]), nats.sum() / tokens.sum()
    for then, expected in ((perplexity, np.exp), (bits, lambda n: n / np.log(2))):
        measure = ratio_measure("ratio", nats, tokens, then)
        assert measure.scores()["ratio"] == pytest.approx(expected(mean))
        assert measure.intervals()["ratio"] == pytest.approx(expected(ends), rel=0.03)
    # A uniform model over 256 bytes: perplexity 256, 8 bits a byte.
    assert (perplexity(math.log(256)), bits(math.log(256))) == pytest.approx((256, 8))
    assert perplexity(1e6) == math.exp(700)


TAGS = [["B-A", "I-A", "O"], ["O", "B-B", "B-A"], ["B-A", "O", "O"]] * 20
SAID = [["B-A", "I-A", "O"], ["O", "B-B", "I-B"], ["O", "O", "O"]] * 20
TEXTS = ["the cat sat on the mat", "一只猫 sat", "no cats were there", "a dog"] * 15
SAID_TEXTS = ["a cat sat on a mat", "一只狗 sat", "no cat was there", ""] * 15
NAMES = ("rouge_1", "rouge_2", "rouge_l", "exact_match", "f1", "bleu", "chrf")
CASES = {
    "classification": classification_measure,
    "multilabel": multilabel_measure,
    "calibration": calibration_measure,
    "regression": regression_measure,
    "likelihood": functools.partial(ratio_measure, "ratio"),
    "entity": entity_measure,
    "tag": tag_measure,
    "span": span_measures,
    "text": text_measures,
}


def inputs(kind: str):
    rng = np.random.default_rng(2)
    return {
        "classification": lambda: (rng.integers(0, 3, 3000), rng.integers(0, 3, 3000)),
        "multilabel": lambda: indicators(500),
        "calibration": lambda: chances(1000),
        "regression": lambda: (rng.random(20000), rng.random(20000)),
        "likelihood": lambda: (rng.random(1000), rng.integers(1, 9, 1000)),
        "entity": lambda: (np.array(SAID), np.array(TAGS)),
        "tag": lambda: (np.array(SAID), np.array(TAGS)),
        "span": lambda: (np.array(SAID_TEXTS), np.array(TEXTS)[:, None]),
        "text": lambda: (np.array(SAID_TEXTS), np.array(TEXTS)[:, None]),
    }[kind]()


@pytest.mark.parametrize("kind", CASES)
def test_every_score_is_the_same_bits_in_repeats_containers_and_threads(kind):
    arrays = inputs(kind)
    extra = {"entity": ("BIO",), "text": (NAMES,)}.get(kind, ())
    options = {"resamples": 20} if kind == "regression" else {}
    found = []
    for threads, make in [
        (1, lambda a: a),
        (2, lambda a: a),
        (2, lambda a: a.tolist()),
        (2, lambda a: tuple(map(tuple, a)) if a.ndim == 2 else tuple(a)),
    ]:
        pair = [make(array) for array in arrays]
        with threadpool_limits(threads):
            scores = scores_by(CASES[kind], *pair, *extra)
            found.append((scores, intervals_by(CASES[kind], *pair, *extra, **options)))
    assert all(other == found[0] for other in found[1:])
    scores, intervals = found[0]
    assert scores.keys() == intervals.keys()
    assert all(type(value) is float for value in scores.values())
    again = intervals_by(CASES[kind], *arrays, *extra, seed=1, **options)
    assert again != intervals


@pytest.mark.parametrize("kind", CASES)
def test_every_score_refuses_what_cannot_be_compared(kind):
    arrays = inputs(kind)
    extra = {"entity": ("BIO",), "text": (NAMES,)}.get(kind, ())
    with pytest.raises(DataError, match=r"2 predictions for 1 examples|1 predictions for 2"):
        CASES[kind](arrays[0][:2], arrays[1][:1], *extra)
    with pytest.raises(DataError, match="no examples"):
        CASES[kind](arrays[0][:0], arrays[1][:0], *extra)
