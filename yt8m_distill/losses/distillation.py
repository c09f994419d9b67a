"""Losses against the teacher. Each returns one number per video, [B].

The teacher is a constant in all of them: no gradient reaches it.
"""

import dataclasses

import tensorflow as tf

from yt8m_distill import settings, structures
from yt8m_distill.losses import registered


@registered.LOSSES.register("rep")
def make_representation_loss() -> registered.Loss:
    """`rep`: L_REP between the final encodings."""
    return registered.Loss(representation_loss, needs="guide", compares="encoding")


@registered.LOSSES.register("rep_intermediate")
def make_intermediate_loss() -> registered.Loss:
    """`rep_intermediate`: L_REP^I between the states at the sampled frames."""
    return registered.Loss(intermediate_loss, needs="guide_states", compares="states")


@registered.LOSSES.register("pred")
def make_prediction_loss(
    distance: str = "binary_kl", temperature: float = 1.0
) -> registered.Loss:
    """`pred`: L_PRED, the distance d of the predictions.

    Args:
        distance: `binary_kl`, `class_kl` or `squared`.
        temperature: divides both networks' logits.
    """
    if distance not in DISTANCES:
        raise ValueError(
            f"distance={distance!r} is not one of "
            f"{', '.join(settings.PREDICTION_DISTANCES)}."
        )
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} is not above 0.")

    def prediction_loss(student, teacher):
        teacher_logits = tf.stop_gradient(teacher.logits)
        return DISTANCES[distance](
            student.logits / temperature, teacher_logits / temperature
        )

    return registered.Loss(prediction_loss, needs="guide", compares="logits")


@registered.LOSSES.register("self_pred")
def make_self_prediction_loss(
    distance: str = "binary_kl", temperature: float = 1.0
) -> registered.Loss:
    """`self_pred`: `pred` against the student's own predictions on the most frames.

    For a student for several k, of Yu & Huang, Universally Slimmable Networks (2019).
    """
    return dataclasses.replace(
        make_prediction_loss(distance, temperature), needs="self"
    )


def _squared_distance(
    what: str, student: tf.Tensor, teacher: tf.Tensor, axes: list[int]
) -> tf.Tensor:
    if student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            f"--student_loss: the student's {what} has width {student.shape[-1]}, the "
            f"teacher's {teacher.shape[-1]}."
        )
    return tf.reduce_sum(tf.square(student - tf.stop_gradient(teacher)), axes)


def representation_loss(
    student: structures.Outputs, teacher: structures.Outputs
) -> tf.Tensor:
    """Squared distance between the two video encodings (L_REP, eq. 2).

    Args:
        student: encoding (E_S) is [B, E], before dropout.
        teacher: encoding (E_T) is [B, E]; E must match the student's.

    Returns:
        [B] float32, summed over E, not averaged: the weight in the objective is
        per video and does not depend on E.

    Raises:
        ValueError: if the encodings have different widths.
    """
    return _squared_distance("encoding", student.encoding, teacher.encoding, [1])


def intermediate_loss(
    student: structures.Outputs, teacher: structures.Outputs
) -> tf.Tensor:
    """Squared distance of the states at the sampled frames (L_REP^I, eq. 3).

    Args:
        student: states (I_S) is [B, S, M], 0 after the valid sampled frames.
        teacher: states (I_T) at the same frames, of the same form.

    Returns:
        [B] float32, summed over the sampled frames and M.

    Raises:
        ValueError: if the states have different widths.
    """
    return _squared_distance(
        "intermediate state", student.states, teacher.states, [1, 2]
    )


def binary_kl(student_logits: tf.Tensor, teacher_logits: tf.Tensor) -> tf.Tensor:
    """Sum over classes of KL(Bernoulli(p_T) || Bernoulli(p_S)): [B, C] → [B]."""
    # 1 - p would lose precision for p near 1.
    p, not_p = tf.sigmoid(teacher_logits), tf.sigmoid(-teacher_logits)
    log_sigmoid = tf.math.log_sigmoid
    yes = log_sigmoid(teacher_logits) - log_sigmoid(student_logits)
    no = log_sigmoid(-teacher_logits) - log_sigmoid(-student_logits)
    return tf.reduce_sum(p * yes + not_p * no, axis=1)


def class_kl(student_logits: tf.Tensor, teacher_logits: tf.Tensor) -> tf.Tensor:
    """KL of the probabilities renormalized over the classes: [B, C] → [B]."""
    log_p = tf.nn.log_softmax(tf.math.log_sigmoid(teacher_logits))
    log_q = tf.nn.log_softmax(tf.math.log_sigmoid(student_logits))
    return tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=1)


def squared(student_logits: tf.Tensor, teacher_logits: tf.Tensor) -> tf.Tensor:
    """Sum over classes of (p_T - p_S)^2: [B, C] → [B]."""
    difference = tf.sigmoid(teacher_logits) - tf.sigmoid(student_logits)
    return tf.reduce_sum(tf.square(difference), axis=1)


DISTANCES = {"binary_kl": binary_kl, "class_kl": class_kl, "squared": squared}
