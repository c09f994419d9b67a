"""The layers that networks share."""

import numpy as np
import tensorflow as tf

from yt8m_distill.models import layers


def test_the_first_batches_weigh_alike_in_the_moving_averages_of_batch_norm():
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
