"""Losses against the labels. Each gives one number a video, [B]."""

import tensorflow as tf

from yt8m_distill import structures
from yt8m_distill.losses import registered


@registered.LOSSES.register("ce")
def make_cross_entropy() -> registered.Loss:
    """`ce`: L_CE against the labels."""
    return registered.Loss(cross_entropy, needs="labels", compares="logits")


def cross_entropy(student: structures.Outputs, labels: tf.Tensor) -> tf.Tensor:
    """Binary cross-entropy, summed over the classes (L_CE, eq. 1).

    Keras' loss of that name is the mean over classes, C times smaller.

    Args:
        student: logits is [B, C].
        labels: [B, C], 0 or 1.

    Returns:
        [B] float32.
    """
    losses = tf.nn.sigmoid_cross_entropy_with_logits(
        labels=labels, logits=student.logits
    )
    return tf.reduce_sum(losses, axis=1)
