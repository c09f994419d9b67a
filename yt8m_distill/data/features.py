"""From stored frames to what a network reads. Runs next to the model.

uint8 frames travel to the device, a quarter of the bytes of float32.
"""

import numpy as np
import tensorflow as tf

from yt8m_distill import settings

# x * SCALE + OFFSET maps 0..255 to the middles of 256 steps over [-2, 2].
SCALE = 4 / 255
OFFSET = 4 / 512 - 2


def steps(data: settings.DataSettings) -> tuple:
    """Scale and offset that dequantize the features of some records.

    Returns:
        SCALE and OFFSET, or [D] float32 each where --feature_ranges are given.
    """
    if not data.feature_ranges:
        return SCALE, OFFSET
    low, high = np.repeat(np.float32(data.ranges), data.sizes, axis=0).T
    return (high - low) / 255, (high - low) / 512 + low


def dequantize(
    frames: tf.Tensor, num_frames: tf.Tensor, scale=SCALE, offset=OFFSET
) -> tf.Tensor:
    """Frames as float32, exactly 0 behind the last valid one.

    Args:
        frames: [B, T, D] uint8, quantised; or float32, which is only masked.
        num_frames: [B] int32.
        scale, offset: see steps.

    Returns:
        [B, T, D] float32; a valid quantised number is in [-1.992, 2.008], unless
        scale and offset say otherwise.
    """
    if frames.dtype == tf.uint8:
        frames = tf.cast(frames, tf.float32) * scale + offset
    valid = tf.sequence_mask(num_frames, tf.shape(frames)[1])
    return tf.where(valid[..., tf.newaxis], frames, 0.0)


def l2_normalize(frames: tf.Tensor) -> tf.Tensor:
    """Scales each frame to length 1 over the joint vector; a zero frame stays zero.

    Args:
        frames: [B, T, D] float32.
    """
    return tf.math.l2_normalize(frames, axis=-1, epsilon=1e-12)
