"""The moving average of the weights, which is validated, kept and exported.

Keras' optimizers have one (`use_ema`), but it omits variables without gradients, such
as batch norm statistics, and is dominated by the initial weights at first.
"""

import tensorflow as tf

from yt8m_distill.models import teacher_student

# The average covers about a ninth of the steps so far, until --ema_decay limits it.
_WARMUP = 9.0


class WeightAverage:
    """Averages all variables of the networks that learn.

    After step t, counted from 0: average += s_t (weights - average), with
    s_t = max(1 - decay, 9 / (10 + t)), so that average_t is that of tf.train's
    ExponentialMovingAverage with its `num_updates`, whose decay is
    min(decay, (1 + t) / (10 + t)). It starts at the initial weights, whose share after
    t steps is t! 9! / (t + 9)! (less than a hundredth after 3).

    Batch norm statistics are averaged like weights: the mean of a layer's output is
    linear in its weights, so the averaged mean belongs to the averaged weights. Integer
    variables are copied.

    Args:
        networks: the networks that learn.
        averages: networks of the same roles, whose variables become the averages.
        decay: of the average, in (0, 1].
    """

    def __init__(
        self,
        networks: teacher_student.TeacherStudent,
        averages: teacher_student.TeacherStudent,
        decay: float,
    ):
        self.decay = decay
        pairs = [
            pair
            for role in averages.views
            for pair in zip(
                averages.network(role).weights,
                networks.network(role).weights,
                strict=True,
            )
        ]
        # A shared classifier must be averaged once per step.
        self._pairs = list({id(average): (average, v) for average, v in pairs}.values())

    def start(self) -> None:
        """Sets the averages to the current weights."""
        for average, variable in self._pairs:
            average.assign(tf.convert_to_tensor(variable))

    def follow(self, step: tf.Tensor) -> None:
        """Updates the averages after a step; runs in a replica.

        All replicas have the same weights, so each updates its own copy.

        Args:
            step: int64 scalar, the number of steps before this one.
        """
        share = tf.maximum(1 - self.decay, _WARMUP / (10 + tf.cast(step, tf.float32)))
        for average, variable in self._pairs:
            value = tf.convert_to_tensor(variable)
            if value.dtype.is_floating:
                old = tf.convert_to_tensor(average)
                value = old + tf.cast(share, value.dtype) * (value - old)
            average.assign(value)
