"""Metrics against their definitions, written out the slow way."""

import tracemalloc

import numpy as np
import pytest
import tensorflow as tf

from yt8m_distill.evaluation import average_precision as ap
from yt8m_distill.evaluation import top_predictions

SEEDS = range(5)


def defined_average_precision(scores, labels, num_positives):
    """Sum over distinct scores of precision times the increase in recall."""
    total = 0.0
    for threshold in set(scores):
        above = [
            hit for score, hit in zip(scores, labels, strict=True) if score >= threshold
        ]
        gained = sum(
            hit for score, hit in zip(scores, labels, strict=True) if score == threshold
        )
        total += sum(above) / len(above) * gained / num_positives
    return total


def predict(probabilities, labels, k, **columns):
    """TopPredictions of dense [N, C] arrays, in numpy."""
    weights = tf.ones(len(labels))
    top = top_predictions.top_predictions(
        tf.constant(probabilities), tf.constant(labels), weights, k
    )
    found = {n: v.numpy() for n, v in top._asdict().items() if v is not None}
    return top._replace(**{**found, "loss": np.zeros(len(labels)), **columns})


def random_videos(seed, num_videos=60, num_classes=9, levels=40):
    """Scores on a grid of `levels` steps (so that some tie) and multi-hot labels.

    Class 0 is never a label; some videos have none.
    """
    random = np.random.default_rng(seed)
    labels = (random.random((num_videos, num_classes)) < 0.25).astype(int)
    labels[:, 0] = 0
    labels[::7] = 0
    scores = 0.4 * labels + random.random(labels.shape)
    return np.round(scores * levels) / levels / 2, labels


def accumulate(probabilities, labels, k, batches, **columns):
    """The metrics when the videos are batched by these row selections."""
    accumulator = ap.MetricsAccumulator(probabilities.shape[1])
    for rows in batches:
        chosen = {name: column[rows] for name, column in columns.items()}
        accumulator.update(predict(probabilities[rows], labels[rows], k, **chosen))
    return accumulator.result()


@pytest.mark.parametrize(
    "scores, labels, expected",
    [
        # Hits at ranks 1, 2, 6, 7, 10.
        (
            [0.98, 0.88, 0.77, 0.65, 0.64, 0.59, 0.45, 0.43, 0.20, 0.05],
            [1, 1, 0, 0, 0, 1, 1, 0, 0, 1],
            (1 / 1 + 2 / 2 + 3 / 6 + 4 / 7 + 5 / 10) / 5,
        ),
        # Hits at ranks 1, 3, 6.
        (
            [0.878, 0.832, 0.759, 0.621, 0.458, 0.285, 0.134],
            [1, 0, 1, 0, 0, 1, 0],
            (1 / 1 + 2 / 3 + 3 / 6) / 3,
        ),
    ],
)
def test_known_vectors_in_any_order(scores, labels, expected):
    assert round(expected, 3) in (0.714, 0.722)  # the figures published for them
    assert ap.average_precision(scores, labels) == pytest.approx(expected, abs=1e-15)
    backwards = ap.average_precision(scores[::-1], labels[::-1])
    assert backwards == pytest.approx(expected, abs=1e-15)


def test_no_positives_and_no_predictions_give_zero():
    assert ap.average_precision([0.3, 0.2], [0, 0]) == 0
    assert ap.average_precision([0.3, 0.2], [0, 0], num_positives=4) == 0
    assert ap.average_precision([], [], num_positives=4) == 0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("levels", [7, 10**6])
def test_average_precision_agrees_with_sklearn_also_on_ties(seed, levels):
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(seed)
    scores = (random.integers(0, levels, 500) / levels).astype(np.float32)
    labels = random.random(500) < scores
    expected = metrics.average_precision_score(labels, scores)
    # Both in float64 over 500 terms.
    assert ap.average_precision(scores, labels) == pytest.approx(expected, abs=1e-12)


def test_large_counts_keep_float64_accuracy():
    # Every third rank is a hit: the i-th has precision i / (3i), so AP is 1/3.
    count = 1_500_000
    hits = np.arange(1, count + 1) % 3 == 0
    scores = np.arange(count, 0, -1, dtype=np.float32)  # exact up to 2**24
    # float32 sums are off by 1e-8 at best.
    assert ap.average_precision(scores, hits) == pytest.approx(1 / 3, abs=1e-13)


