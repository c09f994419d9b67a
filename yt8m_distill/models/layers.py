"""Layers for padded batches that are split over replicas.

No result depends on padding or on the number of replicas.
"""

from typing import NamedTuple

import keras
import tensorflow as tf

from yt8m_distill.models import arguments


def product_dtype() -> tf.DType:
    """The dtype of matrix products under the global Keras dtype policy."""
    return tf.as_dtype(keras.mixed_precision.global_policy().compute_dtype)


def multiply(x: tf.Tensor, kernel: tf.Tensor, **transpose: bool) -> tf.Tensor:
    """x @ kernel, computed in the policy's dtype and returned as float32."""
    dtype = product_dtype()
    product = tf.matmul(tf.cast(x, dtype), tf.cast(kernel, dtype), **transpose)
    return tf.cast(product, tf.float32)


class Numbered:
    """Mixin that keeps a list of layers in attributes `name_1`, `name_2`, ...

    Keras 3 (3.15) hides layers in a list from tf.train.Checkpoint, which would then
    silently save none of them.
    """

    def add_numbered(self, name: str, added: list) -> None:
        """Sets the attributes `name_1`, `name_2`, ..."""
        for number, layer in enumerate(added, 1):
            setattr(self, f"{name}_{number}", layer)

    def numbered(self, name: str) -> list:
        """The layers `name_1`, `name_2`, ... in order."""
        layers = []
        while hasattr(self, f"{name}_{len(layers) + 1}"):
            layers.append(getattr(self, f"{name}_{len(layers) + 1}"))
        return layers


class Noise(NamedTuple):
    """Source of a network's random numbers in one training step.

    Attributes:
        seed: [2] int32, derived from the run, the role and the step.
        first_row: int32 scalar, this replica's first row in the global batch.
        rows: int32 scalar, number of rows of the global batch.
    """

    seed: tf.Tensor
    first_row: tf.Tensor
    rows: tf.Tensor

    def uniform(self, like: tf.Tensor, index: int = 0) -> tf.Tensor:
        """Uniform numbers in [0, 1) that depend only on the row of the global batch.

        Args:
            like: [B, ...], the shape of the result.
            index: distinguishes several draws of one network.
        """
        seed = self.seed
        if index:
            seed = tf.random.experimental.stateless_fold_in(seed, index)
        # Several machines do not know B, and so not always the other dimensions.
        shape = tf.concat([[self.rows], tf.shape(like)[1:]], axis=0)
        drawn = tf.random.stateless_uniform(shape, seed)
        drawn = drawn[self.first_row : self.first_row + tf.shape(like)[0]]
        return tf.ensure_shape(drawn, like.shape)


def dropout(
    x: tf.Tensor, rate: float, noise: Noise | None = None, index: int = 0
) -> tf.Tensor:
    """Sets a fraction `rate` of x to 0 and scales up the rest.

    Args:
        x: [B, ...] float32.
        rate: in [0, 1).
        noise: of the step; None draws from TensorFlow's global generator.
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

    In training, mean and variance are computed over the valid rows of the global batch
    on all replicas, so neither padding nor the number of replicas changes them. Outside
    training, their moving averages are used. The first batches have equal weight in
    these averages, which makes them usable after one epoch of a small data set.
    Computed in float32 under every dtype policy.

    Args:
        size: columns of x.
        momentum: of the moving averages; after n batches min(momentum, n / (n + 1)).
    """

    def __init__(self, size: int, momentum: float = 0.99, epsilon: float = 1e-3):
        super().__init__(dtype="float32")
        self.momentum = momentum
        self.epsilon = epsilon

        def weight(name, initializer, trainable=True, shape=(size,)):
            how = {"initializer": initializer, "trainable": trainable}
            return self.add_weight(name=name, shape=shape, **how)

        self.gamma = weight("gamma", "ones")
        self.beta = weight("beta", "zeros")
        self.moving_mean = weight("moving_mean", "zeros", False)
        self.moving_variance = weight("moving_variance", "ones", False)
        self.batches = weight("batches", "zeros", False, ())
        self.built = True

    def call(
        self, x: tf.Tensor, mask: tf.Tensor | None = None, training: bool = False
    ) -> tf.Tensor:
        """Normalizes x.

        Args:
            x: [..., size] float32.
            mask: x's shape without the last axis, 0 or False for padding; None: all
                rows are valid.
            training: whether to use the batch's statistics and update the averages.
        """
        mean = tf.convert_to_tensor(self.moving_mean)
        variance = tf.convert_to_tensor(self.moving_variance)
        if training:
            mean, variance = self._statistics(x, mask)
            self._follow(mean, variance)
        scale = tf.math.rsqrt(variance + self.epsilon) * self.gamma
        # Two passes over x; (x - mean) * scale + beta would be three.
        return x * scale + (self.beta - mean * scale)

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
        # Two passes: E[x²] - E[x]² cancels in float32.
        squares = tf.where(valid > 0, tf.square(x - mean), 0.0)
        (squares,) = _sum_over_replicas([tf.reduce_sum(squares, axes)])
        return mean, squares / count

    def _follow(self, mean, variance) -> None:
        n = tf.convert_to_tensor(self.batches)
        share = tf.maximum(1 - self.momentum, 1 / (n + 1))
        for moving, now in (
            (self.moving_mean, mean),
            (self.moving_variance, variance),
        ):
            step = share * (now - tf.convert_to_tensor(moving))
            # Equal on all replicas, because the statistics are.
            moving.assign(tf.stop_gradient(moving + step))
        self.batches.assign(n + 1)


