"""L_CE: one number a video, summed over the classes."""

import math

import numpy as np
import pytest
import tensorflow as tf

from yt8m_distill import structures
from yt8m_distill.losses import classification

SEEDS = range(3)


def cross_entropy(logits, labels):
    student = structures.Outputs(tf.constant(logits, tf.float32), encoding=None)
    return classification.cross_entropy(student, tf.constant(labels, tf.float32))


def make_case(seed: int, rows: int = 4, classes: int = 6):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, (rows, classes))
    return random.normal(0, 3, (rows, classes)), labels


def test_a_case_by_hand():
    # sigmoid(log 3) = 3/4. Video 0: a hit at 3/4 and a miss at 1/2:
    # -log(3/4) - log(1/2) = log(8/3). Video 1, labels exchanged: log 4 + log 2.
    found = cross_entropy([[math.log(3), 0.0]] * 2, [[1, 0], [0, 1]])
    np.testing.assert_allclose(found, [math.log(8 / 3), math.log(8)], rtol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_it_is_the_sum_over_classes_for_each_video(seed):
    logits, labels = make_case(seed)
    p = 1 / (1 + np.exp(-logits))
    expected = -np.sum(np.where(labels == 1, np.log(p), np.log(1 - p)), axis=1)
    found = cross_entropy(logits, labels)
    assert (found.shape, found.dtype) == ((4,), tf.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_it_starts_at_2677_for_the_3862_classes_of_youtube_8m():
    # Every probability is 1/2, so each class costs log 2 whatever its label:
    # 3862 * 0.693147 = 2676.93. The mean over classes would be 0.69.
    labels = np.zeros((2, 3862))
    labels[0, :5] = 1
    found = cross_entropy(np.zeros((2, 3862)), labels)
    np.testing.assert_allclose(found, [2676.93, 2676.93], atol=0.01)


def test_a_video_does_not_count_for_another():
    logits, labels = make_case(seed=0)
    together = cross_entropy(logits, labels)
    for row in range(len(logits)):
        alone = cross_entropy(logits[row : row + 1], labels[row : row + 1])
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-6)


@pytest.mark.parametrize(
    "logit, label, expected",
    [(100.0, 1, 0.0), (-100.0, 0, 0.0), (100.0, 0, 100.0), (-100.0, 1, 100.0)],
)
def test_it_is_exact_where_the_probability_has_rounded_to_0_or_1(
    logit, label, expected
):
    logits = tf.constant([[logit]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = classification.cross_entropy(
            structures.Outputs(logits, None), tf.constant([[float(label)]])
        )
    np.testing.assert_allclose(loss, [expected], atol=1e-6)
    # d/dlogit = p - y.
    slope = (logit > 0) - label
    np.testing.assert_allclose(tape.gradient(loss, logits), [[slope]], atol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_its_gradient_is_probability_minus_label(seed):
    logits, labels = make_case(seed)
    variable = tf.Variable(logits, dtype=tf.float32)
    with tf.GradientTape() as tape:
        loss = classification.cross_entropy(
            structures.Outputs(variable, None), tf.constant(labels, tf.float32)
        )
    expected = 1 / (1 + np.exp(-logits)) - labels
    np.testing.assert_allclose(tape.gradient(loss, variable), expected, atol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_it_equals_the_focal_loss_of_tensorflow_addons_without_focus(seed):
    addons = pytest.importorskip("tensorflow_addons")
    logits, labels = make_case(seed)
    # gamma 0 takes the focus away, alpha None the class weights: the sum over the
    # last axis of the binary cross-entropy is left.
    expected = addons.losses.sigmoid_focal_crossentropy(
        tf.constant(labels, tf.float32),
        tf.constant(logits, tf.float32),
        alpha=None,
        gamma=0.0,
        from_logits=True,
    )
    np.testing.assert_allclose(cross_entropy(logits, labels), expected, rtol=1e-5)
