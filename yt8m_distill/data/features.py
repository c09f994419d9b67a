"""From stored frames to what a network reads. Runs next to the model.

uint8 frames travel to the device, a quarter of the bytes of float32.
"""

import tensorflow as tf

# x * SCALE + OFFSET maps 0..255 to the middles of 256 steps over [-2, 2].
SCALE = 4 / 255
OFFSET = 4 / 512 - 2


def dequantize(frames: tf.Tensor, num_frames: tf.Tensor) -> tf.Tensor:
    """Frames as float32, exactly 0 behind the last valid one.

    Args:
        frames: [B, T, D] uint8, quantised; or float32, which is only masked.
        num_frames: [B] int32.

    Returns:
        [B, T, D] float32; a valid quantised number is in [-1.992, 2.008].
    """
    if frames.dtype == tf.uint8:
        frames = tf.cast(frames, tf.float32) * SCALE + OFFSET
    valid = tf.sequence_mask(num_frames, tf.shape(frames)[1])
    return tf.where(valid[..., tf.newaxis], frames, 0.0)


def l2_normalize(frames: tf.Tensor) -> tf.Tensor:
    """Scales each frame to length 1 over the joint vector; a zero frame stays zero.

    Args:
        frames: [B, T, D] float32.
    """
    return tf.math.l2_normalize(frames, axis=-1, epsilon=1e-12)
