"""Classifiers on top of an encoding; each returns logits [B, C].

To add one, write a Keras layer with `num_classes` as its first argument, whose `build`
creates all of its weights, and decorate it with `@HEADS.register("name")`.
"""

import functools

import keras
import numpy as np
import tensorflow as tf

from yt8m_distill import registry
from yt8m_distill.models import layers

HEADS = registry.Registry("head")

_LOWEST = -1e30  # Finite, so that the difference to -inf is defined.


def kernels(head: keras.layers.Layer) -> list:
    """The weights of rank 2 or more of a head: those under the L2 penalty."""
    return [v for v in head.weights if len(v.shape) > 1]


def _log_odds(p: np.ndarray) -> np.ndarray:
    return (np.log(p) - np.log1p(-p)).astype(np.float32)


def _log_sum_exp(terms: list[tf.Tensor]) -> tf.Tensor:
    """log Σ exp of tensors of one shape; a term may be -inf."""
    largest = functools.reduce(tf.maximum, terms, _LOWEST)
    largest = tf.stop_gradient(largest)
    return tf.math.log(sum(tf.exp(x - largest) for x in terms)) + largest


@HEADS.register("logistic")
class LogisticHead(keras.layers.Layer):
    """One sigmoid unit per class (the paper's W).

    Args:
        num_classes: C.
        bias_init: initial bias of all classes; 0 starts at probability 0.5, as the
            starter code does. None starts each class at its frequency in the training
            data (see start_at), which a small data set would spend epochs learning.
    """

    def __init__(self, num_classes: int, bias_init: float | None = None):
        super().__init__(dtype="float32")
        self.num_classes = num_classes
        self.bias_init = bias_init

    def build(self, input_shape) -> None:
        """Creates the variables for encodings [B, E]."""
        self.kernel = self.add_weight(
            name="kernel",
            shape=(input_shape[-1], self.num_classes),
            initializer="glorot_uniform",
        )
        self.bias = self.add_weight(
            name="bias",
            shape=(self.num_classes,),
            initializer=keras.initializers.Constant(self.bias_init or 0.0),
        )
        self.built = True

    def start_at(self, frequencies: np.ndarray) -> None:
        """Sets the bias to the log-odds of the classes, unless bias_init was given.

        Args:
            frequencies: [C] in (0, 1), the fraction of videos with each class.
        """
        if self.bias_init is None:
            self.bias.assign(_log_odds(frequencies))

    def call(self, encoding: tf.Tensor) -> tf.Tensor:
        """[B, E] → logits [B, C] float32."""
        kernel = tf.convert_to_tensor(self.kernel)
        return layers.multiply(encoding, kernel) + self.bias


@HEADS.register("moe")
class MixtureOfExpertsHead(keras.layers.Layer):
    """A mixture of logistic experts for each class, as in the starter code.

    p = sum over m of softmax(gates)_m * sigmoid(experts)_m. The last gate belongs to a
    dummy expert whose output is always 0. The logits are the exact log-odds of p.

    Args:
        num_classes: C.
        num_mixtures: experts per class, without the dummy.
        bias_init: initial bias of the experts; None as in LogisticHead.
    """

    def __init__(
        self, num_classes: int, num_mixtures: int = 2, bias_init: float | None = None
    ):
        super().__init__(dtype="float32")
        if num_mixtures < 1:
            raise ValueError(f"moe needs num_mixtures >= 1, not {num_mixtures}.")
        self.num_classes = num_classes
        self.num_mixtures = num_mixtures
        self.bias_init = bias_init

    def build(self, input_shape) -> None:
        """Creates the variables for encodings [B, E]; columns are class-major."""
        size, classes, experts = input_shape[-1], self.num_classes, self.num_mixtures
        self.gate_kernel = self.add_weight(
            name="gate_kernel",
            shape=(size, classes * (experts + 1)),
            initializer="glorot_uniform",
        )
        self.expert_kernel = self.add_weight(
            name="expert_kernel",
            shape=(size, classes * experts),
            initializer="glorot_uniform",
        )
        self.expert_bias = self.add_weight(
            name="expert_bias",
            shape=(classes * experts,),
            initializer=keras.initializers.Constant(self.bias_init or 0.0),
        )
        self.built = True

    def start_at(self, frequencies: np.ndarray) -> None:
        """As in LogisticHead, given that all gates (with the dummy's) start equal."""
        if self.bias_init is None:
            share = self.num_mixtures / (self.num_mixtures + 1)
            bias = _log_odds(np.minimum(frequencies / share, 0.99))
            self.expert_bias.assign(np.repeat(bias, self.num_mixtures))

    def call(self, encoding: tf.Tensor) -> tf.Tensor:
        """[B, E] → logits [B, C] float32."""
        classes, experts = self.num_classes, self.num_mixtures
        gates = layers.multiply(encoding, tf.convert_to_tensor(self.gate_kernel))
        votes = layers.multiply(encoding, tf.convert_to_tensor(self.expert_kernel))
        votes = tf.reshape(votes + self.expert_bias, [-1, classes, experts])
        # A tensor [B, C] each: TensorFlow is slow over an axis of two or three numbers.
        # The gates' softmax has the same denominator in both sums.
        gates = tf.reshape(gates, [-1, classes, experts + 1])
        *gates, dummy = tf.unstack(gates, axis=-1)
        pairs = list(zip(gates, tf.unstack(votes, axis=-1), strict=True))
        # Below -88 log_sigmoid is -inf in LiteRT.
        yes = [gate + tf.math.log_sigmoid(vote) for gate, vote in pairs]
        no = [gate + tf.math.log_sigmoid(-vote) for gate, vote in pairs]
        return _log_sum_exp(yes) - _log_sum_exp([*no, dummy])
