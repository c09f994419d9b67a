"""L_CE: one number per video, summed over the classes."""

import math

import numpy as np
import pytest
import tensorflow as tf

from yt8m_distill import structures
from yt8m_distill.losses import classification, registered

SEEDS = range(3)


def cross_entropy(logits, labels):
    student = structures.Outputs(
        tf.convert_to_tensor(logits, tf.float32), encoding=None
    )
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
def test_it_is_the_sum_over_classes_with_a_gradient_of_probability_minus_label(seed):
    logits, labels = make_case(seed)
    p = 1 / (1 + np.exp(-logits))
    expected = -np.sum(np.where(labels == 1, np.log(p), np.log(1 - p)), axis=1)
    variable = tf.Variable(logits, dtype=tf.float32)
    with tf.GradientTape() as tape:
        found = cross_entropy(variable, labels)
    assert (found.shape, found.dtype) == ((4,), tf.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(tape.gradient(found, variable), p - labels, atol=1e-6)


def test_it_starts_at_2677_for_the_3862_classes_of_youtube_8m():
    # Every probability is 1/2, so each class costs log 2 whatever its label:
    # 3862 * 0.693147 = 2676.93. The mean over classes would be 0.69.
    labels = np.zeros((2, 3862))
    labels[0, :5] = 1
    found = cross_entropy(np.zeros((2, 3862)), labels)
    np.testing.assert_allclose(found, [2676.93, 2676.93], atol=0.01)


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
        loss = cross_entropy(logits, [[label]])
    np.testing.assert_allclose(loss, [expected], atol=1e-6)
    # d/dlogit = p - y.
    slope = (logit > 0) - label
    np.testing.assert_allclose(tape.gradient(loss, logits), [[slope]], atol=1e-6)


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


# ----------------------------------------------------------------- imbalance


def losses(spec: str, logits, labels, weights=None):
    """A registered loss on plain numbers."""
    student = structures.Outputs(tf.constant(logits, tf.float32), encoding=None)
    given = weights if weights is None else tf.constant(weights, tf.float32)
    found = registered.LOSSES.create(spec).fn(
        student, (tf.constant(labels, tf.float32), given)
    )
    assert found.dtype == tf.float32
    return found


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "focus", [(4, 1, 0.05), (2.5, 0, 0.0), (0, 0.5, 0.2), (0, 0, 0.0)]
)
def test_the_asymmetric_loss_equals_the_papers_formula(seed, focus):
    logits, labels = make_case(seed)
    random = np.random.default_rng(seed)
    labels = labels * random.uniform(0, 1, labels.shape)  # --mix gives such ones.
    weights = random.uniform(0, 2, labels.shape)
    negative, positive, margin = focus
    p = 1 / (1 + np.exp(-logits))
    q = np.maximum(p - margin, 0)
    expected = -labels * (1 - p) ** positive * np.log(p)
    expected -= (1 - labels) * q**negative * np.log(1 - q)
    spec = (
        f"asymmetric(gamma_negative={negative}, gamma_positive={positive}, "
        f"margin={margin})"
    )
    found = losses(spec, logits, labels)
    np.testing.assert_allclose(found, expected.sum(axis=1), rtol=2e-5, atol=1e-6)
    found = losses(spec, logits, labels, weights)
    expected = (weights * expected).sum(axis=1)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("margin", [0.0, 0.05])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 4.0])
def test_the_asymmetric_loss_has_finite_slopes_everywhere(gamma, margin):
    logits = tf.constant([[-200.0, -20.0, math.log(0.05 / 0.95), 0.0, 20.0, 200.0]])
    loss = registered.LOSSES.create(
        f"asymmetric(gamma_negative={gamma}, gamma_positive={gamma}, margin={margin})"
    )
    for label in (0.0, 1.0):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            student = structures.Outputs(logits, None)
            value = loss.fn(student, (tf.fill([1, 6], label), None))
        assert np.isfinite(value).all()
        assert np.isfinite(tape.gradient(value, logits)).all()


def test_classes_weigh_by_their_counts(tmp_path):
    path = tmp_path / "counts.csv"
    path.write_text("class,name,num_videos\n0,a,100\n1,b,4\n2,c,0\n")
    logits, labels = make_case(seed=2, classes=3)
    p = 1 / (1 + np.exp(-logits))
    each = -np.where(labels == 1, np.log(p), np.log(1 - p))
    # 100, 4 and (for none) 1 to the power of -1/2, of mean 1.
    by_class = np.array([0.1, 0.5, 1.0]) / (1.6 / 3)
    spec = f"ce(class_counts={str(path)!r})"
    found = losses(spec, logits, labels)
    np.testing.assert_allclose(found, (by_class * each).sum(axis=1), rtol=1e-5)
    weights = np.random.default_rng(0).uniform(0, 2, each.shape)
    found = losses(spec, logits, labels, weights)
    expected = (by_class * weights * each).sum(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # Weights of videos are the training step's.
    found = losses(spec, logits, labels, [1.0, 0.0, 1.0, 0.0])
    np.testing.assert_allclose(found, (by_class * each).sum(axis=1), rtol=1e-5)
    even = losses(f"ce(class_counts={str(path)!r}, power=0.0)", logits, labels)
    np.testing.assert_allclose(even, each.sum(axis=1), rtol=1e-5)
    with pytest.raises(ValueError, match="--num_classes=2"):
        losses(spec, logits[:, :2], labels[:, :2])


@pytest.mark.parametrize(
    "spec, named",
    [
        ("asymmetric(margin=1.0)", "margin=1.0"),
        ("asymmetric(gamma_negative=-1)", "gamma_negative=-1"),
        ("ce(power=-1)", "power=-1"),
        ("ce(class_counts='nowhere.csv')", "nowhere.csv"),
    ],
)
def test_arguments_that_make_no_loss_are_named(spec, named):
    with pytest.raises(ValueError, match=named):
        registered.LOSSES.create(spec)
