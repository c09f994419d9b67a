"""The moving average of the weights: what is validated, kept and exported.

Keras' optimizers have one (`use_ema`), which leaves out what no optimizer owns, such as
the statistics of batch norm, and begins with an average full of the initial weights.
"""

import tensorflow as tf

from yt8m_distill.models import teacher_student

# The average reaches back over a ninth of the steps until --ema_decay says less.
_WARMUP = 9.0


class WeightAverage:
    """Follows all variables of the networks that learn.

    After step t, counted from 0: average += s_t (weights - average), with
    s_t = max(1 - decay, 9 / (10 + t)), so that average_t is that of tf.train's
    ExponentialMovingAverage with its `num_updates`, whose decay is
    min(decay, (1 + t) / (10 + t)). It begins with the first weights, of which
    t! 9! / (t + 9)! is left after t steps (less than a hundredth after 3).

    The statistics of batch norm are averaged as the weights are: the mean of what a
    layer gives is linear in its weights, so that the averaged mean is that of the
    averaged weights. What is no floating point number is copied.

    Args:
        networks: that learn.
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
        # A classifier that two roles share is there once.
        self._pairs = list({id(average): (average, v) for average, v in pairs}.values())

    def start(self) -> None:
        """Sets the averages to the weights as they are."""
        for average, variable in self._pairs:
            average.assign(tf.convert_to_tensor(variable))

    def follow(self, step: tf.Tensor) -> None:
        """Takes in the weights after a step; runs in a replica.

        All replicas have the same weights, so that each updates its own copy.

        Args:
            step: int64 scalar, steps done before.
        """
        share = tf.maximum(1 - self.decay, _WARMUP / (10 + tf.cast(step, tf.float32)))
        for average, variable in self._pairs:
            now = tf.convert_to_tensor(variable)
            if now.dtype.is_floating:
                before = tf.convert_to_tensor(average)
                now = before + tf.cast(share, now.dtype) * (now - before)
            average.assign(now)