def test_a_score_that_is_nan_is_named():
    with pytest.raises(ValueError, match=r"scores\[1\] is NaN"):
        ap.average_precision([0.1, np.nan], [1, 0])


def test_perfect_video_with_25_labels_scores_four_fifths():
    # 20 of 25 positives can be predicted, each at precision 1.
    labels = np.array([[1] * 25 + [0] * 5])
    probabilities = np.linspace(0.9, 0.1, 30)[None]
    metrics = accumulate(probabilities, labels, 20, [slice(None)])
    assert metrics.gap == pytest.approx(0.8, abs=1e-15)
    # 20 of the 25 classes with positives are found, 30 classes in all.
    assert metrics.map == pytest.approx(20 / 25, abs=1e-15)
    assert metrics.map_all_classes == pytest.approx(20 / 30, abs=1e-15)
    assert metrics.perr == 1  # it looks at 25 classes, not 20
    assert metrics.hit_at_one == 1


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("k", [1, 4, 9, 20])
@pytest.mark.parametrize("levels", [1, 3, 40])
def test_all_metrics_follow_their_definitions(seed, k, levels):
    """With more or fewer ties, within videos, within classes and across batches."""
    probabilities, labels = random_videos(seed, levels=levels)
    metrics = accumulate(probabilities, labels, k, [slice(0, 33), slice(33, 60)])

    pool, per_class, hit_at_one, perr = [], {c: [] for c in range(9)}, [], []
    for row, truth in zip(probabilities.astype(np.float32), labels, strict=True):
        best = sorted(range(9), key=lambda c, row=row: -row[c])
        for c in best[:k]:
            pool.append((float(row[c]), int(truth[c])))
            per_class[c].append(pool[-1])
        n = truth.sum()
        hit_at_one.append(truth[best[0]])
        perr.append(np.mean(truth[best[:n]]) if n else 0)
    positives = labels.sum(axis=0)
    precisions = [
        defined_average_precision(*zip(*per_class[c], strict=True), positives[c])
        if per_class[c] else 0.0
        for c in range(9) if positives[c]
    ]  # fmt: skip

    # float64 sums of at most 540 terms.
    gap = defined_average_precision(*zip(*pool, strict=True), labels.sum())
    assert metrics.gap == pytest.approx(gap, abs=1e-12)
    assert len(precisions) < 9  # class 0 has no positives
    assert metrics.map == pytest.approx(np.mean(precisions), abs=1e-12)
    assert metrics.map_all_classes == pytest.approx(sum(precisions) / 9, abs=1e-12)
    assert metrics.hit_at_one == np.mean(hit_at_one)
    # PERR comes in as float32 of each video.
    assert metrics.perr == pytest.approx(np.mean(perr), abs=1e-7)
    assert metrics.num_videos == 60


@pytest.mark.parametrize("seed", SEEDS)
def test_neither_batches_nor_order_change_a_bit(seed):
    probabilities, labels = random_videos(seed, levels=6)  # many ties
    random = np.random.default_rng(seed)
    # Magnitudes so far apart that a running float64 sum depends on its order.
    loss = np.float32(random.random(60) * 10.0 ** random.integers(-12, 12, 60))
    whole = accumulate(probabilities, labels, 4, [slice(None)], loss=loss)
    order = random.permutation(60)
    for batches in (
        [[i] for i in range(60)],
        [order],
        np.array_split(order, 7),
        [order[:59], order[59:]],
    ):
        assert accumulate(probabilities, labels, 4, batches, loss=loss) == whole