class Linear(keras.layers.Layer):
    """y = x W + b, from width `inputs` to `outputs`."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True):
        super().__init__(dtype="float32")
        self.kernel = self.add_weight(
            name="kernel", shape=(inputs, outputs), initializer="glorot_uniform"
        )
        self.bias = None
        if bias:
            self.bias = self.add_weight(
                name="bias", shape=(outputs,), initializer="zeros"
            )
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """[..., inputs] → [..., outputs] float32."""
        return self.columns(x, 0, None)

    def columns(self, x: tf.Tensor, begin: int, end: int | None) -> tf.Tensor:
        """The outputs from begin to end."""
        kernel = tf.convert_to_tensor(self.kernel)[:, begin:end]
        y = multiply(tf.reshape(x, [-1, x.shape[-1]]), kernel)
        if self.bias is not None:
            y += tf.convert_to_tensor(self.bias)[begin:end]
        return tf.reshape(y, tf.concat([tf.shape(x)[:-1], [y.shape[-1]]], 0))


class LayerNorm(keras.layers.Layer):
    """y = (x - mean) / sqrt(variance + epsilon) * gamma + beta, per row.

    Computed in float32 under every dtype policy. The layer of Keras 2 (2.15) is tied to
    the rank that it was built for and normalizes another axis of any other input.

    Args:
        size: columns of x.
    """

    def __init__(self, size: int, epsilon: float = 1e-5):
        super().__init__(dtype="float32")
        self.epsilon = epsilon
        self.gamma = self.add_weight(name="gamma", shape=(size,), initializer="ones")
        self.beta = self.add_weight(name="beta", shape=(size,), initializer="zeros")
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """[..., size] float32, normalized over the last axis."""
        mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)
        scale = tf.math.rsqrt(variance + self.epsilon) * self.gamma
        return (x - mean) * scale + self.beta


class ContextGating(keras.layers.Layer):
    """y = h * sigmoid(BN(h W_g)) (NetVLAD's context gating).

    Args:
        size: H, width of h.
    """

    def __init__(self, size: int):
        super().__init__(dtype="float32")
        self.gates = Linear(size, size, bias=False)
        self.norm = BatchNorm(size)
        self.built = True

    def call(
        self, h: tf.Tensor, mask: tf.Tensor | None = None, training: bool = False
    ) -> tf.Tensor:
        """[B, H] → [B, H]; `mask` [B] is False for padding rows."""
        return h * tf.sigmoid(self.norm(self.gates(h), mask, training=training))


class SqueezeGating(keras.layers.Layer):
    """y = h * sigmoid(relu(BN(h W_1)) W_2) (NeXtVLAD's gating).

    Args:
        size: H, width of h.
        reduction: the width inside is H / reduction.

    Raises:
        ValueError: if the reduction does not divide H.
    """

    def __init__(self, size: int, reduction: int = 8):
        super().__init__(dtype="float32")
        arguments.require_counts(gating_reduction=reduction)
        arguments.require_divisor(reduction, size, "gating_reduction", "the width")
        self.squeeze = Linear(size, size // reduction, bias=False)
        self.norm = BatchNorm(size // reduction)
        self.expand = Linear(size // reduction, size, bias=False)
        self.built = True

    def call(
        self, h: tf.Tensor, mask: tf.Tensor | None = None, training: bool = False
    ) -> tf.Tensor:
        """[B, H] → [B, H]; `mask` [B] is False for padding rows."""
        inside = tf.nn.relu(self.norm(self.squeeze(h), mask, training=training))
        return h * tf.sigmoid(self.expand(inside))
