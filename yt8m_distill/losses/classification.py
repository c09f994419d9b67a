"""Losses against the labels. Each gives one number per video, [B]."""

import os
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from yt8m_distill import structures, vocabulary
from yt8m_distill.losses import registered


@registered.LOSSES.register("ce")
def make_cross_entropy(class_counts: str = "", power: float = 0.5) -> registered.Loss:
    """`ce`: L_CE against the labels, with a weight for each class if there are counts.

    Args:
        class_counts: a CSV with the columns `class` and `num_videos`, such as that of
            `yt8m-inspect --per_class_file`; empty: all classes weigh 1.
        power: see class_weights; 0: all classes weigh 1; 1: as many positives count for
            each.
    """
    if not 0 <= power <= 10:
        raise ValueError(f"power={power} is not in 0..10.")
    counts = None
    if class_counts:
        path = os.path.expanduser(class_counts)
        counts = vocabulary.read_counts(path, f"class_counts={class_counts}")

    def of_labels(student, target):
        labels, weights = target
        if counts is None:
            return cross_entropy(student, labels, weights)
        of_class = class_weights(counts, power, student.logits.shape[-1])
        of_class = tf.constant(of_class[np.newaxis])  # [1, C]
        has_classes = weights is not None and weights.shape.rank == 2
        return cross_entropy(
            student, labels, of_class * weights if has_classes else of_class
        )

    return registered.Loss(of_labels, needs="weighted_labels", compares="logits")


@registered.LOSSES.register("video_ce")
def make_video_cross_entropy() -> registered.Loss:
    """`video_ce`: L_CE of a segment against the labels of its video, a second task.

    Over the classes that do not count among the segment's own labels: a rating says
    more of a segment than the video's label does.
    """

    def of_video(student, target):
        video_labels, weights = target
        rest = tf.cast(tf.equal(weights, 0), tf.float32)
        return cross_entropy(student, video_labels, rest)

    return registered.Loss(of_video, needs="video_labels", compares="logits")


@registered.LOSSES.register("asymmetric")
def make_asymmetric_loss(
    gamma_negative: float = 4.0, gamma_positive: float = 1.0, margin: float = 0.05
) -> registered.Loss:
    """`asymmetric`: the cross-entropy that passes over easy negatives.

    Summed over the classes (Ridnik et al., ICCV 2021), with p = sigmoid(logit) and
    q = max(p - margin, 0):
    -y (1 - p)^gamma_positive log p - (1 - y) q^gamma_negative log(1 - q).
    A negative below the margin costs nothing. Without focus and margin it is the
    cross-entropy.
    """
    for name, gamma in (("negative", gamma_negative), ("positive", gamma_positive)):
        if not 0 <= gamma <= 100:
            raise ValueError(f"gamma_{name}={gamma} is not in 0..100.")
    if not 0 <= margin < 1:
        raise ValueError(f"margin={margin} is not in [0, 1).")

    def of_labels(student, target):
        labels, weights = target
        log_p, log_not_p = (
            tf.math.log_sigmoid(x) for x in (student.logits, -student.logits)
        )
        positive = tf.exp(gamma_positive * log_not_p) * log_p
        log_not_q, focus = log_not_p, tf.exp(gamma_negative * log_p)
        if margin:
            q = tf.sigmoid(student.logits) - margin
            counts = q > 0
            q = tf.where(counts, q, 0.5)  # Anything with finite slopes.
            log_not_q = tf.where(counts, tf.math.log1p(-q), 0.0)
            focus = tf.pow(q, gamma_negative)
        losses = -labels * positive - (1 - labels) * focus * log_not_q
        return _summed(losses, weights)

    return registered.Loss(of_labels, needs="weighted_labels", compares="logits")


def class_weights(
    counts: Mapping[int, int], power: float, num_classes: int
) -> np.ndarray:
    """[C] float32: n_c ** -power, of mean 1 over the classes; n_c is 1 at least.

    One weight for the positives and the negatives of a class: its best probabilities
    stay what they are, and rare classes count more against frequent ones.

    Raises:
        ValueError: if there are counts of more classes.
    """
    if max(counts, default=0) >= num_classes:
        raise ValueError(
            f"class_counts has class {max(counts)}, the run "
            f"--num_classes={num_classes}."
        )
    found = np.array([max(counts.get(c, 0), 1) for c in range(num_classes)], np.float64)
    weights = found**-power
    return (weights / weights.mean()).astype(np.float32)


def _summed(losses: tf.Tensor, weights: tf.Tensor | None) -> tf.Tensor:
    """[B, C] → [B], where each class of a video counts by its weight, if it has one."""
    if weights is not None and weights.shape.rank == 2:
        losses *= weights
    return tf.reduce_sum(losses, axis=1)


def cross_entropy(
    student: structures.Outputs,
    labels: tf.Tensor,
    weights: tf.Tensor | None = None,
) -> tf.Tensor:
    """Binary cross-entropy, summed over the classes (L_CE, eq. 1).

    Keras' loss of that name is the mean over classes, C times smaller.

    Args:
        student: logits is [B, C].
        labels: [B, C], in [0, 1].
        weights: [B, C] or [1, C], of each class of a video; None or [B]: all count 1
            here, and the training step weighs the videos.

    Returns:
        [B] float32.
    """
    losses = tf.nn.sigmoid_cross_entropy_with_logits(
        labels=labels, logits=student.logits
    )
    return _summed(losses, weights)