def test_padding_rows_do_not_change_the_result():
    probabilities, labels = random_videos(0)
    loss = np.linspace(0, 3, 60).astype(np.float32)
    whole = accumulate(probabilities, labels, 4, [slice(None)], loss=loss)

    weights = np.ones(60, np.float32)
    weights[[3, 17, 59]] = 0
    rows = np.cumsum(weights).astype(int) - 1
    batch = predict(probabilities[rows], labels[rows], 4, loss=loss[rows])
    # The values of a padding row must not matter, not even NaN.
    batch.scores[weights == 0] = np.nan
    batch.perr[weights == 0] = np.nan
    counted = labels[rows][weights > 0]
    accumulator = ap.MetricsAccumulator(9)
    accumulator.update(batch._replace(weights=weights, class_positives=counted))
    nothing = dict(weights=np.zeros(60), class_positives=np.zeros([1, 9]))
    accumulator.update(batch._replace(**nothing))
    shorter = accumulate(probabilities, labels, 4, [rows[weights > 0]], loss=loss)
    assert accumulator.result() == shorter
    assert shorter.num_videos == 57
    assert shorter != whole


def test_loss_is_the_mean_over_videos():
    probabilities, labels = random_videos(0)
    loss = np.full(60, 0.1, np.float32)
    batches = [slice(0, 1), slice(1, 60)]
    metrics = accumulate(probabilities, labels, 4, batches, loss=loss)
    assert metrics.loss == pytest.approx(np.float64(np.float32(0.1)), abs=1e-15)


def test_a_result_between_batches_covers_the_batches_so_far():
    probabilities, labels = random_videos(1)
    accumulator = ap.MetricsAccumulator(9)
    accumulator.update(predict(probabilities[:20], labels[:20], 4))
    assert accumulator.result() == accumulate(probabilities, labels, 4, [slice(0, 20)])
    accumulator.update(predict(probabilities[20:], labels[20:], 4))
    assert accumulator.result() == accumulate(probabilities, labels, 4, [slice(None)])


def test_class_numbers_above_uint16_are_kept_apart():
    # 65536 would wrap to 0 in 16 bits.
    num_classes = 2**16 + 1
    batch = ap.TopPredictions(
        scores=np.array([[0.9], [0.8]]),
        classes=np.array([[0], [2**16]]),
        hits=np.array([[False], [True]]),
        num_labels=np.array([0, 1]),
        perr=np.array([0.0, 1.0]),
        class_positives=np.append(np.zeros(2**16), 1)[np.newaxis],
        weights=np.ones(2),
        loss=np.zeros(2),
    )
    accumulator = ap.MetricsAccumulator(num_classes)
    accumulator.update(batch)
    assert accumulator.result().map == 1


def test_the_caller_may_reuse_its_arrays():
    probabilities, labels = random_videos(2)
    batch = predict(probabilities, labels, 4)
    accumulator = ap.MetricsAccumulator(9)
    accumulator.update(batch)
    for column in batch[:6]:
        column[...] = 0
    assert accumulator.result() == accumulate(probabilities, labels, 4, [slice(None)])


def test_a_prediction_takes_seven_bytes():
    rows, k, batches = 1000, 20, 20
    labels = np.zeros([rows, k], int)
    batch = predict(np.tile(np.linspace(0.9, 0.1, k), [rows, 1]), labels, k)
    accumulator = ap.MetricsAccumulator(3862)
    batch = batch._replace(class_positives=np.zeros([1, 3862]))
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(batches):
            accumulator.update(batch)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    per_prediction = (after - before) / (batches * rows * k)
    # 7 bytes, 4 / 20 more for PERR and for the loss, and Python's objects.
    assert 7 <= per_prediction < 7.5


@pytest.mark.parametrize(
    "video_ids, name",
    [
        (np.array([b"a", b"b", b"Xk\xff7", b"d"], object), r"Xk\\xff7"),
        (None, "number 5"),  # 3 videos came before, this is the third here
    ],
)
def test_nan_is_an_error_that_names_the_video(video_ids, name):
    probabilities, labels = random_videos(0)
    accumulator = ap.MetricsAccumulator(9)
    accumulator.update(predict(probabilities[:3], labels[:3], 4))
    before = accumulator.result()
    weights = np.array([1, 1, 1, 0])
    batch = predict(
        probabilities[3:7], labels[3:7], 4, video_ids=video_ids, weights=weights
    )
    batch = batch._replace(class_positives=labels[3:6])
    batch.scores[2, 1] = np.nan
    with pytest.raises(ValueError, match=f"score of video {name}.* is NaN"):
        accumulator.update(batch)
    assert accumulator.result() == before  # the batch was not half added


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(ValueError, match="no videos"):
        ap.MetricsAccumulator(9).result()
