"""Dequantization and normalization of frames, on the device of the model.

The frames are transferred as uint8, a quarter of the size of float32.
"""

import numpy as np
import tensorflow as tf

from yt8m_distill import settings

# x * SCALE + OFFSET maps 0..255 to the centers of 256 bins over [-2, 2].
SCALE = 4 / 255
OFFSET = 4 / 512 - 2


def steps(data: settings.DataSettings) -> tuple:
    """Scale and offset that dequantize the frames of these records.

    Returns:
        SCALE and OFFSET; with --feature_ranges, [D] float32 each.
    """
    if not data.feature_ranges:
        return SCALE, OFFSET
    low, high = np.repeat(np.float32(data.ranges), data.sizes, axis=0).T
    return (high - low) / 255, (high - low) / 512 + low


def dequantize(
    frames: tf.Tensor, num_frames: tf.Tensor, scale=SCALE, offset=OFFSET
) -> tf.Tensor:
    """Frames as float32, exactly 0 after the last valid one.

    Args:
        frames: [B, T, D] uint8, quantized; or float32, which is only masked.
        num_frames: [B] int32.
        scale, offset: see steps.

    Returns:
        [B, T, D] float32; valid dequantized values are in [-1.992, 2.008] with the
        default scale and offset.
    """
    if frames.dtype == tf.uint8:
        frames = tf.cast(frames, tf.float32) * scale + offset
    valid = tf.sequence_mask(num_frames, tf.shape(frames)[1])
    return tf.where(valid[..., tf.newaxis], frames, 0.0)


def l2_normalize(frames: tf.Tensor) -> tf.Tensor:
    """Scales each frame, all features together, to norm 1; a zero frame stays zero.

    Args:
        frames: [B, T, D] float32.
    """
    return tf.math.l2_normalize(frames, axis=-1, epsilon=1e-12)
