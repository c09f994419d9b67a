"""The part of the metrics that runs in the graph: top-k classes and hits.

Of [B, C] probabilities, only k numbers per video and one [C] vector per batch leave the
graph, for `average_precision.MetricsAccumulator`.
"""

import tensorflow as tf

from yt8m_distill.evaluation import average_precision


def top_predictions(
    probabilities: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor, k: int
) -> average_precision.TopPredictions:
    """The top k classes of each video, which of them are labels, and the PERR.

    Of classes with equal scores the lower index comes first. A video with a NaN in any
    class gets NaN for all its scores: the position of a NaN in a sort is undefined, so
    it could otherwise stay outside the top k and go unnoticed.

    Args:
        probabilities: [B, C] floating point; C must be static.
        labels: [B, C] multi-hot, 0 or 1, or bool.
        weights: [B], 1 for a video, 0 for a padding row.
        k: predictions per video; more than C means C.

    Returns:
        TopPredictions with scores, classes and hits [B, min(k, C)], num_labels and
        perr [B], class_positives [1, C] without padding rows, and weights; the others
        are None. `perr` covers the top n of a video with n labels, even if n > k; it is
        0 for a video without labels.

    Raises:
        ValueError: if k is less than 1.
    """
    if k < 1:
        raise ValueError(f"top_k={k} is less than 1.")
    k = min(k, probabilities.shape[-1])
    probabilities = tf.cast(probabilities, tf.float32)
    labels = tf.cast(labels, tf.float32)
    weights = tf.cast(weights, tf.float32)
    num_labels = tf.cast(tf.reduce_sum(labels, axis=1), tf.int32)

    # One sort for both, deep enough for the video with the most labels.
    depth = tf.maximum(k, tf.reduce_max(num_labels))
    is_nan = tf.math.is_nan(probabilities)
    scores, classes = tf.math.top_k(
        tf.where(is_nan, -1.0, probabilities), depth
    )  # [B, depth]
    undefined = tf.reduce_any(is_nan, axis=1, keepdims=True)
    scores = tf.where(undefined, float("nan"), scores)
    hits = tf.gather(labels, classes, batch_dims=1)
    in_top_n = tf.sequence_mask(num_labels, depth, dtype=tf.float32)
    perr = tf.math.divide_no_nan(
        tf.reduce_sum(hits * in_top_n, axis=1), tf.cast(num_labels, tf.float32)
    )

    def first_k(x: tf.Tensor) -> tf.Tensor:
        # Restores the static width, which the dynamic depth has lost.
        return tf.ensure_shape(x[:, :k], [None, k])

    return average_precision.TopPredictions(
        scores=first_k(scores),
        classes=first_k(classes),
        hits=first_k(hits) > 0,
        num_labels=num_labels,
        perr=perr,
        class_positives=tf.reduce_sum(labels * weights[:, None], axis=0, keepdims=True),
        weights=weights,
    )
