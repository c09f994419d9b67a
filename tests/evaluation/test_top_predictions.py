"""The in-graph half of the metrics."""

import numpy as np
import pytest
import tensorflow as tf

from yt8m_distill.evaluation import average_precision, top_predictions

SEEDS = range(4)


def run(probabilities, labels, k, weights=None, dtype=tf.float32):
    """As the evaluator does: inside a tf.function, numpy out."""
    weights = np.ones(len(labels)) if weights is None else weights

    @tf.function
    def step(probabilities, labels, weights):
        return top_predictions.top_predictions(probabilities, labels, weights, k)

    result = step(
        tf.constant(probabilities, dtype),
        tf.constant(labels, tf.float32),
        tf.constant(weights, tf.float32),
    )
    return result._replace(
        **{n: v.numpy() for n, v in result._asdict().items() if v is not None}
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("k", [1, 5, 12, 20])
def test_every_column_follows_its_definition(seed, k):
    random = np.random.default_rng(seed)
    labels = (random.random((16, 12)) < 0.3).astype(np.float32)
    labels[0], labels[1] = 0, 1  # none, and all
    probabilities = np.float32(random.integers(0, 9, labels.shape) / 8)  # ties
    weights = np.float32(random.random(16) < 0.8)
    result = run(probabilities, labels, k, weights)
    for i, (row, truth) in enumerate(zip(probabilities, labels, strict=True)):
        # Highest first; of equal scores the lower class first.
        best = sorted(range(12), key=lambda c, row=row: (-row[c], c))
        n = int(truth.sum())
        assert result.classes[i].tolist() == best[:k]
        assert result.scores[i].tolist() == row[best[:k]].tolist()
        assert result.hits[i].tolist() == (truth[best[:k]] == 1).tolist()
        assert result.num_labels[i] == n
        expected = truth[best[:n]].sum() / n if n else 0
        assert result.perr[i] == pytest.approx(expected, abs=1e-7)  # float32
    np.testing.assert_array_equal(
        result.class_positives, [labels[weights == 1].sum(axis=0)]
    )


def test_a_nan_anywhere_marks_its_video_and_no_other():
    # Class 2 of video 1 would be far from the top 1.
    probabilities = [[0.3, 0.9, 0.1], [0.9, 0.3, np.nan], [0.2, 0.1, 0.8]]
    result = run(probabilities, np.zeros([3, 3]), k=1)
    np.testing.assert_array_equal(np.isnan(result.scores), [[False], [True], [False]])
    ids = np.array([b"first", b"second", b"third"], object)
    accumulator = average_precision.MetricsAccumulator(3)
    with pytest.raises(ValueError, match="video second is NaN"):
        accumulator.update(result._replace(video_ids=ids, loss=np.zeros(3)))


def test_half_precision_leaves_as_float32():
    result = run([[0.25, 0.75]], [[0, 1]], k=2, dtype=tf.bfloat16)
    assert result.scores.dtype == np.float32
    np.testing.assert_array_equal(result.scores, [[0.75, 0.25]])


def test_k_below_one_is_refused():
    with pytest.raises(ValueError, match="top_k=0 is less than 1"):
        run([[0.5]], [[1]], k=0)
