"""Losses against the teacher. Each returns one number per video, [B].

The teacher is a constant in all of them: no gradient reaches it.
"""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from yt8m_distill import settings, structures
from yt8m_distill.losses import registered


@registered.LOSSES.register("rep")
def make_representation_loss(normalized: bool = False) -> registered.Loss:
    """`rep`: L_REP between the final encodings.

    Args:
        normalized: compare unit vectors: 2 - 2 cos, in [0, 4], independent of the
            widths and scales of the encodings.
    """
    fn = _normalized(representation_loss, "encoding", normalized)
    return registered.Loss(fn, needs="guide", compares="encoding")


@registered.LOSSES.register("rep_intermediate")
def make_intermediate_loss(normalized: bool = False) -> registered.Loss:
    """`rep_intermediate`: L_REP^I between the states at the sampled frames.

    Args:
        normalized: compare unit vectors, one per frame.
    """
    fn = _normalized(intermediate_loss, "states", normalized)
    return registered.Loss(fn, needs="guide_states", compares="states")


@registered.LOSSES.register("relations")
def make_relation_loss() -> registered.Loss:
    """`relations`: compares the cosines between the videos of a batch."""
    return registered.Loss(
        lambda student, target: relation_loss(student, *target),
        needs="weighted_guide",
        compares="encoding",
    )


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

    Args:
        distance, temperature: see `pred`.
    """
    return dataclasses.replace(
        make_prediction_loss(distance, temperature), needs="self"
    )


def _normalized(fn: Callable, field: str, normalized: bool) -> Callable:
    """The loss on unit vectors of a field of both networks' Outputs."""
    if not isinstance(normalized, bool):
        raise ValueError(f"normalized={normalized!r} is not True or False.")
    if not normalized:
        return fn

    def unit(outputs: structures.Outputs) -> structures.Outputs:
        return outputs._replace(**{field: _unit(getattr(outputs, field))})

    return lambda student, teacher: fn(unit(student), unit(teacher))


def _unit(x: tf.Tensor) -> tf.Tensor:
    """Vectors of length 1; 0 stays 0, with gradient 0."""
    return tf.math.l2_normalize(x, axis=-1, epsilon=1e-12)


def _of_all_replicas(*rows: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Gathers rows [B / replicas, ...] from all replicas, with gradients."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return rows
    # One by one: TensorFlow (2.21) has no gradient for a list.
    return tuple(context.all_gather(x, axis=0) for x in rows)


def _check_widths(what: str, student: tf.Tensor, teacher: tf.Tensor) -> None:
    if student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            f"The student's {what} has width {student.shape[-1]}, the teacher's "
            f"{teacher.shape[-1]}."
        )


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
    _check_widths("encoding", student.encoding, teacher.encoding)
    difference = student.encoding - tf.stop_gradient(teacher.encoding)
    return tf.reduce_sum(tf.square(difference), axis=1)


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
    _check_widths("intermediate state", student.states, teacher.states)
    difference = student.states - tf.stop_gradient(teacher.states)
    return tf.reduce_sum(tf.square(difference), axis=[1, 2])


def relation_loss(
    student: structures.Outputs, teacher: structures.Outputs, weights: tf.Tensor
) -> tf.Tensor:
    """Mean over the other videos j of (cos(S_i, S_j) - cos(T_i, T_j))^2.

    S and T are the encodings of the student and the teacher. The other videos are those
    of the global batch, gathered from all replicas, so the result does not depend on
    the number of replicas. Widths may differ; the loss is invariant to rotations.

    Args:
        student, teacher: encoding is [B, E] of this replica's rows.
        weights: [B], 0 for padding rows, which are ignored.

    Returns:
        [B] float32, in [0, 4].
    """
    one, other = _unit(student.encoding), _unit(tf.stop_gradient(teacher.encoding))
    every_one, every_other, weights = _of_all_replicas(one, other, weights)
    difference = tf.matmul(one, every_one, transpose_b=True)
    difference -= tf.matmul(other, every_other, transpose_b=True)  # 0 where i is j.
    squares = tf.where(weights > 0, tf.square(difference), 0.0)
    count = tf.reduce_sum(tf.cast(weights > 0, tf.float32)) - 1
    return tf.reduce_sum(squares, axis=1) / tf.maximum(count, 1.0)


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
