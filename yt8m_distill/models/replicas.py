"""Runs functions on the replicas of this process, and collects their rows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from yt8m_distill import structures


def under_policy(function: Callable) -> Callable:
    """The function under the dtype policy of now, in whichever thread it runs.

    Keras 3 (3.15) has a policy per thread, and replicas run in threads of their own.
    """
    policy = keras.mixed_precision.global_policy()

    def call(*arguments):
        keras.mixed_precision.set_global_policy(policy)
        return function(*arguments)

    return call


class Runner(NamedTuple):
    """A network with the devices that run it.

    Attributes:
        networks: a teacher_student.TeacherStudent or mean.MeanNetworks; of its networks
            only the role's is used.
        role: its name.
        strategy: the devices.
    """

    networks: Any
    role: str
    strategy: tf.distribute.Strategy

    def forward(self, batch: structures.Batch, **how) -> structures.Outputs:
        """The network on its view of a batch; see TeacherStudent.forward."""
        return self.networks.forward(self.role, batch[structures.VIEWS], **how)

    def on_replicas(self, function: Callable) -> Callable:
        """A tf.function: `function(batch)` on each part of a distributed batch."""
        function = under_policy(function)
        return tf.function(
            lambda batch: self.strategy.run(function, args=(batch,)), autograph=False
        )

    def local_rows(self, value) -> np.ndarray:
        """The rows [B, ...] of all replicas of this process."""
        parts = self.strategy.experimental_local_results(value)
        return np.concatenate([part.numpy() for part in parts])
