"""Runs functions on the replicas of this process, and collects their rows."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf


def under_policy(function: Callable) -> Callable:
    """The function under the dtype policy of now, in whichever thread it runs.

    Keras 3 (3.15) has a policy per thread, and replicas run in threads of their own.
    """
    policy = keras.mixed_precision.global_policy()

    def call(*arguments):
        keras.mixed_precision.set_global_policy(policy)
        return function(*arguments)

    return call


def on_replicas(strategy: tf.distribute.Strategy, function: Callable) -> Callable:
    """A tf.function that runs `function(batch)` on each part of a distributed batch."""
    function = under_policy(function)
    return tf.function(
        lambda batch: strategy.run(function, args=(batch,)), autograph=False
    )


def local_rows(strategy: tf.distribute.Strategy, value) -> np.ndarray:
    """The rows [B, ...] of all replicas of this process."""
    parts = strategy.experimental_local_results(value)
    return np.concatenate([part.numpy() for part in parts])
