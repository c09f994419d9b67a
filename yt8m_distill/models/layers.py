"""What every network may need: dropout and batch norm for padded, divided batches.

Neither depends on padding, on the batch around a video, or on the number of replicas.
"""

from typing import NamedTuple

import keras
import tensorflow as tf


class Noise(NamedTuple):
    """What a network draws its random numbers from in a training step.

    Attributes:
        seed: [2] int32, of the run, the role and the step.
        first_row: int32 scalar, the first row of this replica in the global batch.
        rows: int32 scalar, rows of the global batch.
    """

    seed: tf.Tensor
    first_row: tf.Tensor
    rows: tf.Tensor

    def uniform(self, like: tf.Tensor, index: int = 0) -> tf.Tensor:
        """Numbers in [0, 1) in the shape of `like`, by row of the global batch.

        Args:
            like: [B, ...]; all dimensions but B are static.
            index: tells the places of one network apart.
        """
        seed = self.seed
        if index:
            seed = tf.random.experimental.stateless_fold_in(seed, index)
        shape = tf.stack([self.rows, *like.shape[1:]])
        drawn = tf.random.stateless_uniform(shape, seed)
        drawn = drawn[self.first_row : self.first_row + tf.shape(like)[0]]
        return tf.ensure_shape(drawn, like.shape)


def dropout(
    x: tf.Tensor, rate: float, noise: Noise | None = None, index: int = 0
) -> tf.Tensor:
    """x with a share `rate` of its numbers set to 0 and the others scaled up.

    Args:
        x: [B, ...] float32.
        rate: in [0, 1).
        noise: of the step; None: drawn from TensorFlow's global generator.
        index: see Noise.uniform.
    """
    if rate == 0:
        return x
    drawn = tf.random.uniform(tf.shape(x)) if noise is None else noise.uniform(x, index)
    return tf.where(drawn >= rate, x / (1 - rate), 0.0)


def _sum_over_replicas(values: list[tf.Tensor]) -> list[tf.Tensor]:
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return values
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)


class BatchNorm(keras.layers.Layer):
    """y = (x - mean) / sqrt(variance + epsilon) * gamma + beta, per column.

    In training mean and variance are those of the valid rows of the global batch, on
    all replicas, and are followed by moving averages, which are used otherwise. So
    neither padding nor the number of replicas changes them. In float32 under every
    dtype policy.

    Args:
        size: columns of x.
        momentum: of the moving averages.
        epsilon: see above.
        center, scale: whether there are beta and gamma.
    """

    def __init__(
        self,
        size: int,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
    ):
        super().__init__(dtype="float32")
        self.momentum = momentum
        self.epsilon = epsilon

        def weight(name, initializer, trainable=True):
            return self.add_weight(
                name=name,
                shape=(size,),
                initializer=initializer,
                trainable=trainable,
            )

        self.gamma = weight("gamma", "ones") if scale else None
        self.beta = weight("beta", "zeros") if center else None
        self.moving_mean = weight("moving_mean", "zeros", False)
        self.moving_variance = weight("moving_variance", "ones", False)
        self.built = True

    def call(
        self, x: tf.Tensor, mask: tf.Tensor | None = None, training: bool = False
    ) -> tf.Tensor:
        """Normalizes x.

        Args:
            x: [..., size] float32.
            mask: x's shape without the last axis, 0 or False for padding; None: all
                rows are valid.
            training: whether batch statistics are used and followed.
        """
        mean = tf.convert_to_tensor(self.moving_mean)
        variance = tf.convert_to_tensor(self.moving_variance)
        if training:
            mean, variance = self._statistics(x, mask)
            self._follow(mean, variance)
        scale = tf.math.rsqrt(variance + self.epsilon)
        if self.gamma is not None:
            scale *= self.gamma
        y = (x - mean) * scale
        return y if self.beta is None else y + self.beta

    def _statistics(self, x, mask) -> tuple[tf.Tensor, tf.Tensor]:
        axes = list(range(len(x.shape) - 1))
        valid = tf.ones_like(x[..., :1])
        if mask is not None:
            valid = tf.cast(mask, tf.float32)[..., tf.newaxis]
        kept = tf.where(valid > 0, x, 0.0)
        count, total = _sum_over_replicas(
            [tf.reduce_sum(valid), tf.reduce_sum(kept, axes)]
        )
        count = tf.maximum(count, 1.0)
        mean = total / count
        # From the mean, not from the sum of squares, which cancels in float32.
        spread = tf.where(valid > 0, tf.square(x - mean), 0.0)
        (spread,) = _sum_over_replicas([tf.reduce_sum(spread, axes)])
        return mean, spread / count

    def _follow(self, mean, variance) -> None:
        for moving, now in (
            (self.moving_mean, mean),
            (self.moving_variance, variance),
        ):
            step = (1 - self.momentum) * (now - tf.convert_to_tensor(moving))
            # The same on all replicas, since the statistics are.
            moving.assign(tf.stop_gradient(moving + step))
