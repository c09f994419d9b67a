"""The part of the metrics that runs in the graph: top k classes and hits.

Of [B, C] probabilities only k numbers a video leave the graph, and one [C]
vector a batch; `average_precision.MetricsAccumulator` takes them from there.
"""

import tensorflow as tf

from yt8m_distill.evaluation import average_precision

TopPredictions = average_precision.TopPredictions


def top_predictions(
    probabilities: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor, k: int
) -> TopPredictions:
    """The best k classes of each video, which of them are labels, and its PERR.

    Of classes with equal scores the lower comes first. A video with a NaN in any
    class gets NaN for all its scores: where a sort puts a NaN is undefined, so it
    could otherwise stay outside the top k and go unnoticed.

    Args:
        probabilities: [B, C] floating point.
        labels: [B, C] multi-hot, 0 or 1, or bool.
        weights: [B], 1 for a video, 0 for a filling row.
        k: predictions a video; more than C means C, which must be static.

    Returns:
        TopPredictions with scores, classes and hits [B, min(k, C)], num_labels and
        perr [B], class_positives [C] without the rows of weight 0, and weights.
        `perr` looks at a video's top n for n labels, also where n > k; it is 0 for
        a video without labels. `loss` and `video_ids` are None.

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

    # One sort serves both: as deep as the video with the most labels needs.
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
        # The dynamic depth hid the static width.
        return tf.ensure_shape(x[:, :k], [None, k])

    return TopPredictions(
        scores=first_k(scores),
        classes=first_k(classes),
        hits=first_k(hits) > 0,
        num_labels=num_labels,
        perr=perr,
        class_positives=tf.reduce_sum(labels * weights[:, None], axis=0),
        weights=weights,
    )
