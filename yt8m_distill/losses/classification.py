"""Losses against the labels. Each gives one number per video, [B]."""

import tensorflow as tf

from yt8m_distill import structures
from yt8m_distill.losses import registered


@registered.LOSSES.register("ce")
def make_cross_entropy() -> registered.Loss:
    """`ce`: L_CE against the labels."""
    return registered.Loss(_against, needs="weighted_labels", compares="logits")


def _against(student: structures.Outputs, target: tuple) -> tf.Tensor:
    return cross_entropy(student, *target)


def cross_entropy(
    student: structures.Outputs, labels: tf.Tensor, weights: tf.Tensor | None = None
) -> tf.Tensor:
    """Binary cross-entropy, summed over the classes (L_CE, eq. 1).

    Keras' loss of that name is the mean over classes, C times smaller.

    Args:
        student: logits is [B, C].
        labels: [B, C], 0 or 1.
        weights: [B, C], of each class of a video; None or [B]: all count 1 here, and
            the training step weighs the videos.

    Returns:
        [B] float32.
    """
    losses = tf.nn.sigmoid_cross_entropy_with_logits(
        labels=labels, logits=student.logits
    )
    if weights is not None and weights.shape.rank == 2:
        losses *= weights
    return tf.reduce_sum(losses, axis=1)
