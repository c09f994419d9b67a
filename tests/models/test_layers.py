"""The layers that networks share."""

import numpy as np
import tensorflow as tf

from yt8m_distill.models import layers


def test_the_first_batches_have_equal_weight_in_the_moving_averages():
    """Momentum 0.75: the plain mean of the first 4 batches, then a moving average."""
    norm = layers.BatchNorm(2, momentum=0.75)
    random = np.random.default_rng(0)
    batches = random.normal(3, 2, size=(7, 5, 2)).astype(np.float32)
    found = np.stack([batches.mean(axis=1), batches.var(axis=1)], axis=1)
    for number, batch in enumerate(batches, start=1):
        norm(tf.constant(batch), training=True)
        if number <= 4:
            expected = found[:number].mean(axis=0)
        else:
            expected = 0.75 * expected + 0.25 * found[number - 1]
        moving = [norm.moving_mean.numpy(), norm.moving_variance.numpy()]
        np.testing.assert_allclose(moving, expected, rtol=1e-5)


def masked_batch():
    """x [4, 6, 3] around 1000, 1 wide, with valid rows [4, 6] and NaN after them."""
    valid = np.arange(6) < np.array([[4], [0], [6], [1]])
    x = np.random.default_rng(0).normal(1000, 1, (4, 6, 3)).astype(np.float32)
    return np.where(valid[..., np.newaxis], x, np.nan).astype(np.float32), valid


def test_batch_norm_takes_the_statistics_of_valid_rows_without_cancellation():
    norm = layers.BatchNorm(3, epsilon=1e-3)
    norm.gamma.assign([1.0, 2.0, 3.0])
    norm.beta.assign([0.0, 5.0, -5.0])
    x, valid = masked_batch()
    found = norm(tf.constant(x), valid, training=True).numpy()[valid]
    rows = x[valid].astype(np.float64)
    expected = (rows - rows.mean(axis=0)) / np.sqrt(rows.var(axis=0) + 1e-3)
    # Numbers near 1000 are 6e-5 apart; a difference of squares would be off by 0.1.
    expected = expected * [1, 2, 3] + [0, 5, -5]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    np.testing.assert_allclose(norm.moving_variance, rows.var(axis=0), rtol=1e-3)


def test_gradients_pass_through_the_statistics_of_batch_norm():
    """What a shift or a scale of all valid rows does not change has no gradient."""
    norm = layers.BatchNorm(3, epsilon=0.0)
    x, valid = masked_batch()
    x = tf.constant(np.where(valid[..., np.newaxis], x - 1000, 0), tf.float32)
    weights = np.random.default_rng(1).normal(size=x.shape) * valid[..., np.newaxis]
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(norm(x, valid, training=True) * weights)
    gradient = tape.gradient(loss, x).numpy()
    assert not np.any(gradient[~valid]) and np.abs(gradient[valid]).max() > 0.1
    np.testing.assert_allclose(gradient.sum(axis=(0, 1)), 0, atol=1e-5)
    centered = x.numpy() - x.numpy()[valid].mean(axis=0)
    np.testing.assert_allclose((gradient * centered).sum(axis=(0, 1)), 0, atol=1e-5)


def test_a_training_step_alone_moves_the_averages():
    norm = layers.BatchNorm(3)
    before = [v.numpy() for v in norm.non_trainable_weights]
    norm(tf.ones([2, 3]))
    for variable, value in zip(norm.non_trainable_weights, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_numbers_below_the_rate_drop_and_the_rest_is_scaled_up(monkeypatch):
    drawn = tf.constant([[0.0, 0.2499, 0.25, 0.99]])
    monkeypatch.setattr(tf.random, "uniform", lambda shape: drawn)
    found = layers.dropout(tf.constant([[1.0, 2.0, 3.0, 4.0]]), 0.25)
    np.testing.assert_allclose(found, [[0, 0, 3 / 0.75, 4 / 0.75]], rtol=1e-6)


def test_dropout_without_given_noise_is_drawn_from_the_global_generator():
    drawn = []
    for seed in (1, 1, 2):
        tf.random.set_seed(seed)
        drawn.append(layers.dropout(tf.ones([50, 5]), 0.5).numpy())
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.any(drawn[0] != drawn[2])
