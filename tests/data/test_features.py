"""Dequantization, padding and normalization of frames."""

import numpy as np
import pytest
import tensorflow as tf

from yt8m_distill.data import features, records

# x * 4 / 255 + 4 / 512 - 2 by hand: 4 / 512 = .0078125; 128 * 4 / 255 = 2.0078431.
GOLDEN = {0: -1.9921875, 128: 0.0156556, 255: 2.0078125}


def test_golden_values_of_dequantization():
    frames = tf.constant([[list(GOLDEN)]], tf.uint8)  # [1, 1, 3]
    expected = [[list(GOLDEN.values())]]
    ours = features.dequantize(frames, tf.constant([1]))
    # Half of the last digit written above.
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)
    reference = records.dequantize(np.array([[list(GOLDEN)]], np.uint8))
    np.testing.assert_allclose(reference, expected, rtol=0, atol=1e-6)


def test_tensorflow_and_numpy_dequantize_every_byte_alike():
    every = np.arange(256, dtype=np.uint8).reshape(1, 1, 256)
    ours = features.dequantize(tf.constant(every), tf.constant([1]))
    # One rounding of float32 at 2 is 1.2e-7 (a fused multiply-add saves it).
    np.testing.assert_allclose(ours, records.dequantize(every), rtol=0, atol=2.5e-7)


def test_golden_values_of_quantization():
    # (v + 2) * 63.75, truncated: 127.5 → 127; 191.25 → 191; outside is clipped.
    values = np.array([-5.0, -2.0, 0.0, 1.0, 2.0, 5.0])
    assert records.quantize(values).tolist() == [0, 0, 127, 191, 255, 255]
    assert records.quantize(values).dtype == np.uint8


def test_the_byte_of_a_missing_feature_is_read_as_the_number_nearest_to_zero():
    # 127 is the middle of the 256 bins, and bins are centered half a step higher.
    expected = {(-2, 2): 127, (-0.1, 0.1): 127, (0, 6): 0, (-6, 0): 255, (-1, 3): 63}
    for low_high, byte in expected.items():
        assert records.zero_byte(*low_high) == byte
        step = (low_high[1] - low_high[0]) / 255
        assert abs(records.dequantize(np.array(byte), *low_high)) <= step / 2 + 1e-6


def test_truncation_is_unbiased():
    values = np.random.default_rng(0).uniform(-1.9, 1.9, 200_000)
    error = records.dequantize(records.quantize(values)) - values
    # Uniform in +-2/255, so a standard deviation of .0045 and of the mean 1e-5. The
    # middle of a step is 2/255 = .00784 and the formula adds 4/512 = .00781.
    assert abs(error.mean()) < 1e-4
    assert np.abs(error).max() < 2 / 255 + 1e-4


def test_dequantizing_and_quantizing_round_trips():
    every = np.arange(256, dtype=np.uint8)
    assert (records.quantize(records.dequantize(every)) == every).all()


@pytest.mark.parametrize("dtype", [tf.uint8, tf.float32])
def test_padding_becomes_exactly_zero(dtype):
    frames = tf.cast(tf.fill([4, 3, 2], 7), dtype)
    ours = features.dequantize(frames, tf.constant([0, 1, 2, 3])).numpy()
    assert ours.dtype == np.float32
    for row, n in enumerate([0, 1, 2, 3]):
        assert (ours[row, n:] == 0.0).all()
        assert (ours[row, :n] != 0.0).all()


def test_nan_in_the_padding_becomes_zero():
    frames = tf.constant([[[1.0], [np.nan]]])
    assert features.dequantize(frames, tf.constant([1])).numpy().tolist() == [
        [[1.0], [0.0]]
    ]


def test_float_frames_are_only_masked():
    frames = tf.constant([[[0.25, -3.0], [1e-9, 5.0]]])
    ours = features.dequantize(frames, tf.constant([2]))
    np.testing.assert_array_equal(ours, frames)


def test_normalizing_scales_the_joint_vector_of_a_frame():
    frames = tf.constant([[[3.0, 4.0], [0.0, -2.0]]])
    ours = features.l2_normalize(frames)
    np.testing.assert_allclose(ours, [[[0.6, 0.8], [0.0, -1.0]]], rtol=1e-6)


def test_a_zero_frame_stays_zero_and_its_gradient_is_finite():
    frames = tf.Variable([[[0.0, 0.0], [3.0, 4.0]]])
    with tf.GradientTape() as tape:
        ours = features.l2_normalize(frames)
        total = tf.reduce_sum(ours * [1.0, 2.0])
    assert (ours.numpy()[0, 0] == 0.0).all()
    gradient = tape.gradient(total, frames).numpy()
    assert np.isfinite(gradient).all()
    # d(u . w)/dx = (w - (u . w) u) / |x| with u = (.6, .8), w = (1, 2), |x| = 5.
    np.testing.assert_allclose(gradient[0, 1], [-0.064, 0.048], rtol=1e-5)
